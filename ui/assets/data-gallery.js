// The gallery. It may hold thousands of images; only the visible ones are in the page.
const GAP = 10;
const LEAST_WIDTH = 128;
const CAPTION = 24;
const AT_ONCE = 24;
const KEPT_PICTURES = 1500;

class Gallery {
  // `ask({indices, masks})` resolves to {urls: [[index, url or null], …]}. A click calls `toggle(index)`.
  constructor(ask, toggle) {
    this.ask = ask;
    this.toggle = toggle;
    this.shown = [];
    this.names = [];
    this.marks = new Map();
    this.cells = new Map();
    this.pictures = new Map();
    this.masks = true;
    this.ratio = 0.75;
    this.current = 0;
    this.inner = el("div", { class: "inner" });
    this.empty = el("p", { class: "empty" });
    this.element = el(
      "div",
      { class: "gallery", role: "listbox", "aria-label": "Training images", "aria-multiselectable": "true" },
      this.empty,
      this.inner,
    );
    this.element.addEventListener("scroll", () => this.draw());
    this.element.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.layOut()).observe(this.element);
  }

  // A new dataset, or other files in it.
  open(names, ratio) {
    this.names = names;
    this.ratio = ratio;
    this.pictures.clear();
    this.current = 0;
    this.element.scrollTop = 0;
  }

  // The images of the gallery, and their marks: index → "in", "came" or "went".
  show(indices, marks, emptyText) {
    const before = this.shown;
    this.shown = indices;
    this.marks = marks;
    this.empty.textContent = indices.length ? "" : emptyText;
    if (before.length !== indices.length || before.some((index, place) => index !== indices[place])) {
      this.clear();
      this.current = Math.min(this.current, Math.max(0, indices.length - 1));
    }
    this.layOut();
    for (const cell of this.cells.values()) this.mark(cell);
  }

  withMasks(masks) {
    this.masks = masks;
    this.pictures.clear();
    this.clear();
    this.draw();
  }

  clear() {
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
  }

  layOut() {
    const width = this.inner.clientWidth;
    if (!width) return;
    const columns = Math.max(2, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
    this.columns = columns;
    this.width = (width - GAP * (columns - 1)) / columns;
    this.height = this.width * this.ratio + CAPTION;
    const rows = Math.ceil(this.shown.length / columns);
    this.inner.style.height = `${Math.max(0, rows * (this.height + GAP) - GAP)}px`;
    for (const cell of this.cells.values()) this.put(cell);
    this.draw();
  }

  draw() {
    if (!this.columns) return;
    const step = this.height + GAP;
    const first = Math.max(0, Math.floor(this.element.scrollTop / step) - 1) * this.columns;
    const rows = Math.ceil(this.element.clientHeight / step) + 3;
    const last = Math.min(this.shown.length, first + rows * this.columns);
    for (const [place, cell] of this.cells) {
      if ((place < first || place >= last) && cell !== document.activeElement) {
        cell.remove();
        this.cells.delete(place);
      }
    }
    for (let place = first; place < last; place++) if (!this.cells.has(place)) this.make(place);
    this.sight = [first, last];
    this.fetch();
  }

  make(place) {
    const index = this.shown[place];
    const cell = el(
      "button",
      { type: "button", class: "cell", role: "option", "aria-setsize": this.shown.length, "aria-posinset": place + 1 },
      el("span", { class: "picture" }),
      el("span", { class: "name" }, this.names[index]),
      el("span", { class: "tick", "aria-hidden": "true" }),
    );
    cell.title = this.names[index];
    cell.place = place;
    cell.index = index;
    cell.addEventListener("click", () => {
      this.current = place;
      this.toggle(index);
      this.roam();
    });
    cell.addEventListener("focus", () => {
      this.current = cell.place;
      this.roam();
    });
    this.cells.set(place, cell);
    this.put(cell);
    this.mark(cell);
    this.paint(cell);
    this.inner.append(cell);
  }

  put(cell) {
    const row = Math.floor(cell.place / this.columns);
    const column = cell.place % this.columns;
    cell.style.cssText =
      `left: ${column * (this.width + GAP)}px; top: ${row * (this.height + GAP)}px; ` +
      `width: ${this.width}px; height: ${this.height}px`;
  }

  mark(cell) {
    const kind = this.marks.get(cell.index) || "out";
    const inside = kind === "in" || kind === "came";
    cell.dataset.mark = kind;
    cell.setAttribute("aria-selected", inside);
    cell.querySelector(".tick").textContent = { in: "✓", came: "✓ new", went: "− out", out: "" }[kind];
    const word = { in: "in the subset", came: "in the subset, came in", went: "not in the subset, went out" }[kind];
    cell.setAttribute("aria-label", `${this.names[cell.index]}: ${word || "not in the subset"}`);
    cell.tabIndex = cell.place === this.current ? 0 : -1;
  }

  roam() {
    for (const cell of this.cells.values()) cell.tabIndex = cell.place === this.current ? 0 : -1;
  }

  paint(cell) {
    const url = this.pictures.get(cell.index);
    const frame = cell.querySelector(".picture");
    if (url === undefined) return;
    if (url === null) frame.textContent = "can’t be read";
    else frame.replaceChildren(el("img", { src: url, alt: "", draggable: "false" }));
  }

  // Loads one page of pictures at a time, the visible ones first.
  async fetch() {
    if (this.fetching) return;
    this.fetching = true;
    try {
      for (;;) {
        const wanted = this.shown.slice(...this.sight).filter((index) => !this.pictures.has(index));
        if (!wanted.length) break;
        const { masks, names } = this;
        const page = wanted.slice(0, AT_ONCE);
        const answer = await this.ask({ indices: page, masks });
        if (!answer) break;
        if (masks !== this.masks || names !== this.names) continue;
        for (const index of page) this.pictures.set(index, null);
        for (const [index, url] of answer.urls) this.pictures.set(index, url);
        while (this.pictures.size > KEPT_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
        for (const cell of this.cells.values()) if (!cell.querySelector("img")) this.paint(cell);
      }
    } finally {
      this.fetching = false;
    }
  }

  move(event) {
    const page = this.columns * Math.max(1, Math.floor(this.element.clientHeight / (this.height + GAP)));
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.columns,
      ArrowUp: -this.columns,
      PageDown: page,
      PageUp: -page,
      Home: -this.shown.length,
      End: this.shown.length,
    };
    if (!(event.key in steps) || !this.shown.length) return;
    event.preventDefault();
    this.current = Math.min(this.shown.length - 1, Math.max(0, this.current + steps[event.key]));
    const top = Math.floor(this.current / this.columns) * (this.height + GAP);
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    const bottom = top + this.height - this.element.clientHeight;
    if (bottom > this.element.scrollTop) this.element.scrollTop = bottom;
    this.draw();
    this.cells.get(this.current).focus({ preventScroll: true });
  }
}
