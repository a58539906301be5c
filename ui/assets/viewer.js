// Panels with pictures of one size, which share zoom, pan and cursor. Works by mouse, wheel, touch and keyboard.
const VIEWER_MAX_ZOOM = 64;
const VIEWER_STEP = 1.25;
const VIEWER_GRID = 6;

// Turns the element `place` into the viewer. `panels` are {key, title}. `options`: readout(key, x, y) returns the text
// below a panel, announce(x, y) the text for a screen reader, and key(event) says whether it handled another key.
function makeViewer(place, panels, options) {
  const size = { width: 1, height: 1 };
  const view = { x: 0.5, y: 0.5, zoom: 1 };
  let cursor = null;
  let opacity = 0.6;
  let queued = false;
  const waiting = [];

  place.classList.add("viewer");
  place.tabIndex = 0;
  place.setAttribute("role", "application");
  place.setAttribute("aria-roledescription", "picture comparison");
  const spoken = document.createElement("div");
  spoken.className = "viewer-spoken";
  spoken.setAttribute("aria-live", "polite");
  const parts = panels.map(({ key, title }) => {
    const figure = document.createElement("figure");
    figure.className = "viewer-panel";
    figure.dataset.panel = key;
    const caption = document.createElement("figcaption");
    const name = document.createElement("span");
    name.className = "viewer-title";
    name.textContent = title;
    const words = document.createElement("span");
    words.className = "viewer-words";
    caption.append(name, words);
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", title);
    const note = document.createElement("p");
    note.className = "viewer-note";
    note.hidden = true;
    figure.append(caption, canvas, note);
    place.append(figure);
    return { key, name, words, canvas, note, layer: null, alpha: null, dim: 0, shade: document.createElement("canvas") };
  });
  place.append(spoken);
  let photo = null;

  const fit = (canvas) => Math.min(canvas.clientWidth / size.width, canvas.clientHeight / size.height) || 1;
  const scaleOf = (canvas) => fit(canvas) * view.zoom;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const settle = () => {
    const canvas = parts[0].canvas;
    view.zoom = clamp(view.zoom, 1, VIEWER_MAX_ZOOM);
    const scale = scaleOf(canvas);
    const hold = (centre, whole, box) => {
      const half = box / scale / 2;
      return half * 2 >= whole ? whole / 2 : clamp(centre, half, whole - half);
    };
    view.x = hold(view.x, size.width, canvas.clientWidth);
    view.y = hold(view.y, size.height, canvas.clientHeight);
    for (const part of parts) part.canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
  };
  const pointAt = (event, canvas) => {
    const box = canvas.getBoundingClientRect();
    const scale = scaleOf(canvas);
    return {
      x: (event.clientX - box.left - box.width / 2) / scale + view.x,
      y: (event.clientY - box.top - box.height / 2) / scale + view.y,
    };
  };
  const draw = (part) => {
    const { canvas } = part;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const scale = scaleOf(canvas) * ratio;
    const left = width / 2 - view.x * scale;
    const top = height / 2 - view.y * scale;
    const box = [left, top, size.width * scale, size.height * scale];
    context.clearRect(0, 0, width, height);
    if (photo) {
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(photo, ...box);
    }
    if (part.dim) {
      context.fillStyle = `rgb(0 0 0 / ${part.dim})`;
      context.fillRect(...box);
    }
    if (part.layer) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = part.alpha ?? opacity;
      context.drawImage(part.shade, ...box);
      context.globalAlpha = 1;
    }
    if (cursor) crosshair(context, left + (cursor.x + 0.5) * scale, top + (cursor.y + 0.5) * scale, scale, ratio);
  };
  const crosshair = (context, x, y, scale, ratio) => {
    const gap = Math.max(scale / 2, 5 * ratio);
    const { width, height } = context.canvas;
    const lines = [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]];
    for (const [color, thick] of [["rgb(0 0 0 / 70%)", 3 * ratio], ["#fff", ratio]]) {
      context.strokeStyle = color;
      context.lineWidth = thick;
      context.beginPath();
      for (const [x0, y0, x1, y1] of lines) {
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
      }
      if (scale / ratio > VIEWER_GRID) context.rect(x - scale / 2, y - scale / 2, scale, scale);
      context.stroke();
    }
  };
  const paint = () => {
    queued = false;
    settle();
    for (const part of parts) {
      draw(part);
      const words = cursor ? options.readout(part.key, cursor.x, cursor.y) : "";
      if (part.words.textContent !== words) part.words.textContent = words;
    }
    for (const done of waiting.splice(0)) done();
  };
  const redraw = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(paint);
  };
  const inside = ({ x, y }) => ({
    x: clamp(Math.floor(x), 0, size.width - 1),
    y: clamp(Math.floor(y), 0, size.height - 1),
  });
  const zoomAt = (factor, point) => {
    const before = view.zoom;
    view.zoom = clamp(before * factor, 1, VIEWER_MAX_ZOOM);
    const share = before / view.zoom;
    view.x = point.x + (view.x - point.x) * share;
    view.y = point.y + (view.y - point.y) * share;
    redraw();
  };
  const pan = (dx, dy) => {
    view.x += dx;
    view.y += dy;
    redraw();
  };

  // -- mouse, wheel and touch
  const pointers = new Map();
  let pinch = null;
  for (const { canvas } of parts) {
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      pinch = null;
      cursor = inside(pointAt(event, canvas));
      redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (last) pointers.set(event.pointerId, event);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()];
        const middle = { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 };
        const apart = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        if (pinch) {
          const scale = scaleOf(canvas);
          pan((pinch.clientX - middle.clientX) / scale, (pinch.clientY - middle.clientY) / scale);
          zoomAt(apart / pinch.apart, pointAt(middle, canvas));
        }
        pinch = { ...middle, apart };
      } else if (last) {
        const scale = scaleOf(canvas);
        pan((last.clientX - event.clientX) / scale, (last.clientY - event.clientY) / scale);
        place.classList.toggle("dragging", view.zoom > 1);
      } else if (event.pointerType === "mouse") {
        cursor = inside(pointAt(event, canvas));
        redraw();
      }
    });
    for (const over of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(over, (event) => {
        pointers.delete(event.pointerId);
        pinch = null;
        place.classList.remove("dragging");
      });
    }
    canvas.addEventListener("dblclick", (event) => zoomAt(event.shiftKey ? 0.5 : 2, pointAt(event, canvas)));
    canvas.addEventListener("wheel", (event) => {
      if (view.zoom === 1 && event.deltaY > 0) return; // nothing to zoom out of: the page scrolls
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      zoomAt(Math.exp((-event.deltaY * lines) / 300), pointAt(event, canvas));
      cursor = inside(pointAt(event, canvas));
    }, { passive: false });
  }

  // -- keyboard
  let announcing = 0;
  const announce = () => {
    clearTimeout(announcing);
    announcing = setTimeout(() => {
      if (cursor) spoken.textContent = options.announce(cursor.x, cursor.y);
    }, 350);
  };
  const follow = () => {
    const canvas = parts[0].canvas;
    const scale = scaleOf(canvas);
    const hold = (centre, point, box) => {
      const half = Math.max(box / scale / 2 - 1, 0);
      return clamp(centre, point + 0.5 - half, point + 0.5 + half);
    };
    view.x = hold(view.x, cursor.x, canvas.clientWidth);
    view.y = hold(view.y, cursor.y, canvas.clientHeight);
  };
  const middle = () => cursor ?? inside(view);
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  place.addEventListener("keydown", (event) => {
    if (event.target !== place || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = event.shiftKey ? 10 : 1;
      const now = middle();
      cursor = inside({ x: now.x + arrow[0] * step, y: now.y + arrow[1] * step });
      follow();
      redraw();
      announce();
    } else if (event.key === "+" || event.key === "=") zoomAt(VIEWER_STEP, { x: middle().x + 0.5, y: middle().y + 0.5 });
    else if (event.key === "-" || event.key === "_") zoomAt(1 / VIEWER_STEP, { x: middle().x + 0.5, y: middle().y + 0.5 });
    else if (event.key === "0") {
      view.zoom = 1;
      redraw();
    } else if (!options.key(event)) return;
    event.preventDefault();
  });
  place.setAttribute(
    "aria-keyshortcuts",
    "ArrowLeft ArrowRight ArrowUp ArrowDown Shift+ArrowLeft Shift+ArrowRight Shift+ArrowUp Shift+ArrowDown Plus - 0 N P M ?",
  );
  new ResizeObserver(redraw).observe(place);

  const find = (key) => parts.find((part) => part.key === key);
  return {
    // Shows another picture. Its maps have `width` and `height`; `image` covers all of it. Keeps the zoom if the size is the same.
    show(image, width, height) {
      photo = image;
      if (size.width !== width || size.height !== height) {
        Object.assign(size, { width, height });
        Object.assign(view, { x: width / 2, y: height / 2, zoom: 1 });
        cursor = null;
        place.style.setProperty("--aspect", `${width} / ${height}`);
      }
      redraw();
    },
    // The colours over a panel's photograph: RGBA of each pixel as one number (little end first), or null.
    layer(key, rgba, { alpha = null, dim = 0 } = {}) {
      const part = find(key);
      Object.assign(part, { layer: rgba, alpha, dim });
      if (rgba) {
        Object.assign(part.shade, { width: size.width, height: size.height });
        const data = new ImageData(new Uint8ClampedArray(rgba.buffer), size.width, size.height);
        part.shade.getContext("2d").putImageData(data, 0, 0);
      }
      redraw();
    },
    title(key, text) {
      const part = find(key);
      part.name.textContent = text;
      part.canvas.setAttribute("aria-label", text);
    },
    note(key, text) {
      const { note } = find(key);
      note.textContent = text;
      note.hidden = !text;
    },
    opacity(value) {
      opacity = value;
      redraw();
    },
    say(text) {
      spoken.textContent = text;
    },
    zoom: (factor) => zoomAt(factor, { x: middle().x + 0.5, y: middle().y + 0.5 }),
    fit() {
      view.zoom = 1;
      redraw();
    },
    state: () => ({ ...view, cursor }),
    drawn: () => new Promise((done) => { waiting.push(done); redraw(); }),
    redraw,
  };
}
