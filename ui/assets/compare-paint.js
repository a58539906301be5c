// The Compare tab: draws layers over the pictures, and switches between its modes.
const classTable = () => {
  const colors = new Uint32Array(256);
  comparison.classes.forEach(({ color }, place) => {
    if (!hidden.has(place)) colors[place] = rgba(color);
  });
  return colors;
};
const agreementLayer = () => {
  const { truth, teacher, student } = loaded.maps;
  const colors = comparison.agreement.colors.map((color) => rgba(color));
  const made = new Uint32Array(truth.length);
  for (let i = 0; i < truth.length; i += 1) {
    if (truth[i] === comparison.ignore || hidden.has(truth[i])) continue;
    made[i] = colors[(teacher[i] === truth[i] ? 0 : 2) + (student[i] === truth[i] ? 0 : 1)];
  }
  return made;
};
const errorTable = () => {
  const colors = new Uint32Array(256);
  const only = errors.chosen();
  comparison.stages.forEach((name, place) => {
    if (!only || only === name) colors[place + 1] = rgba(comparison.stage_colors[place]);
  });
  if (!only || only === "teacher") colors[comparison.marks.teacher_too] = rgba(TOO_GREY);
  return colors;
};
const paint = () => {
  if (!comparison || !loaded) return;
  const colors = classTable();
  const { maps, extra } = loaded;
  viewer.layer("truth", maps.truth ? coloured(maps.truth, colors) : null);
  viewer.layer("teacher", mode !== "before" ? coloured(maps.teacher, colors) : loaded.before ? coloured(loaded.before, colors) : null);
  const title = { masks: `Student · ${comparison.student.name}`, before: `After · ${run}`, agreement: "Agreement", errors: "First errors", stages: `After ${comparison.stages[slider.value()]}` }[mode];
  viewer.title("teacher", mode === "before" ? `Before · ${parent()?.run}` : `${TEACHER} · ${comparison.teacher.name}`);
  viewer.title("student", title);
  viewer.note("truth", maps.truth ? "" : "No truth for your own image");
  const problem = ["errors", "stages"].includes(mode) ? extra?.problem ?? (extra?.maps ? "" : "looking at each stage …") : "";
  viewer.note("student", problem);
  if (mode === "agreement") viewer.layer("student", agreementLayer());
  else if (mode === "errors") viewer.layer("student", extra?.maps ? coloured(extra.maps["first errors"], errorTable()) : null, { dim: 0.5 });
  else if (mode === "stages") viewer.layer("student", extra?.maps ? coloured(extra.maps[comparison.stages[slider.value()]], colors) : null);
  else viewer.layer("student", coloured(maps.student, colors));
};
const drawLegend = () => {
  const chips = comparison.classes.map(({ name, color }, place) => {
    const made = button("", () => {
      if (!hidden.delete(place)) hidden.add(place);
      made.setAttribute("aria-pressed", String(!hidden.has(place)));
      paint();
    }, "compare-chip");
    made.append(swatch(color), node("span", "", name));
    made.setAttribute("aria-pressed", String(!hidden.has(place)));
    made.title = "Show or hide this class";
    return made;
  });
  const every = (shown) => {
    hidden.clear();
    if (!shown) comparison.classes.forEach((_, place) => hidden.add(place));
    drawLegend();
    paint();
  };
  legend.replaceChildren(...chips, button("All", () => every(true), "compare-link"), button("None", () => every(false), "compare-link"));
};

// -- modes
const parent = () => relatives.find((pair) => pair.after.run === run)?.before;
const why = () => {
  if (!comparison) return {};
  const own = wanted?.upload ? "Your own image has no truth, and stages are stored for the dataset's images only" : "";
  return {
    masks: "",
    agreement: own,
    errors: own || comparison.no_grafts || (comparison.first_errors ? "" : "First errors come with the last stage"),
    stages: own || comparison.no_grafts || "",
    before: own || (parent() ? "" : "This run did not begin from another run"),
  };
};
const drawModes = () => {
  const reasons = why();
  for (const [key, made] of Object.entries(modeButtons)) {
    made.disabled = Boolean(reasons[key]);
    made.title = reasons[key] || MODES[key][1];
    made.setAttribute("aria-pressed", String(key === mode));
    made.hidden = key === "before" && !parent();
  }
  for (const place of Object.values(sidePlaces)) place.hidden = place !== sidePlaces[mode];
  side.hidden = !sidePlaces[mode] || (sidePlaces[mode] === agreementPlace && !loaded?.agreement);
};
const choose = (key) => {
  mode = key;
  if (comparison && why()[mode]) mode = "masks";
  drawModes();
  drawSide();
  paint();
  root.dataset.mode = mode;
  due();
};
const cycle = () => {
  const open = Object.keys(MODES).filter((key) => !modeButtons[key].disabled && !modeButtons[key].hidden);
  choose(open[(open.indexOf(mode) + 1) % open.length]);
  viewer.say(`${MODES[mode][0]}: ${MODES[mode][1]}`);
};
const drawSide = () => {
  if (sidePlaces[mode] === agreementPlace && loaded?.agreement) {
    agreementPlace.replaceChildren(node("h3", "", "Who is right where"));
    agreement.show(comparison, loaded.agreement, "This image");
    agreement.show(comparison, comparison.agreement.pixels, `All ${count(comparison.images.length)} images`);
  }
  if (mode === "errors") errors.image(loaded?.extra?.shares ?? null);
};
