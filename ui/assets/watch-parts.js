// Helpers of the Watch tab. Text from outside only becomes textContent, never markup.

function make(tag, attributes = {}, children = []) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Draws again only when its data have changed, so that nothing flickers and the focus stays.
function onChange(draw) {
  let last;
  return (...inputs) => {
    const now = JSON.stringify(inputs);
    if (now === last) return;
    last = now;
    draw(...inputs);
  };
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(1)}\u00a0%` : "–");
const wholePercent = (share) => `${Math.floor(100 * share)}\u00a0%`;

function shortLoss(loss) {
  if (loss !== 0 && (Math.abs(loss) < 0.001 || Math.abs(loss) >= 10000)) return loss.toExponential(1);
  return String(Number(loss.toPrecision(3)));
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function bytes(count) {
  return count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(1)} GiB` : `${Math.round(count / 2 ** 20)} MiB`;
}

function ago(moment) {
  if (!isNumber(moment)) return "";
  const seconds = Math.max(0, Date.now() / 1000 - moment);
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    const count = Math.floor(seconds / size);
    if (count >= 1) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

function saveText(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
