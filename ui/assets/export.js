// The Export tab: choose a finished run, export it, read what the file proves.
const place = element.querySelector(".export-view");
const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;
const NO_ANSWER = "no answer from the server: try again in a moment";
let run = props.value?.run || null;
let problem = "";
let offered = "";

const facts = (pairs) => {
  const list = make("dl", { class: "facts" });
  for (const [name, value] of pairs) if (value) list.append(make("dt", { text: name }), make("dd", { text: value }));
  return list;
};

// -- what stays while it is drawn again: the choice of the run, the button, the progress ---------------------------
const select = make("select");
const choosing = make("label", { class: "export-choice" }, ["Finished run", select]);
const about = make("div", { class: "export-about" });
const go = button("Export", () => start(), "export-go");
const line = make("p", { class: "hint export-line", role: "status" });
const bar = make("progress", { "aria-label": "exporting" });
const told = make("div", { class: "notice", role: "alert" });
const title = make("h3", { text: "Take the student along" });
const left = make("section", { class: "card" }, [title, choosing, about, go, line, bar, told]);
const right = make("section", { class: "card export-proof" });
const empty = make("section", { class: "card empty export-empty" });
left.hidden = right.hidden = empty.hidden = true;
place.append(left, right, empty);
const say = (node, text) => { setText(node, text); node.hidden = !text; };

select.addEventListener("change", () => look(select.value));
const look = (name) => {
  run = name;
  problem = "";
  trigger("choose", { run });
  refresh();
};
const start = async () => {
  go.disabled = true;
  const answer = await server.export_start({ run: select.value });
  problem = answer ? answer.problem ?? "" : NO_ANSWER;
  refresh();
};

const drawChoice = onChange((names, name) => {
  const all = names.includes(name) ? names : [name, ...names];
  select.replaceChildren(...all.map((value) => make("option", { value, text: value })));
  select.value = name;
});
const times = (before, after) => (isNumber(before) && after ? `${(before / after).toFixed(1)} ×` : "");
const drawAbout = onChange((row) => {
  const kept = isNumber(row.percent_of_teacher) ? `, ${row.percent_of_teacher.toFixed(1)} % of its teacher` : "";
  const teacher = row.teacher_cost ?? {};
  const smaller = times(teacher.bytes, row.bytes), faster = times(teacher.latency_ms, row.latency_ms);
  about.replaceChildren(facts([
    ["network", row.student],
    ["mIoU", isNumber(row.miou) && percent(row.miou) + kept],
    ["parameters", isNumber(row.parameters) && `${(row.parameters / 1e6).toFixed(2)} M`],
    ["weights", isNumber(row.bytes) && megabytes(row.bytes) + (smaller && `, ${smaller} smaller than its teacher`)],
    ["latency", isNumber(row.latency_ms) && `${row.latency_ms.toFixed(1)} ms where it was trained${faster && `, ${faster} faster`}`],
    ["format", "safetensors and JSON, for segmentation_models_pytorch"],
    ["in the zip", "weights, network, classes and colours, recipe, result, and a README with the lines that run it"],
    ["as a command", `python -m segskd export ${row.name}`],
  ]));
});
const drawTask = (row, task, made) => {
  const done = row.state === "finished", working = task?.state === "working";
  setText(title, row.kind === "teach" ? "Take the network along" : "Take the student along");
  about.hidden = go.hidden = !done;
  setText(go, working ? "Exporting …" : made ? "Export again" : "Export");
  go.classList.toggle("again", Boolean(made) && !working);
  go.disabled = working;
  bar.hidden = !working;
  if (!done) say(line, `${row.name} is ${row.state === "interrupted" ? "stopped" : row.state}: it can be exported when it is finished.`);
  else say(line, working ? `${task.stage || "starting"} · ${Math.round(task.seconds)} s` : "");
  say(told, problem || (task?.state === "failed" ? task.problem : ""));
};
const drawProof = onChange((made) => {
  right.hidden = !made;
  if (!made) return;
  const proof = made.certificate;
  const count = (value) => value.toLocaleString("en");
  right.replaceChildren(
    make("h3", { text: "Certificate" }),
    make("p", { class: "export-passed", text: "✓ The file was opened again in a fresh process and gives the checkpoint's masks." }),
    facts([
      ["file", `${made.file}, ${megabytes(made.bytes)}`],
      ["masks", `${count(proof.pixels_differing)} of ${count(proof.pixels)} pixels differ, on ${proof.images} validation images of ${proof.size.join(" × ")}`],
      ["largest difference of a logit", proof.max_logit_difference === 0 ? "0" : proof.max_logit_difference.toPrecision(2)],
      ["sha256", proof.sha256],
      ["made with", Object.entries(proof.versions).map((entry) => entry.join(" ")).join(", ")],
    ]),
  );
});
const drawEmpty = onChange((asked, names) => {
  const words = asked ? `There is no run ${asked} on this server.` : "There is no finished run yet. Distill a student first, then take it along from here.";
  const on = names.length ? button(`Look at ${names[0]}`, () => look(names[0])) : button("Go to Distill", () => trigger("go"));
  empty.replaceChildren(make("p", { text: words }), on);
});
const draw = (state) => {
  empty.hidden = Boolean(state.run);
  left.hidden = !state.run;
  const made = state.run?.state === "finished" ? state.export : null;
  drawProof(made);
  const key = made ? `${state.run.name}/${made.certificate.sha256}` : "";
  if (key !== offered) {
    offered = key;
    trigger("offer", { run: state.run?.name ?? "" });
  }
  if (!state.run) return drawEmpty(run, state.runs);
  drawChoice(state.runs, state.run.name);
  drawAbout(state.run);
  return drawTask(state.run, state.task, state.export);
};
const refresh = poll(async () => {
  const asked = run;
  const state = await server.export_state({ run: asked });
  if (state && asked === run && !pressed) draw(state);
}, 1000);
watch("value", () => {
  if (!props.value?.run || props.value.run === run) return;
  run = props.value.run;
  problem = "";
  refresh();
});
