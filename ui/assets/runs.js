// The Runs tab: a table to sort and filter, the panel of the open run, and the plots.
const place = element.querySelector(".runs-view");
const STATES = {
  finished: "✓ finished", running: "▶ running", starting: "◔ starting", waiting: "… waiting", paused: "‖ paused",
  interrupted: "‖ stopped", failed: "✕ failed", new: "○ not started", damaged: "✕ damaged",
};
const inState = (row) => [STATES[row.state] ?? row.state, isNumber(row.share) && wholePercent(row.share)].filter(Boolean).join(" ");
const number = (value, digits, unit = "") => (isNumber(value) ? value.toFixed(digits) + unit : "");
const COLUMNS = [
  ["name", "run", (row) => row.name],
  ["state", "state", inState],
  ["dataset", "data", (row) => row.dataset],
  ["student", "network", (row) => row.student],
  ["method", "method", (row) => row.method],
  ["images", "images", (row) => number(row.images, 0)],
  ["miou", "mIoU", (row) => (isNumber(row.miou) ? percent(row.miou) : "")],
  ["percent_of_teacher", "of teacher", (row) => number(row.percent_of_teacher, 1, "\u00a0%")],
  ["bytes", "MB", (row) => number(row.bytes === null ? null : row.bytes / 1e6, 1)],
  ["latency_ms", "ms", (row) => number(row.latency_ms, 1)],
  ["seconds", "training", (row) => (isNumber(row.seconds) ? duration(row.seconds) : "")],
  ["changed", "changed", (row) => ago(row.changed)],
];
const NUMBERS = new Set(["images", "miou", "percent_of_teacher", "bytes", "latency_ms", "seconds", "changed"]);
const SEARCHED = ["name", "dataset", "student", "method", "teacher", "note"];

let rows = [];
let sort = { key: "changed", up: false };
let filter = "";
let chosen = null;
const ticked = new Set();

// -- filter and sort ----------------------------------------------------------------------------------
const tools = make("div", { class: "runs-tools" });
const search = make("input", {
  type: "search", class: "runs-search", placeholder: "Filter: name, data, network, state, note", "aria-label": "Filter the runs",
});
search.addEventListener("input", () => { filter = search.value.trim().toLowerCase(); drawTable(); });
const choice = (title, options, pick) => {
  const select = make("select", {}, Object.entries(options).map(([value, text]) => make("option", { value, text })));
  select.addEventListener("change", () => pick(select.value));
  return { label: make("label", { class: "runs-choice" }, [title, select]), select };
};
const sorting = choice("Sort by ", Object.fromEntries(COLUMNS.map(([key, title]) => [key, title])), (key) => {
  sort = { key, up: !NUMBERS.has(key) };
  drawTable();
});
sorting.select.value = sort.key;
sorting.label.classList.add("runs-narrow");
const down = button("", () => {
  studiesBox.scrollIntoView({ block: "start" });
  studiesBox.querySelector("h3").focus({ preventScroll: true });
});
down.hidden = true;
tools.append(search, sorting.label, down);
const tableBox = make("div", { class: "runs-table-box" });
const panelBox = make("section", { class: "runs-panel card", id: "runs-panel", "aria-label": "the chosen run" });
const plots = make("div", { class: "runs-plots" });
const studiesBox = make("section", { class: "studies", "aria-label": "studies" });
const askStudies = makeStudies(studiesBox, { ask: server.runs_studies, fetchFile: server.runs_file });
place.append(tools, tableBox, panelBox, plots, studiesBox);

const shown = () => {
  const kept = rows.filter((row) => [...SEARCHED.map((key) => row[key]), inState(row)].some((text) => String(text ?? "").toLowerCase().includes(filter)));
  return kept.sort((a, b) => {
    const [x, y] = [a[sort.key] ?? "", b[sort.key] ?? ""];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (typeof x === "number" ? x - y : String(x).localeCompare(String(y))) * (sort.up ? 1 : -1);
  });
};

