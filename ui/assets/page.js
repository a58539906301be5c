// For the whole page: keeps the address in step with the open tab and run, and remembers the theme and the chosen data.

// Gradio's loading indicator goes on requesting 60 frames a second after it was removed. That costs a tenth of a core,
// which training needs. The indicator holds the browser's own requestAnimationFrame, and everybody else calls the
// wrapper below. So when nobody has called the wrapper for a second, a frame that is still pending is the indicator's.
// That frame is cancelled, and the loop ends.
const STEADY = 60;
const AT_MOST = 900;
const askFrame = window.requestAnimationFrame.bind(window);
let asked = new Set();
window.requestAnimationFrame = (step) => {
  const frame = askFrame(step);
  asked.add(frame);
  return frame;
};
function endSignOfLoading() {
  let steady = 0;
  let looks = 0;
  const look = (before) => {
    const now = askFrame(() => setTimeout(() => look(now)));
    const strange = [];
    for (let frame = before + 1; frame < now; frame++) if (!asked.has(frame)) strange.push(frame);
    asked = new Set();
    steady = strange.length === 1 ? steady + 1 : 0;
    if (steady < STEADY && ++looks < AT_MOST) return;
    if (steady === STEADY) window.cancelAnimationFrame(strange[0]);
    window.cancelAnimationFrame(now);
    window.requestAnimationFrame = askFrame;
  };
  look(askFrame(() => {}));
}

let loaded = false; // until then the first tab's own opening would overwrite the address
window.segskdOpened = () => {
  const shade = window.localStorage.getItem("segskd-shade");
  if (shade) document.body.classList.toggle("dark", shade === "dark");
  const asked = new URL(window.location).searchParams;
  let choice = null;
  try {
    choice = JSON.parse(window.localStorage.getItem("segskd-choice"));
  } catch {
    window.localStorage.removeItem("segskd-choice");
  }
  return [asked.get("run"), asked.get("tab"), choice];
};
window.segskdKeep = (choice) => {
  if (loaded && choice) window.localStorage.setItem("segskd-choice", JSON.stringify(choice));
};
window.segskdLoaded = () => {
  loaded = true;
  endSignOfLoading();
};
window.segskdLink = (parts) => {
  if (!loaded) return;
  const address = new URL(window.location);
  for (const [key, value] of Object.entries(parts)) {
    if (value === null || value === undefined || value === "") address.searchParams.delete(key);
    else address.searchParams.set(key, value);
  }
  window.history.replaceState(null, "", address);
};

window.segskdShade = () => {
  const dark = document.body.classList.toggle("dark");
  window.localStorage.setItem("segskd-shade", dark ? "dark" : "light");
};
