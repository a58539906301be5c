// The Compare tab: which run is open. Asks the server only while the tab is visible.
const tell = (text, actions = []) => {
  message.replaceChildren(node("p", "", text));
  const row = node("div", "compare-actions");
  row.append(...actions);
  if (actions.length) message.append(row);
  message.hidden = false;
  bench.hidden = galleryPlace.hidden = true;
};
const goTo = (tab, words) => button(words, () => trigger("look", { tab }), "compare-button primary");
const working = (state) => {
  let bar = message.querySelector("progress");
  if (!bar) {
    tell("");
    bar = part("progress", "", message);
    bar.setAttribute("aria-label", "images looked at");
    part("p", "hint", message).textContent = "This happens once for each run. The masks are stored, so every image then opens at once.";
  }
  if (state.total) Object.assign(bar, { max: state.total, value: state.done });
  else bar.removeAttribute("value");
  message.firstChild.textContent = `${run}: ${state.stage || "beginning"}${state.total ? `, ${state.done} of ${state.total}` : ""} …`;
};
const drawScores = () => {
  scores.replaceChildren();
  if (!comparison) return;
  for (const [who, word] of [["teacher", TEACHER], ["student", "Student"]]) {
    const made = part("div", "compare-score", scores);
    made.append(node("span", "hint", `${word} · ${comparison[who].name}`), node("strong", "", figure(comparison[who].miou)), node("span", "hint", "mIoU"));
  }
  const kept = part("div", "compare-score", scores);
  kept.append(node("span", "hint", "Kept"), node("strong", "", percent(comparison.student.miou / comparison.teacher.miou)), node("span", "hint", `on ${count(comparison.images.length)} images`));
};
const drawFamily = () => {
  family.hidden = !relatives.length;
  family.replaceChildren(node("h3", "", "Before and after"));
  for (const { stage: from, before, after } of relatives) {
    const other = before.run === run ? after : before;
    const one = part("div", "compare-pair", family);
    const line = part("p", "compare-pair-figures", one);
    line.append(node("span", "", `${figure(before.miou)} → `), node("strong", "", figure(after.miou)), node("span", "hint", ` mIoU, ${signed(after.miou - before.miou)}`));
    part("p", "hint", one).textContent = `${after.run} was trained again from ${from} on, beginning with ${before.run}.`;
    const more = part("details", "", one);
    part("summary", "", more).textContent = "Class by class";
    const rows = part("dl", "compare-counts", more);
    for (const [name, was] of Object.entries(before.per_class ?? {})) {
      const is = after.per_class?.[name];
      rows.append(node("dt", "", name), node("dd", "", `${figure(was)} → ${figure(is)}`));
    }
    one.append(button(`Open ${other.run}`, () => trigger("look", { run: other.run })));
  }
};
const ready = (state) => {
  comparison = state;
  say(Object.keys(comparison.unreadable).length ? `Left out, since they can't be read: ${Object.values(comparison.unreadable).slice(0, 3).join("; ")}` : "", "hint");
  message.hidden = true;
  bench.hidden = galleryPlace.hidden = false;
  drawScores();
  drawLegend();
  gallery.colors(comparison.agreement.colors);
  gallery.show(comparison.images);
  retention.show(comparison.retention, comparison.classes);
  retention.choose(null);
  errors.open(comparison);
  slider.open(comparison);
  const image = comparison.images.some(([name]) => name === linked) ? linked : comparison.images[0]?.[0];
  if (linked && image !== linked) say(`There is no image '${linked}' in this run's validation images.`, "hint");
  linked = null;
  if (wanted?.upload) show(wanted);
  else if (image) open(image);
};
const ask = async () => {
  const for_ = run;
  const state = await server.compare_open({ run, again });
  if (run !== for_ || comparison) return;
  again = false;
  if (!state) say(DOWN);
  else if (state.state === "ready") ready(state);
  else if (state.state === "working") working(state);
  else if (state.state === "elsewhere") tell(state.text, [goTo(state.tab, state.tab === "watch" ? "Open it in Watch" : "Go to Distill")]);
  else if (state.state === "problem") {
    tell(state.text, state.again ? [button("Try again", () => { again = true; askedAt.open = 0; }, "compare-button primary")] : []);
  }
  if (state && state.state !== "ready") say("");
};
const drawRuns = () => {
  const known = listed.map((row) => [row.run, `${row.run} · ${row.dataset} · ${figure(row.miou)}`]);
  if (run && !known.some(([name]) => name === run)) known.unshift([run, run]);
  if (!run) known.unshift(["", "choose a finished run …"]);
  const now = JSON.stringify([known, run]);
  if (pick.dataset.drawn === now) return;
  pick.dataset.drawn = now;
  pick.replaceChildren(...known.map(([name, words]) => new Option(words, name)));
  pick.value = run;
  pick.disabled = known.length < 2 && Boolean(run);
};
const askRuns = async () => {
  const answer = await server.compare_runs({ run });
  if (!answer) {
    say(DOWN);
    return;
  }
  if (status.textContent === DOWN) say("");
  const first = listed === null;
  listed = answer.runs;
  pickLabel.hidden = !listed.length && !run;
  drawRuns();
  if (JSON.stringify(answer.relatives) !== JSON.stringify(relatives)) {
    relatives = answer.relatives;
    drawFamily();
    if (comparison) drawModes();
  }
  if (run) return;
  if (first && listed.length && !address.get("run")) trigger("look", { run: listed[0].run });
  else if (listed.length) tell("Choose a finished run above: its student and its teacher are shown side by side.");
  else tell("Nothing to compare yet. Distill a student from a teacher. When it is finished, both appear here side by side.", [goTo("distill", "Go to Distill")]);
};
pick.addEventListener("change", () => pick.value && trigger("look", { run: pick.value }));

