// The Export tab: choose a finished run and a format, export it, read its certificate.
const place = element.querySelector(".export-view");
const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;
const NO_ANSWER = "no answer from the server: try again in a moment";
let run = props.value?.run || null;
let problem = "";
let offered = "";
let wish = { format: "safetensors", int8: false, pixels: false };
const INT8_SHARE = 0.26; // of the bytes in float: a byte for four, and the scales

const facts = (pairs) => {
  const list = make("dl", { class: "facts" });
  for (const [name, value] of pairs) if (value) list.append(make("dt", { text: name }), make("dd", { text: value }));
  return list;
};

// -- elements that stay while the rest is drawn again: the run's menu, the button, the progress ----------------------
const select = make("select");
const choosing = make("label", { class: "export-choice" }, ["Finished run", select]);
const kinds = make("fieldset", { class: "export-kinds" });
const option = (key, words, title) => {
  const input = make("input", { type: "checkbox" });
  input.addEventListener("change", () => ask({ [key]: input.checked }));
  return { input, label: make("label", { title }, [input, make("span", { text: words })]) };
};
const options = {
  int8: option("int8", "INT8: a quarter of the bytes, and faster", "Weights and activations in eight bits, calibrated on the student's training images"),
  pixels: option("pixels", "Pixels go in: the file normalises and pads them", "uint8 images go in, and masks come out, too"),
};
const extras = make("div", { class: "export-extras" }, Object.values(options).map(({ label }) => label));
const about = make("div", { class: "export-about" });
const pruning = makePruning({ begin: (ratio, whole) => prune(ratio, whole), look: (name) => look(name), follow: (name) => trigger("follow", { tab: "watch", run: name }) });
const go = button("Export", () => start(), "export-go");
const line = make("p", { class: "hint export-line", role: "status" });
const bar = make("progress", { "aria-label": "exporting" });
const errorBox = make("div", { class: "notice", role: "alert" });
const title = make("h3", { text: "Export the student" });
const left = make("section", { class: "card" }, [title, choosing, kinds, extras, about, go, line, bar, errorBox, pruning.root]);
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
const ask = (parts) => {
  wish = { ...wish, ...parts };
  problem = "";
  refresh();
};
const start = async () => {
  go.disabled = true;
  const answer = await server.export_start({ run: select.value, ...wish });
  problem = answer ? answer.problem ?? "" : NO_ANSWER;
  refresh();
};

const prune = async (ratio, whole) => {
  pruning.hold(true);
  const answer = await server.export_prune({ run: select.value, ratio, whole });
  pruning.hold(false);
  problem = answer ? answer.problem ?? "" : NO_ANSWER;
  refresh();
};

