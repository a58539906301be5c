// Tells Python when the tab becomes visible, and when teachers or training change while it is visible.
const EVERY = 1500;
let seen = null;
let visible = false;

async function beat() {
  const now = element.closest("#distill")?.offsetParent != null;
  if (now && !visible) trigger("shown", {});
  visible = now;
  if (!now) return;
  const answer = await server.distill_pulse({});
  if (!answer) return; // no server: the next beat asks again
  const state = JSON.stringify(answer.now);
  if (seen !== null && state !== seen) trigger("moved", {});
  seen = state;
}

async function run() {
  try {
    await beat();
  } finally {
    setTimeout(run, visible ? EVERY : 300);
  }
}
run();
