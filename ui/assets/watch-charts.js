// Curves as SVG with labelled axes. Hover and the arrow keys show the values. The colours are the page's.

const SVG = "http://www.w3.org/2000/svg";
const CHART_HEIGHT = 230;
const CHART_EDGE = { left: 66, right: 14, top: 12, bottom: 44 };

function makeSvg(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function niceTicks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) {
    ticks.push(Number(tick.toPrecision(12)));
  }
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of high / low < 100 ? [1, 2, 5] : [1]) {
      const tick = Number((factor * 10 ** power).toPrecision(6));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

function scales(data, width) {
  const points = data.series.flatMap((series) => series.points);
  const ys = [...points.map((point) => point[1]), ...(data.lines || []).map((line) => line.y)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const log = Boolean(data.log) && low > 0 && high / low > 20;
  if (log) [low, high] = [low / 1.15, high * 1.15];
  else {
    const span = Math.max(high - low, data.leastSpan || Math.abs(high) * 0.02 || 1e-6);
    const middle = (low + high) / 2;
    [low, high] = [middle - span * 0.58, middle + span * 0.58];
    if (data.fromZero !== false && low < 0 && Math.min(...ys) >= 0) low = 0;
  }
  const [from, to] = data.xRange || [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const inner = width - CHART_EDGE.left - CHART_EDGE.right;
  const tall = CHART_HEIGHT - CHART_EDGE.top - CHART_EDGE.bottom;
  const along = (x) => CHART_EDGE.left + (inner * (x - from)) / (to - from || 1);
  const part = (y) => (log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low));
  const up = (y) => CHART_EDGE.top + tall * (1 - part(y));
  return { low, high, from, to, along, up, log, floor: CHART_EDGE.top + tall, inner };
}

function drawAxes(svg, data, scale, width) {
  const ticks = scale.log ? logTicks(scale.low, scale.high) : niceTicks(scale.low, scale.high, 5);
  for (const y of ticks) {
    const at = scale.up(y);
    svg.append(makeSvg("line", { class: "grid", x1: CHART_EDGE.left, x2: width - CHART_EDGE.right, y1: at, y2: at }));
    svg.append(makeSvg("text", { class: "tick", x: CHART_EDGE.left - 6, y: at + 4, "text-anchor": "end" }, data.showY(y)));
  }
  for (const x of data.bounds || []) {
    const at = scale.along(x);
    svg.append(makeSvg("line", { class: "grid", x1: at, x2: at, y1: CHART_EDGE.top, y2: scale.floor }));
  }
  const labels = data.xTicks || niceTicks(scale.from, scale.to, Math.max(2, scale.inner / 90)).map((x) => ({ x, text: String(x) }));
  for (const { x, text, low } of labels) {
    const y = scale.floor + (low ? 31 : 16);
    svg.append(makeSvg("text", { class: "tick", x: scale.along(x), y, "text-anchor": "middle" }, text));
  }
  const middle = CHART_EDGE.left + scale.inner / 2;
  if (data.xName) svg.append(makeSvg("text", { class: "axis", x: middle, y: CHART_HEIGHT - 6, "text-anchor": "middle" }, data.xName));
  const turn = `translate(11 ${(CHART_EDGE.top + scale.floor) / 2}) rotate(-90)`;
  svg.append(makeSvg("text", { class: "axis", transform: turn, "text-anchor": "middle" }, data.yName + (scale.log ? " (log)" : "")));
}

function drawSeries(svg, data, scale, width) {
  const all = [];
  for (const series of data.series) {
    const places = series.points.map(([x, y]) => [scale.along(x), scale.up(y)]);
    all.push(...places);
    const apart = (i) => (data.bounds || []).some((bound) => series.points[i - 1][0] <= bound && bound < series.points[i][0]);
    const path = places.map(([x, y], i) => `${i && !apart(i) ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    svg.append(makeSvg("path", { class: `curve ${series.kind}`, d: path }));
    if (series.dots || places.length === 1) {
      for (const [cx, cy] of places) svg.append(makeSvg("circle", { class: "dot", cx, cy, r: 3.5 }));
    }
  }
  for (const line of data.lines || []) {
    const at = scale.up(line.y);
    svg.append(makeSvg("line", { class: "level", x1: CHART_EDGE.left, x2: width - CHART_EDGE.right, y1: at, y2: at }));
    const ends = [[CHART_EDGE.left + 4, "start"], [width - CHART_EDGE.right - 4, "end"]];
    // The legend goes to the end of the plot where the curve leaves more room.
    const room = ([end]) => Math.min(Infinity, ...all.filter(([x]) => Math.abs(x - end) < 90).map(([, y]) => Math.abs(y - at + 9)));
    const [x, anchor] = room(ends[0]) > room(ends[1]) ? ends[0] : ends[1];
    svg.append(makeSvg("text", { class: "level-name", x, y: at - 5, "text-anchor": anchor }, line.name));
  }
}

// Puts one chart into host. Returns a function that draws data: {series: [{points, kind, dots}], lines, bounds,
// xTicks, xRange, xName, yName, showX, showY, log, leastSpan, empty, label}.
function makeChart(host) {
  const tip = make("div", { class: "tip", "aria-live": "polite" });
  const frame = make("div", { class: "frame" });
  host.append(frame, tip);
  let data = null;
  let drawn = null;
  let place = null;

  function draw() {
    const width = frame.clientWidth;
    if (!data || !width) return;
    const main = data.series.at(-1);
    tip.hidden = true;
    drawn = null;
    if (!data.series.some((series) => series.points.length)) {
      frame.replaceChildren(make("p", { class: "quiet", text: data.empty }));
      return;
    }
    const look = { class: "chart", width, height: CHART_HEIGHT, viewBox: `0 0 ${width} ${CHART_HEIGHT}`, role: "img", tabindex: "0" };
    const svg = makeSvg("svg", { ...look, "aria-label": `${data.label}. Arrow keys tell the values.` });
    const scale = scales(data, width);
    drawAxes(svg, data, scale, width);
    drawSeries(svg, data, scale, width);
    const mark = makeSvg("g", { class: "mark", visibility: "hidden" });
    mark.append(makeSvg("line", { y1: CHART_EDGE.top, y2: scale.floor }), makeSvg("circle", { r: 4.5 }));
    svg.append(mark);
    const focused = frame.contains(document.activeElement);
    frame.replaceChildren(svg);
    const points = main.points.length ? main.points : data.series[0].points;
    drawn = { svg, scale, mark, points };
    if (focused) svg.focus();
    if (place !== null) show(Math.min(place, points.length - 1));
  }

  function show(index) {
    place = index;
    const [x, y] = drawn.points[index];
    const [left, top] = [drawn.scale.along(x), drawn.scale.up(y)];
    const [line, dot] = drawn.mark.childNodes;
    for (const end of ["x1", "x2"]) line.setAttribute(end, left);
    dot.setAttribute("cx", left);
    dot.setAttribute("cy", top);
    drawn.mark.setAttribute("visibility", "visible");
    tip.hidden = false;
    setText(tip, `${data.showX(x)}: ${data.showY(y)}`);
    const room = frame.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, left - tip.offsetWidth / 2))}px`;
    tip.style.top = `${top > 60 ? top - 38 : top + 14}px`;
  }

  function hide() {
    place = null;
    tip.hidden = true;
    if (drawn) drawn.mark.setAttribute("visibility", "hidden");
  }

  frame.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    const at = event.clientX - frame.getBoundingClientRect().left;
    const far = drawn.points.map(([x]) => Math.abs(drawn.scale.along(x) - at));
    show(far.indexOf(Math.min(...far)));
  });
  frame.addEventListener("pointerleave", hide);
  frame.addEventListener("focusout", hide);
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !drawn) return;
    event.preventDefault();
    const before = place === null ? (step > 0 ? -1 : drawn.points.length) : place;
    show(Math.max(0, Math.min(drawn.points.length - 1, before + step)));
  });
  new ResizeObserver(() => draw()).observe(frame);
  tip.hidden = true;
  return (next) => {
    data = next;
    draw();
  };
}
