// The data-efficiency curve of a study, as segskd/study/curve.py draws it: mIoU against the share of the images. A study
// with a single share shows the methods side by side, with their seeds. Hover and the arrow keys show the figures.
const CURVE = { height: 320, left: 54, right: 16, top: 14, bottom: 46 };
const LOGARITHMIC = 20; // shares that span more than this many times lie on a logarithmic axis
const MOST_SHARES = 8;
const LETTER = 6.3;
const COLOURS = 7, DASHES = ["", "7 3", "2 3", "7 3 2 3"];

// The shape of a line's points, in the order of curve.py.
function markPath(number, r) {
  const turned = (corners) => `M${corners.map(([x, y]) => `${x * r} ${y * r}`).join("L")}z`;
  const arm = 0.38;
  const plus = [[-arm, -1], [arm, -1], [arm, -arm], [1, -arm], [1, arm], [arm, arm], [arm, 1], [-arm, 1], [-arm, arm], [-1, arm], [-1, -arm], [-arm, -arm]];
  return [
    `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    turned([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]),
    turned([[0, -1.1], [1.05, 0.9], [-1.05, 0.9]]),
    turned([[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]]),
    turned([[0, 1.1], [1.05, -0.9], [-1.05, -0.9]]),
    turned(plus.map(([x, y]) => [1.15 * x, 1.15 * y])),
    turned(plus.map(([x, y]) => [0.85 * (x - y), 0.85 * (x + y)])),
  ][number % COLOURS];
}

const colourOf = (number) => `studies-line line-${number % COLOURS}`;
const dashOf = (number) => DASHES[Math.floor(number / COLOURS) % DASHES.length];

function markShape(number, x, y, r = 5) {
  const hollow = Math.floor(number / COLOURS) % 2 ? " hollow" : "";
  return shape("path", { class: `mark ${colourOf(number)}${hollow}`, d: markPath(number, r), transform: `translate(${x} ${y})` });
}

// The lines by name, each with its rows that have figures, in rising order of the share.
function linesOf(rows) {
  const lines = new Map();
  for (const row of [...rows].sort((a, b) => a.fraction - b.fraction)) {
    if (!lines.has(row.line)) lines.set(row.line, []);
    if (isNumber(row.miou_mean)) lines.get(row.line).push(row);
  }
  const order = [...new Set(rows.map((row) => row.line))];
  return order.map((name, number) => ({ name, number, rows: lines.get(name) }));
}

const spread = (mean, deviation, digits, unit = "") => {
  if (!isNumber(mean)) return "–";
  return `${mean.toFixed(digits)}${isNumber(deviation) ? ` ± ${deviation.toFixed(digits)}` : ""}${unit}`;
};
const share = (fraction) => `${Number((100 * fraction).toPrecision(6))}\u00a0%`;
const imagesOf = (row) => (isNumber(row.images) ? `${row.images} images (${share(row.fraction)})` : `${share(row.fraction)} of the images`);
const seedsOf = (row) => `${row.seeds} ${row.seeds === 1 ? "seed" : "seeds"}`;
const describeRow = (row) => {
  const deviation = isNumber(row.miou_std) ? ` ± ${(100 * row.miou_std).toFixed(1)}` : "";
  const kept = isNumber(row.percent_mean) ? `, ${row.percent_mean.toFixed(1)}\u00a0% of the teacher` : "";
  return `${row.line}, ${imagesOf(row)}: mIoU ${(100 * row.miou_mean).toFixed(1)}${deviation}\u00a0%${kept}, ${seedsOf(row)}`;
};

// The x position of a share, and the shares that are labelled below the axis.
function shareAxis(fractions, from, to) {
  const [least, most] = [fractions[0], fractions.at(-1)];
  const log = most / least > LOGARITHMIC;
  const [low, high] = log ? [Math.log(least / 1.2), Math.log(most * 1.2)] : [0, most * 1.03];
  const at = (fraction) => from + (((log ? Math.log(fraction) : fraction) - low) / (high - low)) * (to - from);
  const wanted = fractions.length <= MOST_SHARES || log ? fractions : ticksOf(0, 100 * most).map((tick) => tick / 100).filter((tick) => tick <= high);
  const ticks = [];
  for (const fraction of [...wanted].reverse()) {
    const text = String(Number((100 * fraction).toPrecision(6)));
    if (!ticks.length || ticks.at(-1).x - at(fraction) > LETTER * text.length + 4) ticks.push({ x: at(fraction), text });
  }
  return { at, ticks };
}

// The lines' names below their points, in one row or two. Without room for them the legend shows them.
function nameAxis(names, from, to) {
  const slot = (to - from) / names.length;
  const longest = LETTER * Math.max(...names.map((name) => name.length));
  const rows = longest < slot - 4 ? 1 : longest < 2 * slot - 8 ? 2 : 0;
  const at = (number) => from + slot * (number + 0.5);
  const ticks = rows ? names.map((name, number) => ({ x: at(number), text: name, low: rows === 2 && number % 2 === 1 })) : [];
  return { at, ticks, room: rows === 2 ? 15 : 0 };
}

function drawTicks(svg, ticks, floor) {
  for (const { x, text, low } of ticks) svg.append(shape("text", { x, y: floor + (low ? 31 : 16), "text-anchor": "middle" }, text));
}

function drawBand(svg, points, number) {
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    if (!isNumber(a.half) || !isNumber(b.half)) continue;
    const corners = [[a.x, a.low], [b.x, b.low], [b.x, b.high], [a.x, a.high]];
    svg.append(shape("polygon", { class: `band ${colourOf(number)}`, points: corners.map((corner) => corner.join(",")).join(" ") }));
  }
}

function drawBars(svg, points, number) {
  for (const { x, low, high, half } of points) {
    if (!isNumber(half)) continue;
    const d = `M${x} ${low}V${high}M${x - 4} ${low}h8M${x - 4} ${high}h8`;
    svg.append(shape("path", { class: `bar ${colourOf(number)}`, d }));
  }
}

// The whole picture, its points for hovering, and whether the axis names the lines: [svg, points, named].
function curvePicture(study, width) {
  const lines = linesOf(study.rows);
  const fractions = [...new Set(study.rows.map((row) => row.fraction))].sort((a, b) => a - b);
  const byShare = fractions.length > 1;
  const [from, to] = [CURVE.left, width - CURVE.right];
  const along = byShare ? shareAxis(fractions, from, to) : nameAxis(lines.map((line) => line.name), from, to);
  const floor = CURVE.height - CURVE.bottom - (along.room ?? 0);
  const teacher = isNumber(study.teacher_miou) ? [100 * study.teacher_miou] : [];
  const rows = lines.flatMap((line) => line.rows);
  const values = rows.flatMap((row) => [...[1, -1].map((sign) => 100 * (row.miou_mean + sign * (row.miou_std ?? 0))), ...row.mious.map((miou) => 100 * miou)]);
  const ticks = ticksOf(Math.max(0, Math.min(...values, ...teacher)), Math.max(...values, ...teacher));
  const up = (percents) => floor - ((percents - ticks[0]) / (ticks.at(-1) - ticks[0])) * (floor - CURVE.top);

  const look = { viewBox: `0 0 ${width} ${CURVE.height}`, width, height: CURVE.height, role: "img", tabindex: 0, class: "runs-plot studies-plot" };
  const svg = shape("svg", { ...look, "aria-label": `${study.title}: mIoU, mean and deviation. Arrow keys tell the figures.` });
  for (const tick of ticks) {
    svg.append(shape("line", { x1: from, x2: to, y1: up(tick), y2: up(tick), class: "grid" }));
    svg.append(shape("text", { x: from - 6, y: up(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  drawTicks(svg, along.ticks, floor);
  const under = byShare
    ? `training images (%${isNumber(study.training_images) ? ` of ${study.training_images}` : ""})`
    : `${imagesOf(study.rows[0])}; small circles: single seeds`;
  svg.append(shape("text", { x: (from + to) / 2, y: CURVE.height - 6, "text-anchor": "middle", class: "axis" }, under));
  const middle = (CURVE.top + floor) / 2;
  svg.append(shape("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})`, class: "axis" }, "mIoU, validation images, %"));
  for (const level of teacher) svg.append(shape("line", { x1: from, x2: to, y1: up(level), y2: up(level), class: "level" }));

  const placed = lines.map((line) => line.rows.map((row) => {
    const half = isNumber(row.miou_std) ? 100 * row.miou_std : null;
    const mean = 100 * row.miou_mean;
    return { row, half, number: line.number, x: along.at(byShare ? row.fraction : line.number), y: up(mean), low: up(mean - (half ?? 0)), high: up(mean + (half ?? 0)) };
  }));
  if (byShare) placed.forEach((points, number) => drawBand(svg, points, number));
  placed.forEach((points, number) => {
    drawBars(svg, points, number);
    const stroke = { class: `curve ${colourOf(number)}`, "stroke-dasharray": dashOf(number) };
    if (byShare) svg.append(shape("polyline", { ...stroke, points: points.map(({ x, y }) => `${x},${y}`).join(" ") }));
    else for (const { x, row } of points) {
      for (const miou of row.mious) svg.append(shape("circle", { class: `seed ${colourOf(number)}`, cx: x + 12, cy: up(100 * miou), r: 3 }));
    }
  });
  placed.forEach((points, number) => svg.append(...points.map(({ x, y }) => markShape(number, x, y))));
  return [svg, placed.flat().sort((a, b) => a.x - b.x || a.y - b.y), !byShare && along.ticks.length > 0];
}

