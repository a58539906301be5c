// What the run will need, beside what is free. Polls while a pre-flight works, and draws its result.
const EVERY = 700;
const GIB = 2 ** 30;
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
let shown = null; // the key that is on the screen
let last = null; // the last state of that key
const starts = new Map(); // runs that wait for their pre-flight, {key, name} by what the server calls them
let polling = false;
let answered = true;

const gib = (bytes) => {
  const value = bytes / GIB;
  return value < 0.1 ? `${Math.max(1, Math.round(bytes / 2 ** 20))} MiB` : `${value.toFixed(value < 10 ? 1 : 0)} GiB`;
};
const duration = (seconds) => {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
};

function button(text, onClick, className = "small") {
  const node = make("button", className, text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

function bar(title, needed, free) {
  const row = make("div", "need");
  const over = needed > free;
  const share = free > 0 ? Math.min(1, needed / free) : 1;
  const label = make("div", "need-line");
  label.append(make("span", "", title),
    make("span", over ? "over" : "", `${gib(needed)} of ${gib(free)} free${over ? ": too much" : ""}`));
  const track = make("div", over ? "track over" : "track");
  track.setAttribute("role", "img");
  track.setAttribute("aria-label", `${title}: ${gib(needed)} of ${gib(free)} free`);
  const fill = make("div", "fill");
  fill.style.width = `${Math.max(1, 100 * share)}%`;
  track.append(fill);
  row.append(label, track);
  return row;
}

function times(result) {
  const details = make("details", "times");
  details.append(make("summary", "", "Time by phase"));
  const most = Math.max(...result.phases.map((phase) => phase.seconds), 1e-9);
  for (const phase of result.phases) {
    const line = make("div", "time-line");
    const track = make("div", "track");
    const fill = make("div", "fill");
    fill.style.width = `${100 * phase.seconds / most}%`;
    track.append(fill);
    line.append(make("span", "", phase.phase), track, make("span", "", duration(phase.seconds)));
    details.append(line);
  }
  return details;
}

function facts(result) {
  const parts = [`${result.device}, ${result.precision}`];
  if (result.store) parts.push(`feature store: ${result.store}${result.store_bytes ? `, ${gib(result.store_bytes)}` : ""}`);
  if (result.views) parts.push(`${result.views} view${result.views > 1 ? "s" : ""} of each image`);
  return make("p", "summary", parts.join(" · "));
}

function batchLine(result) {
  const line = make("p", "batch-line");
  if (result.largest_batch > result.batch) {
    line.append(`Batch ${result.batch}; up to ${result.largest_batch} fits. `);
    line.append(button(`Take batch ${result.largest_batch}`, () => trigger("take_batch", { batch: result.largest_batch })));
  } else if (result.largest_batch > 0 && result.largest_batch < result.batch) {
    line.append(`Batch ${result.batch} does not fit, ${result.largest_batch} does. `);
    line.append(button(`Take batch ${result.largest_batch}`, () => trigger("take_batch", { batch: result.largest_batch })));
  } else {
    line.append(result.largest_batch ? `Batch ${result.batch}, the largest that fits.` : "Not even a batch of one fits.");
  }
  return line;
}

function found(box, result) {
  if (result.seconds != null) box.append(make("p", "big-time", `about ${duration(result.seconds)}`));
  box.append(bar("Memory", result.memory_bytes, result.free_memory));
  if (result.disk_bytes != null) box.append(bar("Disk", result.disk_bytes, result.free_disk));
  if (result.batch) box.append(batchLine(result));
  box.append(facts(result));
  if (result.phases?.length > 1) box.append(times(result));
}

function begin(box, text) {
  const line = make("p", "begin");
  line.append(button(text, () => trigger("check", {}), "small wide"));
  box.append(line);
}

function working(box, state) {
  const line = make("p", "working");
  const words = state.state === "waiting" ? "Waits for another pre-flight …"
    : `Measures one real batch of each phase … ${Math.round(state.seconds)} s`;
  line.append(make("span", "pulse", ""), make("span", "", words),
    button("Cancel", async () => {
      for (const [start, { key }] of starts) if (key === shown) starts.delete(start);
      const now = await server.preflight_cancel({ key: shown });
      if (now) { last = now; render(); }
    }));
  line.setAttribute("role", "status");
  box.append(line);
}

function expected(box) {
  const names = [...starts.values()].map(({ name }) => name);
  if (!names.length) return;
  const words = names.length === 1 ? `${names[0]} starts by itself when it fits.` : `${names.join(", ")} start by themselves when they fit.`;
  box.append(make("p", "summary", words));
}

function render() {
  const value = props.value || {};
  const box = element.querySelector(".panel");
  if (!box) return;
  box.replaceChildren(make("h3", "", value.of_teacher ? "Pre-flight of the teacher’s training" : "Pre-flight"));
  if (value.teacher_coming) {
    box.append(make("p", "summary", "The run can be measured when its teacher is finished. It may wait in the queue until then."));
    return expected(box);
  }
  if (!value.key) {
    box.append(make("p", "summary", "Correct the marked fields first."));
    return expected(box);
  }
  const state = last || { state: "unknown" };
  if (state.state === "waiting" || state.state === "running") working(box, state);
  else if (state.state === "unknown" || state.state === "cancelled") {
    const why = state.state === "cancelled" ? "Cancelled." : "Time, memory and disk that the run will need, from one real batch of each phase.";
    box.append(make("p", "summary", why));
    begin(box, "Check what it needs");
  } else {
    const good = state.state === "fits";
    const words = good ? "✓ It fits." : state.state === "refused" ? `✕ It can’t run: ${state.problem}` : `The pre-flight failed: ${state.problem}`;
    const verdict = make("p", good ? "verdict good" : "verdict bad", words);
    verdict.setAttribute("role", "status");
    box.append(verdict);
    if (state.result) found(box, state.result);
    begin(box, "Check again");
  }
  expected(box);
  if (!answered) box.append(make("p", "summary", "No answer from the server, trying again …"));
}

async function poll() {
  if (polling) return;
  polling = true;
  const key = shown;
  try {
    while (key === shown && key) {
      const now = await server.preflight_state({ key });
      if (key !== shown) break;
      answered = Boolean(now);
      if (now) last = now;
      render();
      if (now && !["waiting", "running"].includes(now.state)) break;
      await new Promise((done) => setTimeout(done, EVERY));
    }
  } finally {
    polling = false;
  }
  if (key !== shown) poll();
}

// Follows the pre-flight that was started, whatever the form shows by now.
let following = false;
async function follow() {
  if (following) return;
  following = true;
  try {
    while (starts.size) {
      for (const [start, { key }] of [...starts]) {
        const now = await server.preflight_state({ key });
        if (!now || ["waiting", "running"].includes(now.state) || !starts.delete(start)) continue;
        if (now.state !== "cancelled" && now.state !== "unknown") trigger("proceed", { start });
        render();
      }
      await new Promise((done) => setTimeout(done, EVERY));
    }
  } finally {
    following = false;
  }
}

let lastValue = "";
function changed() {
  const value = props.value || {};
  const now = JSON.stringify(value);
  if (now === lastValue) return render();
  lastValue = now;
  if (value.key !== shown) {
    shown = value.key || null;
    last = null;
  }
  if (value.start) starts.set(value.start.start, { key: value.key, name: value.start.name });
  if (value.asked) last = { state: "waiting", seconds: 0 };
  render();
  if (shown) poll();
  follow();
}
watch("value", changed);
changed();
