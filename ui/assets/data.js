// The Data tab: datasets, what the chosen one holds, and the subset that is picked from it.
const POLL_MS = 1000;
const PUBLISH_MS = 250;
const GESTURE_MS = 1500;
const FILTERS = { all: "All", in: "In the subset", came: "Came in", went: "Went out" };
const DEFAULT = { card: "scenes", fraction: 0.1, rule: "random", seed: 0, names: null, teacher: null };

const sets = element.querySelector(".sets");
const place = element.querySelector(".view");
const page = { tiles: [], view: null, choice: { ...DEFAULT }, adding: null, filter: "all", tasks: {} };
const subset = { chosen: [], base: [], waiting: null, problem: null, classes: null };
const sent = [];
let gesture = { kind: "", at: 0 };

// -- the page's parts ------------------------------------------------------------------------------

const offline = el("div", { class: "offline", role: "status", hidden: true }, "No answer from the server, trying again …");
const tiles = el("div", { class: "tiles", role: "group", "aria-label": "Datasets" });
sets.append(offline, el("h2", {}, "Dataset"), tiles);

const added = el("div", { class: "added" });
const overview = el("section", { class: "overview" });
const controls = new SubsetControls(set, () => act("ask"), () => act("stop"));
const change = el("p", { class: "change", role: "status" });
const holds = el("div", { class: "table" });
const gallery = new Gallery(
  (asked) => call("data_thumbnails", { ...asked, place: page.choice.card }),
  (index) => toggle(index),
);
const filters = el("div", { class: "filters", role: "group", "aria-label": "Images shown" });
const masks = el("input", { type: "checkbox", checked: true });
masks.addEventListener("change", () => gallery.withMasks(masks.checked));
const summary = el("span", { class: "summary" });
const distill = el("button", { type: "button", class: "main" }, "Distill with these");
distill.addEventListener("click", () => {
  clearTimeout(publishing);
  trigger("distill", remember(page.choice));
});
const picker = el(
  "section",
  { class: "picker", hidden: true },
  el("h2", {}, "Images that the student learns from"),
  el("div", { class: "side" }, controls.element, holds),
  el(
    "div",
    { class: "pictures" },
    el("div", { class: "above" }, filters, el("label", { class: "masks" }, masks, el("span", {}, "Show masks"))),
    change,
    gallery.element,
    el("p", { class: "quiet" }, "A click or the space bar ticks an image and changes the rule to «by hand». Arrow keys move."),
  ),
  el("div", { class: "bottom" }, summary, distill),
);
place.append(added, overview, picker);

// -- the server ------------------------------------------------------------------------------------

// The server's answer; undefined when the server is down. An error in the answer is shown.
async function call(name, asked) {
  let answer;
  try {
    answer = await server[name](asked);
  } catch {
    answer = undefined;
  }
  const back = !offline.hidden && answer !== undefined && answer !== null;
  offline.hidden = answer !== undefined && answer !== null;
  if (back) setTimeout(reopen);
  return offline.hidden ? answer : undefined;
}

async function list() {
  const answer = await call("data_list", {});
  if (!answer) return;
  if (answer.error) tiles.replaceChildren(message(answer.error));
  else page.tiles = answer.tiles;
  drawTiles();
}

async function open(card) {
  const answer = await call("data_open", { place: card });
  if (!answer || page.choice.card !== card) return;
  const before = page.view && page.view.version;
  page.view = answer.error ? { state: "broken", how: answer.error, names: [], classes: [] } : answer;
  page.tasks.read = answer.reading;
  page.place = card;
  if (page.view.names.length && before !== answer.version) {
    const size = answer.found && answer.found.sizes[0] && answer.found.sizes[0][0].split("x");
    gallery.open(answer.names, size ? Math.min(1.2, Math.max(0.4, size[0] / size[1])) : 0.75);
    Object.assign(subset, { chosen: [], base: [], classes: null });
    page.filter = "all";
  }
  const teacher = page.choice.teacher;
  if (ASKING.includes(page.choice.rule)) firstTeacher();
  drawOverview();
  if (page.view.names.length) await select();
  if (page.choice.teacher !== teacher) publish();
}

async function reopen() {
  await list();
  await open(page.choice.card);
}

// Asks for the subset of the current choice. Requests made while an answer is awaited become one further request.
let selecting = null;
async function select() {
  if (selecting) {
    selecting.again = true;
    return;
  }
  selecting = { again: true };
  while (selecting.again) {
    selecting.again = false;
    const choice = { ...page.choice };
    const answer = await call("data_select", { choice });
    if (!answer) break;
    if (choice.card !== page.choice.card) continue;
    if (answer.error) answer.problem = answer.error;
    else if (answer.version !== page.view.version) {
      setTimeout(() => open(choice.card));
      break;
    }
    const { waiting = null, problem = null, classes = null } = answer;
    Object.assign(subset, { waiting, problem });
    if (!waiting && !problem) subset.classes = classes;
    if (choice.rule !== "hand" || !selecting.again) {
      if (!waiting && !problem) {
        if (!subset.chosen.length) subset.base = answer.chosen;
        subset.chosen = answer.chosen;
      }
    }
    drawSubset();
  }
  selecting = null;
}