// The legend, unless the axis names the lines.
function curveLegend(study, named) {
  const lines = linesOf(study.rows);
  const several = study.rows.some((row) => row.fraction !== study.rows[0].fraction);
  const sample = (...parts) => {
    const drawn = shape("svg", { width: 34, height: 14, "aria-hidden": "true", class: "runs-plot studies-sample" });
    drawn.append(...parts);
    return drawn;
  };
  const level = (look) => shape("line", { x1: 0, x2: 34, y1: 7, y2: 7, ...look });
  const stroke = (number) => level({ class: `curve ${colourOf(number)}`, "stroke-dasharray": dashOf(number) });
  const entries = named ? [] : lines.filter((line) => line.rows.length).map(({ name, number }) => (
    [sample(...(several ? [stroke(number)] : []), markShape(number, 17, 7)), name]
  ));
  if (isNumber(study.teacher_miou)) entries.push([sample(level({ class: "level" })), `teacher (${percent(study.teacher_miou)})`]);
  return make("ul", { class: "runs-legend" }, entries.map(([drawn, text]) => make("li", {}, [drawn, make("span", { text })])));
}

// A figure that draws itself again when its width changes. Returns a function that sets its study.
function makeCurve(host) {
  const frame = make("div", { class: "studies-frame" });
  const tip = make("div", { class: "studies-tip", "aria-live": "polite" });
  const legend = make("div");
  host.append(frame, tip, legend);
  tip.hidden = true;
  let study = null, points = [], ring = null, place = null, drawnWidth = 0;

  const hide = () => {
    place = null;
    tip.hidden = true;
    ring?.setAttribute("visibility", "hidden");
  };
  const show = (index) => {
    place = index;
    const { row, x, y } = points[index];
    ring.setAttribute("visibility", "visible");
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    tip.hidden = false;
    setText(tip, describeRow(row));
    tip.style.left = `${Math.max(0, Math.min(frame.clientWidth - tip.offsetWidth, x - tip.offsetWidth / 2))}px`;
    tip.style.top = `${y - tip.offsetHeight - 14 > 0 ? y - tip.offsetHeight - 12 : y + 14}px`;
  };
  const draw = () => {
    const width = frame.clientWidth;
    if (!study || !width) return;
    drawnWidth = width;
    const focused = frame.contains(document.activeElement);
    const before = place;
    hide();
    points = [];
    if (!study.rows.some((row) => isNumber(row.miou_mean))) {
      frame.replaceChildren(make("p", { class: "empty", text: "The curve begins with the first finished cell." }));
      return legend.replaceChildren();
    }
    const [svg, found, named] = curvePicture(study, width);
    points = found;
    ring = shape("circle", { class: "ring", r: 9, visibility: "hidden" });
    svg.append(ring);
    frame.replaceChildren(svg);
    legend.replaceChildren(curveLegend(study, named));
    if (focused) svg.focus({ preventScroll: true });
    if (before !== null && before < points.length) show(before);
  };
  frame.addEventListener("pointermove", (event) => {
    if (!points.length) return;
    const edge = frame.getBoundingClientRect();
    const far = points.map(({ x, y }) => (x - event.clientX + edge.left) ** 2 + (y - event.clientY + edge.top) ** 2);
    show(far.indexOf(Math.min(...far)));
  });
  frame.addEventListener("pointerleave", hide);
  frame.addEventListener("focusout", hide);
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    const before = place ?? (step > 0 ? -1 : points.length);
    show(Math.max(0, Math.min(points.length - 1, before + step)));
  });
  new ResizeObserver(() => { if (Math.abs(frame.clientWidth - drawnWidth) > 2) draw(); }).observe(frame);
  return (next) => {
    study = next;
    draw();
  };
}