const drawChoice = onChange((names, name) => {
  const all = names.includes(name) ? names : [name, ...names];
  select.replaceChildren(...all.map((value) => make("option", { value, text: value })));
  select.value = name;
});
const drawKinds = onChange((formats) => {
  const radio = ({ name, title }) => {
    const input = make("input", { type: "radio", name: "export-format", value: name });
    input.addEventListener("change", () => ask({ format: name, ...(formats.find((one) => one.name === name).quantizes ? {} : { int8: false, pixels: false }) }));
    return make("label", {}, [input, make("span", {}, [make("strong", { text: name }), make("small", { text: title })])]);
  };
  kinds.replaceChildren(make("legend", { text: "Format" }), ...formats.map(radio));
});
const drawWish = onChange(() => {
  for (const input of kinds.querySelectorAll("input")) input.checked = input.value === wish.format;
  for (const [key, { input }] of Object.entries(options)) input.checked = wish[key];
});
const flags = () => `--format ${wish.format}${wish.int8 ? " --int8" : ""}${wish.pixels ? " --pixels" : ""}`;
const times = (before, after) => (isNumber(before) && after ? `${(before / after).toFixed(1)} ×` : "");
const drawAbout = onChange((row, now) => {
  const kept = isNumber(row.percent_of_teacher) ? `, ${row.percent_of_teacher.toFixed(1)} % of its teacher` : "";
  const teacher = row.teacher_cost ?? {};
  const smaller = times(teacher.bytes, row.bytes), faster = times(teacher.latency_ms, row.latency_ms);
  about.replaceChildren(facts([
    ["network", row.student + (row.pruned_from ? `, from ${row.pruned_from}` : "")],
    ["mIoU", isNumber(row.miou) && percent(row.miou) + kept],
    ["parameters", isNumber(row.parameters) && `${(row.parameters / 1e6).toFixed(2)} M`],
    ["weights", isNumber(row.bytes) && megabytes(row.bytes) + (smaller && `, ${smaller} smaller than its teacher`)],
    ["size of the file", isNumber(row.bytes) && `about ${megabytes(row.bytes * (now.int8 ? INT8_SHARE : 1))}`],
    ["latency", isNumber(row.latency_ms) && `${row.latency_ms.toFixed(1)} ms where it was trained${faster && `, ${faster} faster`}`],
    ["in the zip", "the network, predict.py that runs it, classes and colours, the certificate, recipe, result, README"],
    ["as a command", `python -m segskd export ${row.name} ${flags()}`],
  ]));
});
const drawTask = (row, task, made, formats) => {
  const done = row.state === "finished", working = task?.state === "working";
  setText(title, row.kind === "teach" ? "Export the network" : "Export the student");
  about.hidden = go.hidden = kinds.hidden = !done;
  extras.hidden = !done || !formats.find((one) => one.name === wish.format).quantizes;
  setText(go, working ? "Exporting …" : made ? "Export again" : "Export");
  go.classList.toggle("again", Boolean(made) && !working);
  go.disabled = working;
  bar.hidden = !working;
  if (!done) say(line, `${row.name} is ${row.state === "interrupted" ? "stopped" : row.state}: it can be exported when it is finished.`);
  else say(line, working ? `${task.name}: ${task.stage || "starting"} · ${Math.round(task.seconds)} s` : "");
  say(errorBox, problem || (task?.state === "failed" ? task.problem : ""));
};
const drawProof = onChange((made) => {
  right.hidden = !made;
  if (!made) return;
  const proof = made.certificate;
  const count = (value) => value.toLocaleString("en");
  const exact = proof.pixels_differing === 0;
  const share = exact ? "" : ` (${(100 * proof.share_differing).toPrecision(2)} %)`;
  const small = (value) => (value === 0 ? "0" : value.toPrecision(2));
  const latency = proof.latency;
  const ratio = (who) => latency?.[who] && `${latency[who][1].toFixed(1)} × (${latency[who][0].toFixed(1)} to ${latency[who][2].toFixed(1)})`;
  const quantization = proof.quantization;
  right.replaceChildren(
    make("h3", { text: "Certificate" }),
    make("p", { class: "export-passed", text: exact ? "✓ In a new process with its own runtime, the file gives the checkpoint's masks." : "✓ In a new process with its own runtime, the file differs from the checkpoint by less than its limits." }),
    facts([
      ["file", `${made.file}, ${megabytes(made.bytes)}`],
      ["masks", `${count(proof.pixels_differing)} of ${count(proof.pixels)} pixels differ${share}, on ${proof.images} validation images${proof.sizes.length > 1 ? ", some at other sizes, too" : ""}`],
      ["sizes", proof.only_size && `it takes only images of ${proof.only_size.join(" × ")}`],
      ["difference of logits", `${small(proof.max_logit_difference)} at most, ${small(proof.mean_logit_difference)} on average`],
      ["mIoU", `${percent(proof.miou_before)} before, ${percent(proof.miou_after)} after`],
      ["network in it", `${megabytes(proof.model_bytes)}${proof.precision === "int8" ? `, ${times(proof.float_bytes, proof.model_bytes)} smaller than in float` : ""}`],
      ["latency", latency && `${latency.export_ms.toFixed(1)} ms an image of ${latency.size.join(" × ")}, ${latency.threads} ${latency.threads === 1 ? "thread" : "threads"}`],
      ["faster than the teacher", ratio("than_teacher") || latency?.no_teacher && `not timed: ${latency.no_teacher}`],
      ["faster than the student", ratio("than_student") && `${ratio("than_student")}, both in eager PyTorch, in turns`],
      ["INT8", quantization && `calibrated on ${quantization.images} training images; in float: ${quantization.floats.join(", ") || "none"}`],
      ["sha256", proof.sha256],
      ["made with", Object.entries(proof.versions).map((entry) => entry.join(" ")).join(", ")],
    ]),
  );
});
const drawEmpty = onChange((asked, names) => {
  const words = asked ? `There is no run ${asked} on this server.` : "There is no finished run yet. Distill a student first, then export it here.";
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
    trigger("offer", { run: state.run?.name ?? "", ...wish });
  }
  if (!state.run) return drawEmpty(run, state.runs);
  drawChoice(state.runs, state.run.name);
  drawKinds(state.formats);
  drawWish(wish, state.formats);
  drawAbout(state.run, wish);
  pruning.draw(state.pruning);
  return drawTask(state.run, state.task, state.export, state.formats);
};
const refresh = poll(async () => {
  const asked = { run, ...wish };
  const state = await server.export_state(asked);
  if (state && asked.run === run && Object.keys(wish).every((key) => asked[key] === wish[key]) && !pressed) draw(state);
}, 1000);
watch("value", () => {
  if (!props.value?.run || props.value.run === run) return;
  run = props.value.run;
  problem = "";
  refresh();
});
