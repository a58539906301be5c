// The run strip: polls the server once a second and draws the answer.
const place = element.querySelector(".strip");
const WORDS = {
  waiting: "waits in the queue", starting: "starting", finished: "finished", paused: "paused",
  interrupted: "stopped", failed: "failed", new: "not started", damaged: "its files are damaged",
};
const STOPPING = { epoch: "stops after this epoch", now: "stopping …" };
const LOST = "no answer from the server, trying again …";

let shown = {};
const dot = make("span", { class: "strip-dot", "aria-hidden": "true" });
const name = button("", () => trigger("look", { run: shown.run, tab: "watch" }), "strip-button strip-name");
name.title = "Open in Watch";
const what = make("span", { class: "strip-what" });
const bar = make("progress", { class: "strip-bar", max: "1", "aria-label": "share of the run that is over" });
const rest = make("span", { class: "strip-rest" });
const buttons = make("span", { class: "strip-buttons" });
const problem = make("span", { class: "strip-problem", role: "alert" });
place.append(dot, name, what, bar, rest, buttons, problem);

const ask = async (fn, asked) => {
  const answer = await fn(asked);
  setText(problem, answer ? answer.problem ?? "" : "no answer from the server: try again in a moment");
  refresh();
};
let dialog = null; // that asks whether to stop a run
const stopAsking = (run) => {
  const made = make("dialog", { class: "strip-dialog", "aria-label": `Stop ${run}?` });
  made.dataset.run = run;
  made.append(make("p", { text: `Stop ${run} now? Its training so far is saved, and Resume goes on from there.` }));
  const yes = () => { made.close(); ask(server.strip_stop, { run, epoch: false }); };
  made.append(button("Stop now", yes, "strip-button strip-danger"), button("Keep going", () => made.close()));
  made.addEventListener("close", () => made.remove());
  place.append(made);
  made.showModal();
  dialog = made;
};
const offered = (run, state, stopping) => {
  const stop = (epoch) => () => ask(server.strip_stop, { run, epoch });
  if (stopping === "now" || state === "finished" || state === "damaged") return [];
  if (state === "waiting") return [button("Take out of the queue", stop(false))];
  if (state === "starting" || stopping === "epoch") return [button("Stop now", () => stopAsking(run))];
  if (state === "running") return [button("Stop after this epoch", stop(true)), button("Stop now", () => stopAsking(run))];
  return [button(state === "new" ? "Start" : "Resume", () => ask(server.strip_resume, { run }))];
};
const drawButtons = onChange((run, state, stopping) => {
  const focused = buttons.contains(document.activeElement);
  buttons.replaceChildren(...(run ? offered(run, state, stopping) : []));
  if (focused) (buttons.firstElementChild ?? name).focus();
});
const forget = onChange(() => setText(problem, ""));

const figures = (state) => [
  state.state === "running" && isNumber(state.seconds_left) && `about ${duration(state.seconds_left)} left`,
  state.memory && `${bytes(state.memory)} of memory`,
  state.others && `${state.others} more training`,
  state.waiting && `${state.waiting} waiting`,
].filter(Boolean).join(" · ");

const draw = (state) => {
  place.dataset.state = !state ? "lost" : state.run ? state.state : state.study ? "running" : "idle";
  if (!state) return setText(what, LOST);
  shown = state;
  if (dialog?.open && (dialog.dataset.run !== state.run || !["starting", "running"].includes(state.state))) dialog.close();
  name.hidden = bar.hidden = !state.run;
  drawButtons(state.run, state.state, state.stopping);
  forget(state.run, state.state);
  if (!state.run) {
    setText(rest, "");
    return setText(what, state.study ? `The study ${state.study} trains; Runs shows it` : "Nothing is running");
  }
  setText(name, state.run);
  const doing = state.state === "running" ? state.doing : WORDS[state.state] ?? state.state;
  const stage = state.stages > 1 && state.stage ? `stage ${state.stage} of ${state.stages}` : "";
  setText(what, [doing, stage, STOPPING[state.stopping]].filter(Boolean).join(" · "));
  bar.value = state.share;
  return setText(rest, figures(state));
};
const refresh = poll(async () => draw(await server.strip_state({})), 1000, () => true);
