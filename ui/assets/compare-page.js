// The elements of the Compare tab. compare-paint, compare-images and compare, in this order, add the behaviour.
const root = element.querySelector(".compare-view");
const address = new URL(window.location).searchParams;
const KEPT_FRAMES = 12;
const MODES = {
  masks: ["Masks", "The student's mask"],
  agreement: ["Agreement", "Who is right where"],
  errors: ["First errors", "At which stage errors begin"],
  stages: ["Stages", "The mask after each stage"],
  before: ["Before", "The run from which this one began"],
};
const TEACHER = "Teacher";

let run = "";
let comparison = null;
let again = false;
let current = null;
let wanted = null;
let loaded = null;
let mode = "masks";
let relatives = [];
let linked = address.get("image");
let listed = null;
const hidden = new Set();
const frames = new Map();
const askedAt = { runs: 0, open: 0, stages: 0, shares: 0, frame: 0 };

// -- the parts of the page
const part = (tag, className, parent) => {
  const made = node(tag, className);
  parent.append(made);
  return made;
};
const head = part("header", "compare-head", root);
const pick = node("select", "compare-select compare-run");
const pickLabel = part("label", "compare-run-label", head);
pickLabel.append(node("span", "", "Run"), pick);
const scores = part("div", "compare-scores", head);
const status = part("p", "notice hint compare-status", root);
status.setAttribute("role", "status");
status.hidden = true;
const message = part("div", "compare-message card", root);
const bench = part("div", "compare-bench", root);
const left = part("div", "compare-left", bench);
const right = part("div", "compare-right", bench);
const tools = part("div", "compare-tools", left);
const help = part("div", "compare-help card", left);
help.hidden = true;
const stage = part("div", "compare-viewer", left);
const legend = part("div", "compare-legend", left);
const side = part("section", "compare-side card", right);
const family = part("section", "compare-family card", right);
const table = part("section", "compare-table card", right);
const galleryPlace = part("section", "compare-gallery card", root);

const className = (value) => comparison.classes[value]?.name ?? (value === comparison.ignore ? "ignored" : "–");
const at = (map, x, y) => map[y * loaded.width + x];
const classAndConfidence = (who, x, y) => `${className(at(loaded.maps[who], x, y))} ${at(loaded.maps[`${who}_confidence`], x, y)} %`;
const kindAt = (x, y) => {
  const truth = at(loaded.maps.truth, x, y);
  if (truth === comparison.ignore) return "ignored";
  const right = ["teacher", "student"].map((who) => at(loaded.maps[who], x, y) === truth);
  return comparison.agreement.kinds[(right[0] ? 0 : 2) + (right[1] ? 0 : 1)];
};
const firstErrorText = (value) => {
  if (value === 0) return "right";
  if (value === comparison.marks.ignored) return "ignored";
  return value === comparison.marks.teacher_too ? "the teacher is wrong, too" : `wrong from ${comparison.stages[value - 1]} on`;
};
const studentReadout = (x, y) => {
  const { extra } = loaded;
  if (mode === "agreement") return kindAt(x, y);
  if (mode === "errors") return extra?.maps ? firstErrorText(at(extra.maps["first errors"], x, y)) : "";
  if (mode === "stages") return extra?.maps ? className(at(extra.maps[comparison.stages[slider.value()]], x, y)) : "";
  return classAndConfidence("student", x, y);
};
const readout = (key, x, y) => {
  if (!loaded) return "";
  if (key === "image") return `${x}, ${y}`;
  if (key === "truth") return loaded.maps.truth ? className(at(loaded.maps.truth, x, y)) : "";
  if (key === "student") return studentReadout(x, y);
  if (mode === "before") return loaded.before ? className(at(loaded.before, x, y)) : "";
  return classAndConfidence("teacher", x, y);
};
const announced = (x, y) =>
  `column ${x}, row ${y}. ` + ["truth", "teacher", "student"].map((key) => readout(key, x, y) && `${key}: ${readout(key, x, y)}`).filter(Boolean).join(". ");
