// The retention table and the gallery. The table filters the gallery; «next» and «previous» follow the gallery's order.
const RETENTION = [
  ["class", "class", (row) => row.class],
  ["teacher", "teacher", (row) => figure(row.teacher)],
  ["student", "student", (row) => figure(row.student)],
  ["difference", "diff.", (row) => signed(row.difference)],
  ["pixels", "support", (row) => row.part],
];
const makeRetention = (place, choose) => {
  let rows = [];
  let chosen = null;
  let sort = { key: "difference", up: true };
  const compared = (a, b) => {
    const [x, y] = [a[sort.key], b[sort.key]];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return sort.up ? order : -order;
  };
  const heading = ([key, title]) => {
    const cell = node("th");
    cell.scope = "col";
    const active = sort.key === key;
    cell.setAttribute("aria-sort", active ? (sort.up ? "ascending" : "descending") : "none");
    cell.append(button(`${title}${active ? (sort.up ? " ↑" : " ↓") : ""}`, () => {
      sort = { key, up: active ? !sort.up : key === "class" || key === "difference" };
      draw();
      place.querySelectorAll("th button")[RETENTION.findIndex((column) => column[0] === key)].focus();
    }, "compare-sort"));
    return cell;
  };
  const line = (row) => {
    const made = node("tr", row.class === chosen ? "chosen" : "");
    RETENTION.forEach(([key, , words], place) => {
      const cell = node(place ? "td" : "th", place ? "number" : "");
      if (place) {
        cell.textContent = words(row);
        if (key === "difference" && row.difference !== null) cell.classList.add(row.difference < -0.0005 ? "worse" : row.difference > 0.0005 ? "better" : "same");
        if (key === "pixels") cell.title = `${count(row.pixels)} pixels of the truth`;
      } else {
        cell.scope = "row";
        const name = button("", () => choose(row.class === chosen ? null : row.class), "compare-class");
        name.append(swatch(row.color), node("span", "", row.class));
        name.setAttribute("aria-pressed", String(row.class === chosen));
        name.title = row.class === chosen ? "Show all images again" : `Sort the gallery by ${row.class}`;
        cell.append(name);
      }
      made.append(cell);
    });
    made.addEventListener("click", (event) => {
      if (!event.target.closest("button")) choose(row.class === chosen ? null : row.class);
    });
    return made;
  };
  const draw = () => {
    const table = node("table", "compare-retention");
    const head = node("tr");
    head.append(...RETENTION.map(heading));
    const body = node("tbody");
    body.append(...[...rows].sort(compared).map(line));
    const top = node("thead");
    top.append(head);
    table.append(top, body);
    const hint = node("p", "hint", "IoU of each class over all images. Click a class: the gallery below sorts by it.");
    const box = node("div", "compare-retention-box");
    box.append(table);
    place.replaceChildren(node("h3", "", "What the student retained"), box, hint);
  };
  return {
    show(found, classes) {
      const all = found.reduce((sum, row) => sum + row.pixels, 0) || 1;
      rows = found.map((row, place) => ({ ...row, color: classes[place].color, part: percent(row.pixels / all) }));
      draw();
    },
    choose(name) {
      chosen = name;
      draw();
      place.querySelector('[aria-pressed="true"]')?.focus({ preventScroll: true });
    },
  };
};

