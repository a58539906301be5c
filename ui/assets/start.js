// The Start tab below its buttons: the demo's steps, the last runs, this machine.
const place = element.querySelector(".start-view");
const SIGNS = {
  finished: "✓", running: "▶", starting: "◔", waiting: "…", ready: "→", failed: "✕", interrupted: "‖", paused: "‖", damaged: "✕",
};
const WORDS = {
  finished: "done", running: "training", starting: "starting", waiting: "waits in the queue", ready: "ready",
  failed: "failed", interrupted: "stopped", paused: "paused", new: "not started", damaged: "its files are damaged",
};
const word = (state) => WORDS[state] ?? state;
const look = (run, tab) => trigger("look", { run, tab });

const guide = make("section", { class: "start-guide" }, [make("h3", { text: "The demo, step by step" })]);
const runs = make("section", { class: "start-runs" });
const machine = make("section", { class: "start-machine" });
guide.hidden = true;
place.append(guide, runs, machine);

// -- the demo: its cards stay and only their words change, so that a click reaches the card that was aimed at -----
const cards = [];
const list = make("ol", { class: "steps" });
guide.append(list);
const makeCard = (number) => {
  const sign = make("span", { class: "step-sign", "aria-hidden": "true" });
  const [title, text, state] = [make("strong"), make("span"), make("em")];
  const bar = make("progress", { max: "1" });
  const words = make("span", { class: "step-words" }, [title, text, state]);
  const card = make("button", { type: "button", class: "step-card" }, [sign, words, bar]);
  const made = { card, sign, title, text, state, bar, step: null };
  card.addEventListener("click", () => look(made.step.run, made.step.tab));
  list.append(make("li", { class: "step" }, [card]));
  return (cards[number] = made);
};
const drawStep = (step, number) => {
  const made = cards[number] ?? makeCard(number);
  made.step = step;
  made.card.dataset.state = step.state;
  made.card.disabled = step.state === "to come";
  setText(made.sign, SIGNS[step.state] ?? String(number + 1));
  setText(made.title, `${number + 1}. ${step.title}`);
  setText(made.text, step.text);
  const left = isNumber(step.seconds_left) ? `about ${duration(step.seconds_left)} left` : "";
  setText(made.state, [word(step.state), step.doing, left].filter(Boolean).join(" · "));
  made.bar.hidden = !(step.done > 0 && step.done < 1);
  made.bar.setAttribute("aria-label", `${step.title}: share that is over`);
  made.bar.value = step.done;
};
const drawGuide = (state) => {
  guide.hidden = !state.begun;
  state.steps.forEach(drawStep);
};

// -- the last runs ----------------------------------------------------------------------------------
const drawRun = (row) => {
  const kept = isNumber(row.percent_of_teacher) ? `, ${row.percent_of_teacher.toFixed(1)}\u00a0% of its teacher` : "";
  const line = make("button", { type: "button", class: "last-run" }, [
    make("strong", { text: row.name }),
    make("span", { class: `state ${row.state}`, text: `${SIGNS[row.state] ?? "○"} ${word(row.state)}` }),
    make("span", { text: [row.dataset, row.student].filter(Boolean).join(", ") }),
    make("span", { class: "figure", text: isNumber(row.miou) ? `mIoU ${percent(row.miou)}${kept}` : "" }),
  ]);
  line.dataset.key = `run ${row.name}`;
  const compared = row.state === "finished" && row.kind === "distill" && row.teacher;
  line.addEventListener("click", () => look(row.name, compared ? "compare" : "watch"));
  return make("li", {}, [line]);
};
const drawRuns = onChange((rows) => {
  const title = make("h3", { text: "Last runs" });
  if (!rows.length) {
    return runs.replaceChildren(title, make("p", { class: "empty", text: "No run yet. The demo above makes the first two." }));
  }
  const all = make("button", { type: "button", class: "strip-button", text: "All runs" });
  all.dataset.key = "all";
  all.addEventListener("click", () => look("", "runs"));
  const listed = make("ul", { class: "last-runs" }, rows.map(drawRun));
  return keepingFocus(runs, () => runs.replaceChildren(title, listed, all));
});

// -- this machine -----------------------------------------------------------------------------------
const drawMachine = onChange((device, precision, memory, deviceMemory, disk, gpu) => {
  const facts = [["computes on", `${device}, ${precision === "32" ? "fp32" : precision}`]];
  if (deviceMemory !== null) facts.push(["free memory of the GPU", `${deviceMemory} GiB`]);
  facts.push(["free memory", `${memory} GiB`], ["free disk", `${disk} GiB`]);
  const table = make("dl", { class: "facts" });
  for (const [name, value] of facts) table.append(make("dt", { text: name }), make("dd", { text: value }));
  machine.replaceChildren(make("h3", { text: "This machine" }), table);
  if (!gpu) {
    const text = "No GPU was found. That is fine for small images and subsets; with a GPU it is faster.";
    machine.append(make("p", { class: "notice hint", text }));
  }
});

const DRAWN_OF_A_RUN = ["name", "state", "kind", "dataset", "student", "teacher", "miou", "percent_of_teacher"];
poll(async () => {
  const state = await server.start_state({});
  if (!state || pressed) return;
  drawGuide(state.guide);
  drawRuns(state.runs.map((row) => Object.fromEntries(DRAWN_OF_A_RUN.map((key) => [key, row[key]]))));
  const { device, precision, memory, device_memory: deviceMemory, disk, gpu } = state.machine;
  drawMachine(device, precision, memory.toFixed(0), deviceMemory === null ? null : deviceMemory.toFixed(1), disk.toFixed(0), gpu);
}, 1500);