const keyed = (event) => {
  if (event.key === "n") step(1);
  else if (event.key === "p") step(-1);
  else if (event.key === "m") cycle();
  else if (event.key === "?") toggleHelp();
  else return false;
  return true;
};
const PANELS = [["image", "Image"], ["truth", "Truth"], ["teacher", TEACHER], ["student", "Student"]];
const viewer = makeViewer(stage, PANELS.map(([key, title]) => ({ key, title })), { readout, announce: announced, key: keyed });
stage.setAttribute("aria-label", "Image, truth, teacher and student. Arrows move the cursor, plus and minus zoom, 0 fits, n and p change the image, question mark lists all keys.");

// -- tools above the viewer
const previous = button("←", () => step(-1), "compare-button");
const next = button("→", () => step(1), "compare-button");
previous.setAttribute("aria-label", "Previous image");
next.setAttribute("aria-label", "Next image");
previous.title = "Previous image (p)";
next.title = "Next image (n)";
const caption = node("span", "compare-caption");
caption.setAttribute("aria-live", "polite");
const steps = part("div", "compare-steps", tools);
steps.append(previous, next, caption);
const modes = part("div", "compare-modes", tools);
modes.setAttribute("role", "group");
modes.setAttribute("aria-label", "What the student's panel shows");
const modeButtons = Object.fromEntries(Object.entries(MODES).map(([key, [words, title]]) => {
  const made = button(words, () => choose(key), "compare-mode");
  made.title = title;
  made.dataset.mode = key;
  modes.append(made);
  return [key, made];
}));
const opacity = node("input");
Object.assign(opacity, { type: "range", min: 0, max: 100, value: 60 });
opacity.addEventListener("input", () => viewer.opacity(opacity.valueAsNumber / 100));
const opacityLabel = node("label", "compare-opacity");
opacityLabel.append(node("span", "", "Opacity"), opacity);
const zooms = node("div", "compare-zooms");
for (const [words, title, action] of [
  ["−", "Zoom out", () => viewer.zoom(1 / 1.5)],
  ["Fit", "Show all of the image", () => viewer.fit()],
  ["+", "Zoom in", () => viewer.zoom(1.5)],
  ["?", "Keys and gestures", () => toggleHelp()],
]) {
  const made = button(words, action);
  made.title = title;
  made.setAttribute("aria-label", title);
  zooms.append(made);
}
zooms.lastChild.setAttribute("aria-expanded", "false");
part("div", "compare-look", tools).append(opacityLabel, zooms);
const toggleHelp = () => {
  help.hidden = !help.hidden;
  zooms.lastChild.setAttribute("aria-expanded", String(!help.hidden));
};
const keys = part("dl", "compare-keys", help);
for (const [key, words] of [
  ["← ↑ ↓ →", "move the cursor (with Shift by ten pixels); click the pictures first"],
  ["+  −  0", "zoom at the cursor, fit"],
  ["n  p", "next and previous image, in the gallery's order"],
  ["m", "masks, agreement, first errors, stages"],
  ["?", "show or hide this"],
  ["mouse", "the wheel zooms, dragging moves, a double click zooms in (with Shift: out)"],
  ["touch", "two fingers zoom and move; after zooming in, one finger moves; a tap sets the cursor"],
]) keys.append(node("dt", "", key), node("dd", "", words));

// -- the side and the tables
const errorsPlace = node("div");
const sliderPlace = node("div");
const agreementPlace = node("div");
const sidePlaces = { masks: agreementPlace, agreement: agreementPlace, errors: errorsPlace, stages: sliderPlace };
side.append(agreementPlace, errorsPlace, sliderPlace);
const agreement = makeAgreement(agreementPlace);
const errors = makeErrors(errorsPlace, {
  count: () => shares(true),
  stop: () => server.compare_stop({ run }),
  isolate: () => paint(),
  retrain: async (from, epochs) => {
    const answer = await server.compare_retrain({ run, stage: from, epochs });
    if (answer?.run) trigger("look", { run: answer.run, tab: "watch" });
    return answer;
  },
});
const slider = makeSlider(sliderPlace, () => paint());
const retention = makeRetention(table, (name) => filter(name));
const gallery = makeGallery(galleryPlace, (name) => open(name), () => filter(null), async (images) => {
  const answer = await server.compare_thumbnails({ run, images });
  return answer?.pictures;
});
