// The subset picker: a rule, a share and a seed, the images that they choose, and the classes in these images.
const RULES = {
  random: ["Random", "Drawn by the seed; the same images on every machine."],
  balanced: ["Balanced by class", "Drawn by the seed, but images with rare classes come first."],
  diverse: ["Most diverse", "Images whose features in the teacher differ most (k-centre on its deepest features)."],
  hardest: ["Hardest", "Images on which the teacher is least sure (mean entropy of its output)."],
  hand: ["By hand", "Exactly the images that you tick in the gallery."],
};
const ASKING = ["diverse", "hardest"];
const LEAST_PERCENT = 0.1;

class SubsetControls {
  // A change by the person calls `changed(parts, kind)`. `ask` and `stop` start and stop the teacher's look at the images.
  constructor(changed, ask, stop) {
    this.changed = changed;
    this.ask = ask;
    this.stop = stop;
    const radio = (rule) => {
      const input = el("input", { type: "radio", name: "data-rule", value: rule });
      input.addEventListener("change", () => changed({ rule }, "rule"));
      return el("label", {}, input, el("span", {}, RULES[rule][0]));
    };
    this.rules = el("fieldset", { class: "rules" }, el("legend", {}, "Rule"), ...Object.keys(RULES).map(radio));
    this.why = el("p", { class: "quiet why" });
    this.slider = el("input", { type: "range", min: 1, max: 100, step: 1, "aria-label": "Share of the images" });
    this.share = el("input", { type: "number", min: LEAST_PERCENT, max: 100, step: "any", id: "data-share" });
    this.seed = el("input", { type: "number", min: 0, max: 2147483647, step: 1, id: "data-seed" });
    this.slider.addEventListener("input", () => this.setShare(this.slider.value));
    this.share.addEventListener("input", () => this.setShare(this.share.value));
    this.seed.addEventListener("input", () => this.setSeed());
    this.teachers = el("select", { id: "data-teacher" });
    this.teachers.addEventListener("change", () => changed({ teacher: this.teachers.value }, "teacher"));
    this.teacherRow = el("div", { class: "teacher" });
    this.fields = el(
      "div",
      { class: "fields" },
      el("label", { for: "data-share" }, "Share of the images, %"),
      el("div", { class: "share" }, this.slider, this.share),
      el("label", { for: "data-seed" }, "Seed"),
      this.seed,
    );
    this.problem = el("div", { class: "trouble", "aria-live": "polite" });
    this.element = el("div", { class: "controls" }, this.rules, this.why, this.fields, this.teacherRow, this.problem);
  }

  setShare(text) {
    const value = Number(text);
    if (text === "" || !(value > 0 && value <= 100)) {
      this.problem.replaceChildren(message("The share is a number above 0 and at most 100."));
      return;
    }
    this.changed({ fraction: value / 100 }, "share");
  }

  setSeed() {
    const value = Number(this.seed.value);
    if (this.seed.value === "" || !Number.isInteger(value) || value < 0 || value >= 2 ** 31) {
      this.problem.replaceChildren(message("The seed is a whole number between 0 and 2147483647."));
      return;
    }
    this.changed({ seed: value }, "seed");
  }

  // Shows a choice; `count` of `total` images are in the subset.
  show(choice, count, total) {
    for (const input of this.rules.querySelectorAll("input")) input.checked = input.value === choice.rule;
    const hand = choice.rule === "hand";
    const value = hand ? (100 * count) / Math.max(1, total) : 100 * choice.fraction;
    this.why.textContent = RULES[choice.rule][1];
    this.slider.value = value;
    if (document.activeElement !== this.share) this.share.value = Number(value.toFixed(2));
    if (document.activeElement !== this.seed) this.seed.value = choice.seed;
    this.slider.disabled = this.share.disabled = hand;
    this.seed.disabled = hand || ASKING.includes(choice.rule);
  }

  // The teachers of this dataset, and the button that starts one's look at the images.
  showTeacher(choice, teachers, waiting, task) {
    this.teacherRow.hidden = !ASKING.includes(choice.rule);
    if (this.teacherRow.hidden) return;
    const listed = JSON.stringify(teachers);
    if (this.listed !== listed) {
      this.listed = listed;
      this.teachers.replaceChildren(...teachers.map(({ key, label }) => el("option", { value: key }, label)));
    }
    if (choice.teacher) this.teachers.value = choice.teacher;
    if (!teachers.length) {
      const text = "This server has no teacher for this dataset. Train one, or upload one, on the Distill tab.";
      this.teacherRow.replaceChildren(message(text, "hint"));
      return;
    }
    const working = task && task.state === "working";
    const failed = task && task.state === "failed";
    const button = el("button", { type: "button", class: "main", onclick: this.ask }, "Ask the teacher");
    const done = el("span", { class: "good" }, "✓ The teacher has looked at the images.");
    this.teacherRow.replaceChildren(
      el("label", { for: "data-teacher" }, "Teacher"),
      this.teachers,
      working ? progress(task, this.stop) : waiting ? button : done,
      ...(failed ? [message(task.problem)] : []),
    );
  }
}

// Images and pixels by class, in the subset and in all training images.
const classTable = (view, rows, total, count) => {
  const most = Math.max(...rows.flatMap(({ share, whole }) => [share, whole]), 0.0001);
  const row = (entry, index) => {
    const { images, of, share, whole } = rows[index];
    const none = count > 0 && of > 0 && images === 0;
    return el(
      "tr",
      { class: none ? "none" : "" },
      el("th", { scope: "row", title: entry.name }, swatch(entry.color), el("span", {}, entry.name)),
      el("td", { class: "figure" }, none ? "⚠ 0" : String(images), el("small", {}, ` of ${of}`)),
      el("td", { class: "bars" }, bar(share, most, entry.color, "train"), bar(whole, most, entry.color, "whole")),
      el("td", { class: "figure" }, percent(share), el("small", {}, ` (${percent(whole)})`)),
    );
  };
  return el(
    "table",
    { class: "histogram holds" },
    el("caption", {}, "What the subset holds ", el("small", {}, "thick: subset, thin: all images")),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Class"),
        el("th", { scope: "col", class: "figure" }, "Images"),
        el("td"),
        el("th", { scope: "col", class: "figure" }, "Pixels (all)"),
      ),
    ),
    el("tbody", {}, ...view.classes.map(row)),
  );
};

// What a change did, in words.
const changeText = (came, went, stayed) => {
  if (!came && !went) return "The same images as before.";
  return `${plural(came, "image", "images")} came in (✓ new), ${went.toLocaleString("en")} went out (− out), ` +
    `${stayed.toLocaleString("en")} stayed.`;
};