// -- answers that arrive in parts: the stages of an image, the errors of all images, the run before this one
const askStages = async () => {
  const frame = loaded;
  const answer = await server.compare_stages({ run, image: current.image });
  if (answer?.planes) frame.extra = { maps: await unpacked(answer), shares: answer.shares };
  else if (answer?.problem) frame.extra = { problem: answer.problem };
  else return;
  if (frame !== loaded) return;
  drawSide();
  paint();
  await viewer.drawn();
  root.dataset.staged = current.image;
};
const shares = async (begin) => {
  const answer = await server.compare_shares({ run, begin });
  if (answer?.state) errors.all(answer);
  else if (answer?.problem) errors.all({ state: "failed", problem: answer.problem });
};
const askBefore = async () => {
  const frame = loaded;
  const before = parent().run;
  const state = await server.compare_open({ run: before });
  if (state?.state !== "ready") {
    viewer.note("teacher", state?.text ?? state?.problem ?? `${before}: ${state?.stage ?? "loading"} …`);
    return;
  }
  const answer = await server.compare_frame({ run: before, image: current.image });
  const maps = answer?.planes ? await unpacked(answer) : null;
  viewer.note("teacher", maps ? "" : answer?.problem ?? "");
  if (!maps || answer.width !== frame.width || answer.height !== frame.height) return;
  frame.before = maps.student;
  if (frame === loaded) paint();
};

const due = () => Object.assign(askedAt, { stages: 0 });
const late = (what, milliseconds) => {
  if (Date.now() - askedAt[what] < milliseconds) return false;
  askedAt[what] = Date.now();
  return true;
};
const visible = () => !document.hidden && element.offsetParent !== null;
const poll = async () => {
  if (!element.isConnected) return;
  if (visible()) {
    if (late("runs", 5000)) await askRuns();
    if (run && !comparison && late("open", 700)) await ask();
    if (comparison && current?.image && loaded && wanted === current) {
      if (["errors", "stages"].includes(mode) && !loaded.extra && late("stages", 400)) await askStages();
      if (mode === "before" && !loaded.before && parent() && late("stages", 400)) await askBefore();
    }
    if (comparison && errors.counting() && late("shares", 1000)) await shares(false);
    if (comparison && wanted?.late && late("frame", 1000)) await show(wanted);
  }
  setTimeout(poll, 150);
};
const changed = () => {
  const value = props.value ?? {};
  if (value.upload && value.run === run && comparison) {
    show({ upload: value.upload });
    stage.scrollIntoView({ block: "nearest" });
    return;
  }
  if (!value.upload && (value.run ?? "") === run) return;
  run = value.run ?? "";
  if (!linked) window.segskdLink({ image: null });
  comparison = current = wanted = loaded = null;
  frames.clear();
  gallery.forget();
  hidden.clear();
  relatives = [];
  drawFamily();
  drawScores();
  if (listed) drawRuns();
  tell(run ? `Opening ${run} …` : "");
  Object.assign(askedAt, { runs: 0, open: 0 });
};
watch("value", changed);
drawFamily();
tell("Looking for finished runs …");
choose("masks");
changed();
poll();