// -- the table ----------------------------------------------------------------------------------------
const openRun = (name) => {
  chosen = name;
  drawTable();
  drawPanel();
  if (name) panelBox.scrollIntoView({ block: "nearest" });
};
const heading = ([key, title]) => {
  const own = sort.key === key;
  const sorter = button(title + (own ? (sort.up ? " ▲" : " ▼") : ""), () => {
    sort = { key, up: own ? !sort.up : !NUMBERS.has(key) };
    sorting.select.value = key;
    drawTable();
  }, "runs-sort");
  sorter.dataset.key = `sort ${key}`;
  return make("th", { scope: "col", class: NUMBERS.has(key) ? "number" : "", "aria-sort": own ? (sort.up ? "ascending" : "descending") : "none" }, [sorter]);
};
const drawName = (row) => {
  const open = row.name === chosen;
  const name = button(row.name, () => openRun(open ? null : row.name), "runs-name");
  name.dataset.key = `open ${row.name}`;
  name.setAttribute("aria-expanded", String(open));
  name.setAttribute("aria-controls", "runs-panel");
  const cell = make("td", { class: "runs-first" }, [name]);
  if (row.begun_from) cell.append(make("div", { class: "hint", text: `from ${row.begun_from} on` }));
  else if (row.pruned_from) cell.append(make("div", { class: "hint", text: `pruned from ${row.pruned_from}` }));
  if (row.note) cell.append(make("div", { class: "hint", text: row.note }));
  return cell;
};
const drawRow = (row) => {
  const tick = make("input", { type: "checkbox", "aria-label": `Show the curves of ${row.name} in the plot` });
  tick.checked = ticked.has(row.name);
  tick.dataset.key = `tick ${row.name}`;
  tick.addEventListener("change", () => {
    if (tick.checked) ticked.add(row.name);
    else ticked.delete(row.name);
    drawOverlay();
  });
  const cells = COLUMNS.slice(1).map(([key, title, text]) => {
    const kind = NUMBERS.has(key) ? "number" : key === "state" ? `state ${row.state}` : "";
    const cell = make("td", { class: kind, text: text(row) });
    cell.dataset.title = title;
    return cell;
  });
  const line = make("tr", { class: row.name === chosen ? "chosen" : "" }, [make("td", { class: "runs-tick" }, [tick]), drawName(row), ...cells]);
  return line;
};
const drawTable = () => {
  tools.hidden = !rows.length;
  if (!rows.length) {
    const empty = make("p", { text: "No run yet. Distill a student, or run the demo on the Start tab." });
    const on = [button("Go to Distill", () => trigger("look", { tab: "distill" })), button("Go to Start", () => trigger("look", { tab: "start" }))];
    tableBox.replaceChildren(make("div", { class: "empty card" }, [empty, ...on]));
    return;
  }
  const body = shown().map(drawRow);
  if (!body.length) body.push(make("tr", {}, [make("td", { class: "empty", colspan: COLUMNS.length + 1, text: "No run matches the filter." })]));
  const head = make("tr", {}, [make("td", { class: "runs-tick" }), ...COLUMNS.map(heading)]);
  const table = make("table", { class: "runs-table" }, [make("thead", {}, [head]), make("tbody", {}, body)]);
  keepingFocus(tableBox, () => tableBox.replaceChildren(table));
};

