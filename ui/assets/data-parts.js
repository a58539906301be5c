// Helpers of the Data tab: make elements, write figures in words.
const el = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const rgb = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;
const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 0.05) return "< 0.1 %";
  return `${value.toFixed(value < 10 ? 1 : 0)} %`;
};
const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const swatch = (color) => el("span", { class: "swatch", style: `background: ${rgb(color)}` });
const bar = (share, most, color, kind) =>
  el("span", {
    class: `bar ${kind}`,
    style: `width: ${share > 0 ? Math.max(0.6, (100 * share) / (most || 1)) : 0}%; --color: ${rgb(color)}`,
  });
const message = (text, kind = "problem") => el("div", { class: `notice ${kind}`, role: "status" }, text);

// A progress bar with a button that stops the work.
const progress = (task, stop) => {
  const known = task.total > 1;
  const many = task.total > 100000; // bytes
  const figure = !known
    ? ""
    : many
      ? `${(task.done / 1e6).toFixed(0)} of ${(task.total / 1e6).toFixed(0)} MB`
      : `${task.done.toLocaleString("en")} of ${task.total.toLocaleString("en")}`;
  const left = known && task.done > task.total / 20 && task.seconds > 5 ? (task.seconds * (task.total - task.done)) / task.done : null;
  const wait = left === null ? "" : ` · about ${left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`} left`;
  const meter = el("progress", { "aria-label": task.stage || "working" });
  if (known) {
    meter.max = task.total;
    meter.value = task.done;
  }
  return el(
    "div",
    { class: "work", role: "status" },
    el("span", {}, `${capital(task.stage || "beginning")} … ${figure}${wait}`),
    meter,
    stop && el("button", { class: "plain", type: "button", onclick: stop }, "Stop"),
  );
};
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