async function act(what) {
  if (what === "look") return reopen();
  const answer = await call("data_do", { what, place: page.choice.card, teacher: page.choice.teacher, adding: page.adding });
  if (answer && answer.error) controls.problem.replaceChildren(message(answer.error));
  return poll();
}

async function poll() {
  const teacher = page.view && page.view.names.length ? page.choice.teacher : null;
  const answer = await call("data_poll", { place: page.choice.card, teacher, adding: page.adding });
  if (!answer || answer.error) return;
  const before = page.tasks;
  page.tasks = answer;
  const ended = (name) => answer[name] && answer[name].state !== "working" && !same(before[name], answer[name]);
  if (ended("fetch") && answer.fetch.state === "done") await reopen();
  else if (ended("read")) await open(page.choice.card);
  else drawOverview();
  if (ended("ask")) await select();
  else if (answer.ask) drawControls();
  if (page.adding) await drawAdding(answer.add);
}
const same = (one, other) => one && one.state === other.state;

// Starts when the tab is first seen. Runs one poll at a time, and none while the tab is hidden.
let begun = false;
let visible = false;
async function live() {
  if (!element.isConnected) return;
  if (element.offsetParent !== null) {
    if (!begun) adopt(props.value);
    // A teacher or dataset that was added elsewhere appears when the tab is shown again.
    await (visible ? poll() : reopen());
    begun = visible = true;
  } else visible = false;
  setTimeout(live, begun ? POLL_MS : 200);
}

// -- what a person does ----------------------------------------------------------------------------

function choose(card, justAdded = false) {
  if (card === page.choice.card) return;
  if (!justAdded) added.replaceChildren();
  page.choice = { ...page.choice, card, names: null, teacher: null };
  if (page.choice.rule === "hand") page.choice.rule = "random";
  page.view = null;
  page.tasks = {};
  drawTiles();
  overview.replaceChildren(el("p", { class: "quiet" }, "Opening …"));
  picker.hidden = true;
  open(card).then(publish);
}

function set(parts, kind) {
  const now = Date.now();
  if (kind !== gesture.kind || kind === "rule" || now - gesture.at > GESTURE_MS) subset.base = subset.chosen;
  gesture = { kind, at: now };
  const names = parts.rule === "hand" ? subset.chosen.map((index) => page.view.names[index]) : null;
  page.choice = { ...page.choice, ...parts, names: page.choice.rule === "hand" && !parts.rule ? page.choice.names : names };
  if (ASKING.includes(page.choice.rule)) firstTeacher();
  drawControls();
  select().then(publish);
}

function toggle(index) {
  const chosen = new Set(subset.chosen);
  if (gesture.kind !== "hand") subset.base = subset.chosen;
  gesture = { kind: "hand", at: Date.now() };
  if (!chosen.delete(index)) chosen.add(index);
  subset.chosen = [...chosen].sort((one, other) => one - other);
  page.choice = { ...page.choice, rule: "hand", names: subset.chosen.map((one) => page.view.names[one]) };
  drawSubset();
  select().then(publish);
}

function firstTeacher() {
  const known = (page.view && page.view.teachers) || [];
  if (!known.some(({ key }) => key === page.choice.teacher)) page.choice.teacher = known.length ? known[0].key : null;
}

// Sets the page's choice shortly after the last change, if a run can take the choice.
let publishing = null;
function publish() {
  clearTimeout(publishing);
  publishing = setTimeout(() => {
    if (usable()) trigger("choose", remember(page.choice));
  }, PUBLISH_MS);
}
const usable = () => !subset.problem && subset.waiting !== "teacher";

// Ignores the echo of a choice that was made here.
function remember(choice) {
  sent.push(JSON.stringify(choice));
  if (sent.length > 50) sent.shift();
  return choice;
}

// Takes a choice that was made elsewhere, or a dataset that is being added.
function adopt(value) {
  if (value && value.adding) {
    page.adding = value.adding;
    added.replaceChildren();
    added.hidden = false;
  }
  if (!value || !value.choice) return false;
  const choice = Object.fromEntries(Object.keys(DEFAULT).map((key) => [key, value.choice[key] ?? DEFAULT[key]]));
  if (sent.includes(JSON.stringify(choice)) || JSON.stringify(choice) === JSON.stringify(page.choice)) return false;
  page.choice = choice;
  gesture = { kind: "", at: 0 };
  return true;
}
watch("value", () => {
  if (adopt(props.value) && begun) reopen();
});

// -- drawing ---------------------------------------------------------------------------------------