// -- the panel ----------------------------------------------------------------------------------------
const NO_ANSWER = "no answer from the server: try again in a moment";
const change = async (fn, asked, after) => {
  const answer = await fn(asked);
  const problem = answer ? answer.problem ?? "" : NO_ANSWER;
  if (!problem) after?.();
  await refresh();
  panel.say(problem);
};
const moved = (before, after) => {
  if (ticked.delete(before) && after) ticked.add(after);
  if (chosen === before) chosen = after;
  trigger("moved", { before, after });
};
const panel = makePanel(panelBox, {
  look: (run, tab) => trigger("look", { run, tab }),
  clone: (run) => trigger("clone", { run }),
  pack: (run) => pack(run),
  resume: (run) => change(server.runs_resume, { run }),
  stop: (run) => change(server.runs_stop, { run }),
  note: (run, note) => change(server.runs_note, { run, note }),
  rename: (run, name) => change(server.runs_rename, { run, name }, () => moved(run, name)),
  remove: (run) => change(server.runs_delete, { run }, () => moved(run, null)),
  close: () => {
    const name = chosen;
    openRun(null);
    [...tableBox.querySelectorAll("[data-key]")].find((node) => node.dataset.key === `open ${name}`)?.focus();
  },
});
// The zip is offered by a hidden button with a new label. The script then presses that button.
const saver = () => document.querySelector("#runs-save");
let packedBefore = "";
const pack = (run) => {
  packedBefore = saver()?.textContent.trim();
  panel.busy("Packing …");
  trigger("pack", { run });
};
window.segskdPacked = async () => {
  for (let waited = 0; waited < 3000 && saver()?.textContent.trim() === packedBefore; waited += 50) {
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  panel.busy("");
  if (saver()?.textContent.trim() !== packedBefore) saver()?.click();
};
const drawPanel = () => panel.draw(rows.find((row) => row.name === chosen) ?? null);

// -- the figures --------------------------------------------------------------------------------------
const scatterBox = make("section", { class: "card" });
const overlayBox = make("section", { class: "card" });
plots.append(scatterBox, overlayBox);
const cost = choice("Cost ", { bytes: "size", latency_ms: "latency", gmacs: "GMACs" }, () => drawScatter());
const data = choice("Data ", {}, () => drawScatter());
const measure = choice("Show ", { graft_miou: "graft mIoU after each stage", loss: "loss of each stage" }, () => drawOverlay());
const scatter = make("div"), overlay = make("div");
scatterBox.append(make("h3", { text: "mIoU against cost" }), make("div", { class: "runs-picks" }, [data.label, cost.label]), scatter);
overlayBox.append(make("h3", { text: "Runs over one another" }), make("div", { class: "runs-picks" }, [measure.label]), overlay);

const EMPTY_SCATTER = "Finished runs appear here, with the frontier of runs that no other run beats in both figures.";
const SCATTER_HINT = "Circles are runs. Diamonds are teachers that are not runs of this server. The line is the frontier: no run beats a run on it in both figures.";
const drawData = onChange((names) => {
  const before = data.select.value;
  data.select.replaceChildren(...names.map((value) => make("option", { value, text: value })));
  data.select.value = names.includes(before) ? before : names[0] ?? "";
  data.label.hidden = names.length < 2;
});
const drawScatter = () => {
  scatterBox.hidden = !rows.length;
  const axis = cost.select.value;
  const finished = rows.filter((row) => isNumber(row.miou) && isNumber(row[axis]));
  drawData([...new Set(finished.map((row) => row.dataset))].sort());
  const points = finished.filter((row) => row.dataset === data.select.value);
  if (!points.length) return scatter.replaceChildren(make("p", { class: "empty", text: EMPTY_SCATTER }));
  const svg = scatterPlot(scatterBox, points, axis, openRun);
  return keepingFocus(scatter, () => scatter.replaceChildren(svg, make("p", { class: "hint", text: SCATTER_HINT })));
};
const drawOverlay = async () => {
  overlayBox.hidden = !rows.length;
  const say = (text) => overlay.replaceChildren(make("p", { class: "empty", text }));
  const names = rows.map((row) => row.name).filter((name) => ticked.has(name));
  measure.label.hidden = names.length < 2;
  if (names.length < 2) return say("Tick two or more runs in the table to lay their curves over one another.");
  const curves = await server.runs_curves({ runs: names });
  if (!curves) return say("No answer from the server, trying again …");
  const drawn = curvePlot(overlayBox, curves, measure.select.value);
  return drawn ? overlay.replaceChildren(...drawn) : say("None of these has finished a stage yet.");
};
let width = 0;
const observer = new ResizeObserver(() => {
  if (Math.abs(scatterBox.clientWidth - width) < 8) return;
  width = scatterBox.clientWidth;
  drawScatter();
  drawOverlay();
});
observer.observe(plots);

// -- asking -------------------------------------------------------------------------------------------
const drawAll = onChange(() => {
  drawTable();
  drawScatter();
  drawOverlay();
});
const refresh = poll(async () => {
  const answer = await server.runs_rows({});
  if (!answer || pressed) return;
  rows = answer;
  drawAll(rows.map((row) => ({ ...row, changed: ago(row.changed), share: inState(row) })));
  drawPanel();
  const studies = await askStudies(); // last, so that no trouble with them keeps the runs from being drawn
  setText(down, `${studies} ${studies === 1 ? "study" : "studies"} below`);
  down.hidden = !studies;
}, 2000);
