// The Watch tab: polls the server once a second for the run's state, and hands it to the parts of the tab.

const root = element.querySelector(".watch");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const POLL_MS = 1000;
const LOOK_MS = 250;
const WORKING = ["running", "starting"];
const STATE_SIGNS = {
  running: "▶", starting: "◔", waiting: "…", finished: "✓", paused: "‖", interrupted: "‖", failed: "✕", new: "○", damaged: "✕",
};

let chosen = props.value?.run || "";
let phase = null;
let answer = null;
let message = "";

const rail = makeRail(part("rail"), (name) => {
  phase = phase === name ? null : name;
  draw();
  tick();
});
// A call resolves to undefined when the server does not answer. The next poll tries again.
const previews = makePreviews(part("previews"), (asked) => server.watch_previews(asked));
const lossChart = makeChart(part("loss"));
const scoreChart = makeChart(part("score"));
let allPhases = false;

// -- what stands at the top -----------------------------------------------------------------------

function action(text, act, kind = "") {
  const button = make("button", { type: "button", class: `act ${kind}`, text });
  button.addEventListener("click", act);
  return button;
}

const openTab = (tab, run = "") => trigger("go", { tab, run });
const choose = (run) => trigger("choose", { run });

const drawRuns = onChange((runs, name, asked) => {
  const select = part("select");
  const entries = runs.map((run) => make("option", { value: run.name, text: `${run.name} – ${run.state}` }));
  entries.unshift(make("option", { value: "", text: asked ? "the run that trains, or trained last" : `following: ${name}` }));
  select.replaceChildren(...entries);
  select.value = asked;
});
part("select").addEventListener("change", (event) => choose(event.target.value));

const drawState = onChange((run) => {
  const badge = part("badge");
  badge.dataset.state = run.state;
  badge.replaceChildren(make("span", { text: STATE_SIGNS[run.state], "aria-hidden": "true" }), ` ${run.state}`);
  setText(part("doing"), [...WORKING, "waiting"].includes(run.state) ? run.doing : ago(run.updated));
  const facts = [["data", run.dataset], ["student", run.student], ["method", run.method]];
  if (run.kind === "teach") facts[1][0] = "teacher";
  facts.push(["options", run.options]);
  if (run.images !== null) facts.push(["images", String(run.images)]);
  facts.push(["with labels", run.labels]);
  if (run.seconds_so_far) facts.push(["trained for", duration(run.seconds_so_far)]);
  if (run.seconds_left !== null) facts.push(["left", `about ${duration(run.seconds_left)}`]);
  if (run.memory !== null) facts.push(["memory", bytes(run.memory)]);
  if (run.teacher_miou !== null) facts.push(["teacher's mIoU", percent(run.teacher_miou)]);
  part("facts").replaceChildren(
    ...facts.filter(([, value]) => value).map(([name, value]) =>
      make("div", {}, [make("dt", { text: name }), make("dd", { text: value })])),
  );
});

// A hint is plain data, so that it is not rebuilt, and no focus is lost, while its words stay the same.
function hintsOf({ run, runs, problem, lately, failure }) {
  const hints = [message, problem].filter(Boolean).map((text) => ({ text, kind: "problem" }));
  const say = (text, more = {}) => hints.push({ text, kind: "hint", ...more });
  const other = runs.find((one) => one.state === "running" && one.name !== run.name);
  if (other) say(`${other.name} is training now.`, { watch: other.name });
  if (!runs.some((one) => [...WORKING, "waiting"].includes(one.state))) {
    say(chosen ? "Nothing is running. This is the run that you chose." : "Nothing is running. This is the last run.", { train: true });
  }
  if (run.state === "waiting") {
    const when = run.awaited ? `its teacher ${run.awaited} is finished` : "the device is free";
    say(`This run is number ${run.place} in the queue; it begins when ${when}.`, run.awaited ? { watch: run.awaited } : {});
  }
  if (run.state === "starting" || lately) say(`${run.doing}${lately ? `: ${lately}` : " …"}`);
  if (!failure && ["paused", "interrupted"].includes(run.state)) {
    say("This run was stopped. «Resume», at the top of the page, continues from its last checkpoint.");
  }
  if (!failure && run.state === "new") say("This run has not begun. «Start», beside its name on Runs, puts it into the queue.");
  for (const warning of run.warnings) say(`Warning: ${warning}`);
  return hints;
}

const drawHints = onChange((hints) => {
  const boxes = hints.map(({ text, kind, watch: name, train }) => {
    const box = make("div", { class: `notice ${kind} hint`, role: "status" }, [make("span", { text })]);
    if (name) box.append(action("Watch it", () => choose(name)));
    if (train) box.append(action("Train a student", () => openTab("distill")));
    return box;
  });
  part("hints").replaceChildren(...boxes);
});

