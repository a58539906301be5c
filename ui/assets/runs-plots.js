// Plots of the Runs tab, in SVG: axes, mIoU against cost with its frontier, and curves of several runs.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 300, LEFT = 54, RIGHT = 16, TOP = 12, BOTTOM = 44;
// Okabe and Ito's palette without yellow, with a dash pattern for each colour.
const LINES = [["#0072b2", ""], ["#d55e00", "6 3"], ["#009e73", "2 3"], ["#cc79a7", "8 3 2 3"], ["#e69f00", "1 4"], ["#56b4e9", "10 4"]];
const AXES = { bytes: ["weights, MB", 1e6], latency_ms: ["latency, ms (batch 1)", 1], gmacs: ["GMACs", 1] };

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers from just below `low` to just above `high`.
function ticksOf(low, high) {
  const rough = (high - low || Math.abs(high) || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  const ticks = [];
  for (let value = Math.floor(low / step) * step; value < high + step; value += step) ticks.push(Number(value.toPrecision(12)));
  return ticks;
}

// Axes as wide as their box, so that the text keeps its size. `names` label the ticks of an axis of whole numbers.
function axes(box, title, [xTitle, yTitle], xs, ys, names) {
  const width = Math.max(280, Math.min(720, box.clientWidth - 42));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": title, class: "runs-plot" });
  const yTicks = ticksOf(Math.min(...ys), Math.max(...ys));
  const xTicks = names ? xs : ticksOf(Math.min(...xs), Math.max(...xs));
  const scale = (ticks, from, to) => (value) => from + ((value - ticks[0]) / (ticks.at(-1) - ticks[0] || 1)) * (to - from);
  const x = scale(xTicks, LEFT, width - RIGHT), y = scale(yTicks, HEIGHT - BOTTOM, TOP);
  for (const tick of yTicks) {
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of xTicks) {
    svg.append(shape("text", { x: x(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, names ? names[tick] : String(tick)));
  }
  const middle = (LEFT + width - RIGHT) / 2;
  svg.append(shape("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle", class: "axis" }, xTitle));
  const turned = `rotate(-90 12 ${HEIGHT / 2})`;
  svg.append(shape("text", { x: 12, y: HEIGHT / 2, "text-anchor": "middle", transform: turned, class: "axis" }, yTitle));
  return { svg, x, y, width };
}

// The frontier: the points for which no other point is both cheaper and better.
function frontierOf(points) {
  const found = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) if (!found.length || point.y > found.at(-1).y) found.push(point);
  return found;
}

// Runs, and as diamonds those of their teachers that are not runs of this server.
function pointsOf(rows, axis) {
  const unit = AXES[axis][1];
  const points = rows.map((row) => ({ name: row.name, x: row[axis] / unit, y: 100 * row.miou, run: true }));
  for (const row of rows) {
    if (!row.teacher_cost || !isNumber(row.teacher_miou)) continue;
    const teacher = { name: row.teacher ?? "teacher", x: row.teacher_cost[axis] / unit, y: 100 * row.teacher_miou, run: false };
    if (!points.some((other) => other.name === teacher.name)) points.push(teacher);
  }
  return points;
}

function marked(point, title, best, cx, cy, open) {
  const label = `${point.name}: mIoU ${point.y.toFixed(1)} %, ${point.x.toFixed(1)} ${title}`;
  if (!point.run) {
    const diamond = shape("path", { d: `M${cx} ${cy - 7}l7 7l-7 7l-7 -7z`, class: "teacher", role: "img", "aria-label": label });
    diamond.append(shape("title", {}, label));
    return diamond;
  }
  const dot = shape("circle", { cx, cy, r: best ? 6.5 : 5, class: best ? "dot best" : "dot", tabindex: 0, role: "button", "aria-label": label });
  dot.dataset.key = `dot ${point.name}`;
  dot.append(shape("title", {}, label));
  dot.addEventListener("click", () => open(point.name));
  dot.addEventListener("keydown", (event) => {
    if (![" ", "Enter"].includes(event.key)) return;
    event.preventDefault();
    open(point.name);
  });
  return dot;
}

// A free place for a name beside its point.
function labelled(taken, text, cx, cy, width) {
  const most = Math.floor((width - LEFT) / 6.5);
  const words = text.length > most ? `${text.slice(0, most - 1)}…` : text;
  const long = 6.5 * words.length;
  // Beside its point where there is room, else as far to the left as necessary.
  const start = cx + 12 + long < width ? cx + 12 : cx - 12 - long > LEFT ? cx - 12 - long : Math.max(0, width - long);
  const free = (top) => !taken.some((other) => Math.abs(other.top - top) < 13 && start < other.end && other.start < start + long);
  const covers = start < cx && cx < start + long;
  const tops = [...(covers ? [] : [0]), 14, -14, 28, -28, 42, -42].map((shift) => cy + 4 + shift);
  const top = tops.find((candidate) => candidate > TOP && candidate < HEIGHT - BOTTOM && free(candidate)) ?? cy + 4;
  taken.push({ top, start, end: start + long });
  return shape("text", { x: start, y: top, class: "name" }, words);
}

function scatterPlot(box, rows, axis, open) {
  const points = pointsOf(rows, axis);
  const [title] = AXES[axis];
  const { svg, x, y, width } = axes(box, "mIoU against cost", [title, "mIoU, %"], points.map((p) => p.x), points.map((p) => p.y));
  const frontier = frontierOf(points);
  svg.append(shape("polyline", { points: frontier.map((p) => `${x(p.x)},${y(p.y)}`).join(" "), class: "frontier" }));
  const taken = [];
  const ordered = [...points].sort((a, b) => b.y - a.y);
  svg.append(...ordered.map((point) => labelled(taken, point.name, x(point.x), y(point.y), width)));
  // The best points are drawn last, so that nothing covers them.
  svg.append(...ordered.reverse().map((point) => marked(point, title, frontier.includes(point), x(point.x), y(point.y), open)));
  return svg;
}

const shortStage = (name) => name.replace("encoder.", "e").replace("decoder.", "d");

// One line for each run over the stages. A run of a single phase becomes a level line beside runs of several phases.
// Returns null while no run has such a figure.
function curvePlot(box, curves, measure) {
  const [factor, title] = measure === "loss" ? [1, "loss"] : [100, "graft mIoU, %"];
  const lines = curves.map((curve) => ({ ...curve, phases: curve.phases.filter((phase) => isNumber(phase[measure])) }));
  const begun = lines.filter((line) => line.phases.length);
  if (!begun.length) return null;
  const staged = begun.filter((line) => line.phases.length > 1);
  const stages = [...new Set((staged.length ? staged : begun).flatMap((line) => line.phases.map((phase) => phase.phase)))];
  const all = lines.flatMap((line) => line.phases.map((phase) => phase[measure] * factor));
  const { svg, x, y } = axes(box, "curves of several runs", ["stage", title], stages.map((_, i) => i), all, stages.map(shortStage));
  const legend = make("ul", { class: "runs-legend" });
  lines.forEach((line, number) => {
    const [stroke, dash] = LINES[number % LINES.length];
    const pen = { fill: "none", stroke, "stroke-width": 2.5, "stroke-dasharray": dash };
    const last = line.phases.at(-1);
    const level = last && !stages.includes(last.phase);
    const height = (phase) => y(phase[measure] * factor);
    const points = level ? [] : line.phases.map((phase) => [x(stages.indexOf(phase.phase)), height(phase), phase]);
    const drawn = level ? [[x(0), height(last)], [x(stages.length - 1), height(last)]] : points;
    svg.append(shape("polyline", { points: drawn.map(([cx, cy]) => `${cx},${cy}`).join(" "), ...pen }));
    for (const [cx, cy, phase] of points) {
      const dot = shape("circle", { cx, cy, r: 4, fill: stroke });
      dot.append(shape("title", {}, `${line.name}, ${phase.phase}: ${(phase[measure] * factor).toPrecision(4)}`));
      svg.append(dot);
    }
    const sample = shape("svg", { width: 34, height: 8, "aria-hidden": "true" });
    sample.append(shape("line", { x1: 0, x2: 34, y1: 4, y2: 4, ...pen }));
    const end = last ? `: ${(last[measure] * factor).toPrecision(3)} ${level ? "in one phase" : `after ${last.phase}`}` : ": none yet";
    legend.append(make("li", {}, [sample, make("span", { text: line.name + end })]));
  });
  return [svg, legend];
}