function drawTiles() {
  if (!page.tiles.length) return;
  const focused = tiles.contains(document.activeElement);
  tiles.replaceChildren(...page.tiles.map((entry) => tile(entry, entry.place === page.choice.card, (card) => choose(card))));
  if (focused) tiles.querySelector("[aria-pressed=true]")?.focus();
}

let drawn = "";
function drawOverview() {
  const { view, tasks } = page;
  if (!view) return;
  picker.hidden = !view.names.length;
  const state = JSON.stringify([page.place, view.version, view.state, Boolean(view.found), tasks.fetch, tasks.read]);
  if (state === drawn) return;
  drawn = state;
  const stop = () => act("stop");
  const fetching = tasks.fetch && tasks.fetch.state === "working";
  const parts = [el("h3", {}, view.title || "")];
  if (!view.names.length) {
    parts.push(absent({ ...view, task: fetching ? progress(tasks.fetch, stop) : null }, act));
  } else {
    parts.push(facts(view));
    if (view.state === "incomplete") parts.push(message(`Incomplete: ${view.how}.`, "hint"));
    if (tasks.read && tasks.read.state === "working") parts.push(progress(tasks.read));
    if (view.found) parts.push(histogram(view), problems(view.found));
  }
  for (const task of [tasks.fetch, tasks.read]) if (task && task.state === "failed") parts.push(message(task.problem));
  overview.replaceChildren(...parts);
}

function drawControls() {
  const total = page.view.names.length;
  controls.show(page.choice, subset.chosen.length, total);
  controls.showTeacher(page.choice, page.view.teachers || [], subset.waiting, page.tasks.ask);
}

function drawSubset() {
  const { chosen, base, waiting, problem, classes } = subset;
  const { names } = page.view;
  const before = new Set(base);
  const now = new Set(chosen);
  const came = chosen.filter((index) => !before.has(index));
  const went = base.filter((index) => !now.has(index));
  drawControls();
  const texts = {
    counts: "The classes of each mask are still being counted. The rule chooses when that is done.",
    answer: "The gallery shows this rule's choice after the teacher has looked at the images. Until then it shows the choice before.",
    teacher: null,
  };
  const notices = problem ? [message(problem)] : texts[waiting] ? [message(texts[waiting], "hint")] : [];
  controls.problem.replaceChildren(...notices);
  holds.replaceChildren(...(classes ? [classTable(page.view, classes, names.length, chosen.length)] : []));
  change.textContent =
    gesture.kind && !waiting && !problem ? changeText(came.length, went.length, chosen.length - came.length) : "";
  const marks = new Map(chosen.map((index) => [index, before.has(index) || !gesture.kind ? "in" : "came"]));
  for (const index of went) marks.set(index, "went");
  const lists = { all: names.map((_, index) => index), in: chosen, came, went };
  drawFilters(lists);
  gallery.show(lists[page.filter], marks, "There is no such image.");
  const rule = RULES[page.choice.rule][0].toLowerCase();
  summary.textContent =
    waiting === "teacher" ? `${rule}: a teacher of this dataset is needed`
      : waiting === "answer" ? `${rule}: if you go on now, the run asks the teacher itself`
      : `${chosen.length.toLocaleString("en")} of ${plural(names.length, "image", "images")} · ${rule}`;
  distill.disabled = !usable();
}

function drawFilters(lists) {
  const focused = filters.contains(document.activeElement) && document.activeElement.dataset.filter;
  const button = (filter) =>
    el(
      "button",
      {
        type: "button",
        class: "plain",
        "data-filter": filter,
        "aria-pressed": String(filter === page.filter),
        onclick: () => {
          page.filter = filter;
          gallery.element.scrollTop = 0;
          drawSubset();
        },
      },
      `${FILTERS[filter]} (${lists[filter].length.toLocaleString("en")})`,
    );
  filters.replaceChildren(...Object.keys(FILTERS).map(button));
  if (focused) filters.querySelector(`[data-filter=${focused}]`).focus();
}

// A dataset that is being added: the progress, then the result.
async function drawAdding(task) {
  if (!task) return;
  if (task.state === "working") {
    added.replaceChildren(progress(task, () => act("stop")));
    return;
  }
  page.adding = null;
  if (task.state === "done") {
    const { result } = task;
    const images = Object.entries(result.images).map(([split, count]) => `${count} ${SPLITS[split]}`);
    const text = `Added «${result.name}», laid out as ${result.layout}: ${images.join(", ")} images, ` +
      `${plural(result.classes.length, "class", "classes")} (${result.classes.slice(0, 8).join(", ")}${result.classes.length > 8 ? " …" : ""}).`;
    added.replaceChildren(message(text, "good"), ...(result.problems.count ? [problems(result)] : []));
    await list();
    choose(result.place, true);
  } else {
    added.replaceChildren(message(task.state === "stopped" ? "Stopped; nothing was added." : task.problem));
  }
}

live();