const drawFailure = onChange((failure, name) => {
  const card = part("failure");
  card.hidden = !failure;
  if (!failure) return card.replaceChildren();
  const buttons = make("div", { class: "acts" });
  if (failure.halve) buttons.append(action("Retry with half the batch", () => retry(name, true), "main"));
  if (failure.retry) buttons.append(action("Retry", () => retry(name, false), failure.halve ? "" : "main"));
  if (!failure.retry && failure.kind === "loss") buttons.append(action("New run like this one", () => trigger("again", { run: name }), "main"));
  buttons.append(action("Download the log", downloadLog));
  const lines = [make("h3", { text: failure.title }), make("p", { text: failure.mend })];
  if (failure.said) lines.push(make("p", { class: "said", text: failure.said }));
  if (failure.lines.length) lines.push(make("pre", { text: failure.lines.join("\n"), tabindex: "0" }));
  return card.replaceChildren(...lines, buttons);
});

async function retry(name, halve) {
  const done = await server.watch_retry({ run: name, halve });
  message = done ? done.problem : "No answer from the server: try again in a moment.";
  tick();
}

// -- figures --------------------------------------------------------------------------------------

function table(head, rows) {
  // A long name may wrap after a colon or an underscore.
  const pieces = (text) => text.split(/(?<=[:_])/).flatMap((piece) => [make("wbr"), piece]).slice(1);
  const titles = head.map((text) => make("th", { scope: "col" }, pieces(text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, [make("th", { scope: "row", text: first }), ...rest.map((text) => make("td", { text }))]));
  return make("table", {}, [make("thead", {}, [make("tr", {}, titles)]), make("tbody", {}, body)]);
}

const drawResult = onChange((result, run) => {
  const card = part("result");
  card.hidden = !result;
  if (!result) return card.replaceChildren();
  const models = Object.entries(result.models);
  const figure = (name, show) => [name, ...models.map(([, model]) => (isNumber(model[name]) ? show(model[name]) : "–"))];
  const rows = [
    ["mIoU", ...figure("miou", percent).slice(1)],
    ["pixel accuracy", ...figure("pixel_accuracy", percent).slice(1)],
    ["parameters", ...figure("parameters", (n) => `${(n / 1e6).toFixed(2)} M`).slice(1)],
    ["multiply-adds", ...figure("gmacs", (n) => `${n.toFixed(2)} G`).slice(1)],
    ["weights", ...figure("bytes", (n) => `${(n / 1e6).toFixed(1)} MB`).slice(1)],
    ["latency, one image", ...figure("latency_ms", (n) => `${n.toFixed(1)} ms`).slice(1)],
  ];
  const kept = run.percent_of_teacher;
  const large = (text, words) => make("span", {}, [make("strong", { text }), make("span", { text: words })]);
  const head = make("div", { class: "result-head" }, [large(percent(run.miou), "mIoU")]);
  if (isNumber(kept)) head.append(large(percent(kept / 100), "of the teacher’s"));
  head.append(large(duration(result.seconds), "of training"));
  const on = result.chosen_on || "nothing";
  const counts = on.startsWith("nothing") ? "Each phase ends with its last epoch’s weights." : `The best epoch of each phase was chosen on ${on}.`;
  const words = `Measured on ${result.split} at ${(result.size || []).join("×")}; ${result.device}. ${counts}`;
  const acts = make("div", { class: "acts" });
  if (result.models.teacher) acts.append(action("Compare", () => openTab("compare", run.name), "main"));
  else if (run.kind === "teach") acts.append(action("Distill a student", () => trigger("distill", { run: run.name }), "main"));
  acts.append(action("Export", () => openTab("export", run.name)));
  const names = models.map(([who, model]) => `${result.models.teacher ? who : "network"} ${model.network}`);
  return card.replaceChildren(head, make("div", { class: "wide" }, [table(["", ...names], rows)]), make("p", { class: "quiet", text: words }), acts);
});

const drawTable = onChange((phases, teacher) => {
  const rows = phases.map((one) => [
    one.name,
    `${one.epoch} of ${one.epochs}`,
    one.loss === null ? "–" : shortLoss(one.loss),
    percent(one.graft_miou),
    teacher && one.graft_miou !== null ? percent(one.graft_miou / teacher) : "–",
    one.seconds ? duration(one.seconds) : "–",
  ]);
  const head = ["stage", "epochs", "loss", "mIoU after it", "of teacher", "time"];
  part("table").replaceChildren(table(head, rows));
});

// -- curves ---------------------------------------------------------------------------------------

let curvesDrawn = "";
let curvesValidUntil = 0; // until then the curves that stand there do, while one phase trains
async function drawCurves(run) {
  part("all").hidden = run.phases.length < 2;
  const shown = allPhases && run.phases.length > 1 ? "" : phase || run.phases[run.stage - 1]?.name || "";
  const now = run.phases.find((one) => one.name === shown);
  const signature = `${run.name}|${shown}|${run.phases.map((one) => `${one.version} ${one.graft_miou}`).join()}`;
  const same = curvesDrawn.startsWith(`${run.name}|${shown}|`) && run.state === "running";
  if (signature === curvesDrawn || (same && performance.now() < curvesValidUntil)) return;
  const curves = await server.watch_curves({ run: run.name, phase: shown });
  if (!curves) return;
  curvesDrawn = signature;
  curvesValidUntil = curves.steps.length ? performance.now() + 3000 : 0;
  setText(part("loss-title"), now ? `Loss of ${now.name}${curves.epochs.length ? ", thin: each step" : ""}` : "Loss, all stages");
  lossChart(now ? lossOfOne(curves, now) : lossOfAll(curves, run));
  const whole = run.phases.length === 1;
  setText(part("score-title"), whole ? "mIoU on the validation images" : "mIoU after each stage");
  scoreChart(whole ? scoresOfOne(curves, run.phases[0], run) : scoresOfAll(run));
}

function lossOfOne(curves, now) {
  const each = now.steps / now.epochs;
  const epochs = (points) => points.map(([x, y]) => [x / each, y]);
  const series = [{ points: epochs(curves.steps), kind: "faint" }, { points: epochs(curves.epochs), kind: "strong" }];
  if (!curves.epochs.length) series.reverse();
  return {
    series, xRange: [0, now.epochs], xName: "epoch", yName: "loss", log: true,
    showX: (x) => `epoch ${Number(x.toFixed(1))}`, showY: shortLoss,
    label: `Loss of ${now.name} by epoch`, empty: now.state === "done" ? `${now.name} already equals the teacher’s, so it was not trained.` : `${now.name} has not been trained yet.`,
  };
}

function lossOfAll(curves, run) {
  const middle = (i) => ((curves.bounds[i - 1] || 0) + curves.bounds[i]) / 2;
  const stageAt = (x) => run.phases[Math.max(0, curves.bounds.findIndex((bound) => x <= bound))].name;
  return {
    series: [{ points: curves.epochs.length ? curves.epochs : curves.steps, kind: "strong" }],
    xRange: [0, curves.bounds.at(-1)], bounds: curves.bounds.slice(0, -1), xTicks: stageTicks(run.phases, middle),
    yName: "loss", log: true, showX: stageAt, showY: shortLoss,
    label: "Loss over all stages", empty: "No stage has been trained yet.",
  };
}

// Each stage's number, and the group's name once below the numbers.
function stageTicks(phases, at) {
  const ticks = [];
  let first = 0;
  phases.forEach((one, i) => {
    const group = phaseGroup(one.name);
    const [, , number, teacher] = STAGE.exec(one.name) || [];
    if (number !== undefined && !teacher) ticks.push({ x: at(i), text: number });
    if (!group) {
      ticks.push({ x: at(i), text: one.name });
      first = i + 1;
    }
    if (group && phaseGroup(phases[i + 1]?.name || "") !== group) {
      ticks.push({ x: (at(first) + at(i)) / 2, text: group, low: true });
      first = i + 1;
    }
  });
  return ticks;
}

function teacherLine(run) {
  return run.teacher_miou === null ? [] : [{ y: run.teacher_miou, name: `teacher ${percent(run.teacher_miou)}` }];
}

function scoresOfAll(run) {
  const points = run.phases.map((one, i) => [i, one.graft_miou]).filter(([, miou]) => miou !== null);
  return {
    series: [{ points, kind: "strong", dots: true }], lines: teacherLine(run), leastSpan: 0.02,
    xRange: [-0.5, run.phases.length - 0.5], xTicks: stageTicks(run.phases, (i) => i), yName: "mIoU",
    showX: (x) => `after ${run.phases[x].name}`, showY: percent,
    label: "mIoU of the graft after each stage", empty: "The first mIoU appears when the first stage is done.",
  };
}

function scoresOfOne(curves, now, run) {
  const each = now.steps / now.epochs;
  return {
    series: [{ points: curves.scores.map(([x, y]) => [x / each, y]), kind: "strong", dots: true }],
    lines: teacherLine(run), leastSpan: 0.02, xRange: [0, now.epochs], xName: "epoch", yName: "mIoU",
    showX: (x) => `epoch ${Math.round(x)}`, showY: percent,
    label: "mIoU by epoch", empty: "It is measured about ten times during the run. The first figure comes soon.",
  };
}

part("all").addEventListener("click", () => {
  allPhases = !allPhases;
  part("all").setAttribute("aria-pressed", String(allPhases));
  tick();
});

// -- previews -------------------------------------------------------------------------------------

function drawPreviews() {
  const { run, drawn } = answer;
  const whole = run.phases.length === 1;
  // Masks of an unfinished stage come from an earlier attempt. A network that trains as a whole is drawn during training.
  const ready = run.phases.filter((one) => drawn[one.name] && (whole || one.state === "done"));
  const shown = phase || ready.at(-1)?.name || run.phases[0]?.name || "";
  const has = ready.some((one) => one.name === shown);
  setText(part("previews-title"), has && !whole ? `Masks after ${shown}` : "Masks");
  part("latest").hidden = phase === null;
  const none = run.phases.length === 0 ? "The first masks appear when the first stage is done."
    : run.phases.find((one) => one.name === shown)?.state === "done" ? `The masks after ${shown} are not in the run’s folder.`
    : whole ? "The first masks come after some epochs."
    : `The masks after ${shown} appear when it is done. They are made by the student’s trained stages, followed by the teacher’s remaining stages.`;
  previews.update(run.name, shown, has ? drawn[shown] : "", whole ? "network" : `graft after ${shown}`, none);
  return shown;
}
part("latest").addEventListener("click", () => {
  phase = null;
  draw();
});

// -- log ------------------------------------------------------------------------------------------

let logShown = "";
async function drawLog() {
  const signature = `${answer.run.name}|${answer.log}`;
  if (!part("log").open || signature === logShown) return;
  const tail = await server.watch_log({ run: answer.run.name });
  if (!tail) return;
  const lines = part("lines");
  const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
  setText(lines, tail.lines.join("\n") || "The log is empty.");
  if (atEnd || !logShown.startsWith(`${answer.run.name}|`)) lines.scrollTop = lines.scrollHeight;
  logShown = signature;
}

async function downloadLog() {
  const name = answer.run.name;
  const whole = await server.watch_log({ run: name, whole: true });
  if (whole) saveText(whole.text, `${name}.log.txt`);
}
part("log").addEventListener("toggle", () => drawLog());
part("download").addEventListener("click", downloadLog);

// -- asking ---------------------------------------------------------------------------------------

function draw() {
  const run = answer?.run;
  root.classList.toggle("bare", !run);
  if (!run) return drawNothing();
  if (phase && !run.phases.some((one) => one.name === phase)) phase = null;
  drawRuns(answer.runs, run.name, chosen && !answer.problem ? chosen : "");
  drawState(run);
  drawHints(hintsOf(answer));
  drawFailure(answer.failure, run.name);
  drawResult(answer.result, { name: run.name, kind: run.kind, miou: run.miou, percent_of_teacher: run.percent_of_teacher });
  const shown = drawPreviews();
  const look = { working: WORKING.includes(run.state), teacher: run.teacher_miou, chosen: phase, shown };
  rail.update(run.phases, look);
  part("rail").hidden = part("charts").hidden = part("figures").hidden = !run.phases.length;
  drawTable(run.phases, run.teacher_miou);
  drawCurves(run);
  return drawLog();
}

const drawNothing = onChange(() => {
  part("nothing").replaceChildren(
    make("h2", { text: "No run yet." }),
    make("p", { text: "Here you will see each stage of a student as it trains: its loss, its mIoU, and its masks." }),
    make("div", { class: "acts" }, [action("Run the demo", () => openTab("start"), "main"), action("Train a student", () => openTab("distill"))]),
  );
});

let asking = null;
async function ask() {
  const question = { run: chosen };
  const got = await server.watch_page(question);
  part("lost").hidden = Boolean(got);
  if (!got || question.run !== chosen) return;
  if (got.run?.name !== answer?.run?.name) phase = null;
  answer = got;
  await draw();
}

// One poll at a time. A caller that comes meanwhile waits for the same answer; the next poll follows within a second.
function tick() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

async function poll() {
  const visible = element.offsetParent !== null && !document.hidden;
  try {
    if (visible) await tick();
  } finally {
    setTimeout(poll, visible ? POLL_MS : LOOK_MS);
  }
}

watch("value", () => {
  chosen = props.value?.run || "";
  message = "";
  phase = null;
  tick();
});
poll();