const GALLERY_STEP = 60;
const GALLERY_ORDERS = { gap: "largest gap first", student: "worst student first", name: "by name" };
// `fetchPictures(names)` gives thumbnails by name, or undefined when the server does not answer.
const makeGallery = (place, open, clear, fetchPictures) => {
  let images = [];
  let shown = 0;
  let current = null;
  let order = "gap";
  let filterName = "";
  let cards = new Map();
  const pictures = new Map();
  const wanted = [];
  let asking = false;
  const head = node("div", "compare-gallery-head");
  const title = node("h3");
  const orders = node("select", "compare-select");
  orders.setAttribute("aria-label", "Order of the gallery");
  for (const [key, words] of Object.entries(GALLERY_ORDERS)) orders.append(new Option(words, key));
  const all = button("Show all images", clear);
  const hint = node("p", "hint");
  hint.append("Tinted where only one network is right: ", node("span", "swatch teacher-only"), " the teacher, ", node("span", "swatch student-only"), " the student.");
  head.append(title, orders, all);
  const list = node("ul", "compare-cards");
  const end = node("li", "compare-end");
  place.append(head, hint, list);
  const sorted = () => {
    if (order === "gap") return images;
    return [...images].sort((a, b) => (order === "student" ? a[2] - b[2] : a[0].localeCompare(b[0])));
  };
  const fill = async () => {
    if (asking) return;
    asking = true;
    while (wanted.length) {
      const names = wanted.splice(0, 12);
      const found = await fetchPictures(names);
      if (!found) break;
      for (const name of names) {
        pictures.set(name, found[name]);
        put(name);
      }
    }
    asking = false;
  };
  const put = (name) => {
    const spot = cards.get(name)?.querySelector(".compare-thumb");
    const url = pictures.get(name);
    if (!spot || spot.firstChild) return;
    if (!url) {
      spot.textContent = "can't be read";
      return;
    }
    const image = node("img");
    image.src = url;
    image.alt = "";
    spot.append(image);
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      if (target === end) {
        more();
        continue;
      }
      seen.unobserve(target);
      const { name } = target.dataset;
      if (pictures.has(name)) put(name);
      else wanted.push(name);
    }
    fill();
  }, { rootMargin: "200px" });
  const card = ([name, teacher, student, gap]) => {
    const made = node("li");
    const whole = button("", () => open(name), "compare-card");
    whole.dataset.name = name;
    const words = node("span", "compare-card-words");
    words.append(node("span", "compare-card-name", name), node("span", "compare-card-gap", `gap ${signed(gap)}`));
    whole.append(node("span", "compare-thumb"), words);
    whole.title = `${name}: teacher ${figure(teacher)}, student ${figure(student)}`;
    if (name === current) whole.setAttribute("aria-current", "true");
    made.append(whole);
    cards.set(name, whole);
    seen.observe(whole);
    return made;
  };
  const more = () => {
    const part = sorted().slice(shown, shown + GALLERY_STEP);
    shown += part.length;
    end.remove();
    list.append(...part.map(card));
    if (shown < images.length) {
      list.append(end);
      seen.observe(end);
    }
  };
  const draw = () => {
    seen.disconnect();
    cards = new Map();
    shown = 0;
    wanted.length = 0;
    list.replaceChildren();
    list.scrollTop = 0;
    title.textContent = filterName ? `${count(images.length)} images with ${filterName}` : `${count(images.length)} images`;
    all.hidden = !filterName;
    more();
  };
  orders.addEventListener("change", () => {
    order = orders.value;
    draw();
  });
  return {
    show(found, className = "") {
      images = found;
      filterName = className;
      draw();
    },
    forget: () => pictures.clear(),
    // The card of an image is marked, and scrolled to unless the order has just changed.
    mark(name, scrolls = true) {
      cards.get(current)?.removeAttribute("aria-current");
      current = name;
      const whole = cards.get(name);
      whole?.setAttribute("aria-current", "true");
      if (scrolls && whole && list.scrollHeight > list.clientHeight) {
        const [box, frame] = [whole.getBoundingClientRect(), list.getBoundingClientRect()];
        if (box.top < frame.top || box.bottom > frame.bottom) list.scrollTop += box.top - frame.top - 8;
      }
    },
    look: () => place.scrollIntoView({ block: "nearest" }),
    names: () => sorted().map(([name]) => name),
    colors(kinds) {
      place.querySelector(".teacher-only").style.background = css(kinds[1]);
      place.querySelector(".student-only").style.background = css(kinds[2]);
    },
  };
};
