// The panels beside the viewer, one for each mode: agreement, first errors, stages.
const bar = (color, share, title) => {
  const made = node("span", "compare-bar");
  const filled = node("span", "compare-bar-filled");
  filled.style.background = css(color);
  filled.style.width = `${(100 * share).toFixed(2)}%`;
  made.append(filled);
  made.title = title;
  return made;
};
const TOO_GREY = [148, 148, 148];

const makeAgreement = (place) => ({
  show(comparison, pixels, what) {
    const { kinds, colors } = comparison.agreement;
    const all = kinds.reduce((sum, kind) => sum + pixels[kind], 0) || 1;
    const stack = node("div", "compare-stack");
    stack.setAttribute("aria-hidden", "true");
    const list = node("dl", "compare-counts");
    kinds.forEach((kind, place) => {
      const share = pixels[kind] / all;
      const slice = node("span");
      slice.style.background = css(colors[place]);
      slice.style.flexGrow = share;
      stack.append(slice);
      const name = node("dt");
      name.append(swatch(colors[place]), kind);
      list.append(name, node("dd", "", `${count(pixels[kind])} px · ${percent(share)}`));
    });
    place.append(node("h4", "", what), stack, list);
  },
});

// First errors by stage, for this image or for all images, and the button that trains again from a stage.
const makeErrors = (place, ask) => {
  let comparison = null;
  let rows = null;
  let whole = { state: "idle" };
  let scope = "image";
  let chosen = null;
  let stageChosen = false;
  let sending = false;
  const title = node("h3", "", "Where errors begin");
  const explained = node("p", "hint", "A wrong pixel of the student has the colour of the first stage whose graft is wrong there.");
  const scopes = node("div", "compare-modes");
  scopes.setAttribute("role", "group");
  scopes.setAttribute("aria-label", "Which images are counted");
  const scopeButtons = { image: "This image", all: "All images" };
  const list = node("div", "compare-shares");
  const form = node("form", "compare-retrain");
  const stages = node("select", "compare-select");
  stages.setAttribute("aria-label", "Stage to train again from");
  const epochs = node("input", "compare-number");
  Object.assign(epochs, { type: "number", min: 1, max: 100000, step: 1, required: true });
  epochs.setAttribute("aria-label", "Epochs for each stage");
  const send = node("button", "compare-button primary");
  send.type = "submit";
  const problem = node("p", "notice");
  problem.setAttribute("role", "alert");
  problem.hidden = true;
  const fields = node("div", "compare-retrain-fields");
  fields.append("from ", stages, " for ", epochs, " epochs each");
  form.append(node("h4", "", "Train again from the stage where errors begin"), fields, send, problem);
  place.append(title, explained, scopes, list, form);
  const name = () => {
    const can = epochs.checkValidity();
    send.disabled = !can || sending;
    send.textContent = `Retrain from ${stages.value} for ${can ? epochs.value : "…"} more ${epochs.value === "1" ? "epoch" : "epochs"}`;
    epochs.setAttribute("aria-invalid", String(!can));
    return can;
  };
  const warn = (text) => {
    problem.textContent = text;
    problem.hidden = !text;
  };
  for (const [key, words] of Object.entries(scopeButtons)) {
    scopes.append(button(words, () => {
      scope = key;
      if (key === "all" && whole.state !== "done") ask.count();
      draw();
    }, "compare-mode"));
  }
  const line = (row, color, most) => {
    const own = row.stage !== "teacher";
    const made = button("", () => {
      chosen = chosen === row.stage ? null : row.stage;
      if (own && chosen) {
        stages.value = row.stage;
        stageChosen = true;
        name();
      }
      draw();
      ask.isolate(chosen);
    }, "compare-share");
    made.setAttribute("aria-pressed", String(chosen === row.stage));
    made.title = own ? `Show only the errors that begin at ${row.stage}` : "Show only errors that the teacher makes, too";
    made.append(
      swatch(color),
      node("span", "compare-share-name", own ? row.stage : "teacher, too"),
      bar(color, row.share / most, `${count(row.pixels)} pixels`),
      node("span", "compare-share-figure", percent(row.share)),
    );
    return made;
  };
  const progress = () => {
    const words = node("p", "hint", whole.problem ? "" : `${whole.stage || "waiting"} ${whole.total ? `· ${whole.done} of ${whole.total} images` : "…"}`);
    if (whole.problem) return [node("p", "notice", whole.problem), button("Try again", ask.count)];
    if (whole.state === "idle") return [button("Count all images", ask.count)];
    const filled = node("progress");
    if (whole.total) Object.assign(filled, { max: whole.total, value: whole.done });
    filled.setAttribute("aria-label", "images counted");
    return [words, filled, button("Stop counting", ask.stop)];
  };
  const draw = () => {
    const focus = [...place.querySelectorAll("button")].indexOf(document.activeElement);
    [...scopes.children].forEach((one, place) => one.setAttribute("aria-pressed", String(Object.keys(scopeButtons)[place] === scope)));
    const found = scope === "all" ? whole.shares : rows;
    if (found) {
      const most = Math.max(...found.map((row) => row.share), 1e-9);
      const sum = found.reduce((total, row) => total + row.pixels, 0);
      const own = comparison.stage_colors;
      list.replaceChildren(
        node("p", "hint", sum ? `${count(sum)} wrong pixels, by the stage at which the error begins` : "The student gets no pixel wrong here."),
        ...found.map((row, place) => line(row, own[place] ?? TOO_GREY, most)),
      );
      if (!stageChosen) {
        const worst = found.filter((row) => row.stage !== "teacher").reduce((a, b) => (b.pixels > a.pixels ? b : a));
        stages.value = worst.stage;
        name();
      }
    } else if (scope === "all") list.replaceChildren(...progress());
    else list.replaceChildren(node("p", "hint", "Looking at each stage …"));
    if (focus >= 0) place.querySelectorAll("button")[focus]?.focus();
  };
  stages.addEventListener("change", () => {
    stageChosen = true;
    name();
  });
  epochs.addEventListener("input", () => warn(name() ? "" : `Epochs: a whole number from 1 to ${count(Number(epochs.max))}.`));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    sending = true;
    name();
    const answer = await ask.retrain(stages.value, epochs.valueAsNumber);
    sending = false;
    name();
    warn(answer ? answer.problem ?? "" : DOWN);
  });
  return {
    open(found) {
      comparison = found;
      rows = null;
      whole = { state: "idle" };
      scope = "image";
      chosen = null;
      stageChosen = false;
      problem.hidden = true;
      stages.replaceChildren(...comparison.stages.map((stage) => new Option(stage, stage)));
      epochs.value = comparison.epochs ?? 20;
      name();
    },
    image(found) {
      rows = found;
      draw();
    },
    all(found) {
      whole = found;
      draw();
    },
    counting: () => whole.state === "working",
    chosen: () => chosen,
  };
};

const makeSlider = (place, changed) => {
  let stages = [];
  const title = node("h3", "", "Stage by stage");
  const hint = node("p", "hint", "The mask after each stage: from the student's stages up to the chosen one, then the teacher's stages.");
  const label = node("label", "compare-slider");
  const words = node("output", "compare-stage-name");
  const range = node("input");
  Object.assign(range, { type: "range", min: 0, step: 1 });
  range.setAttribute("aria-label", "Stage");
  const ticks = node("div", "compare-ticks");
  label.append(words, range);
  place.append(title, hint, label, ticks);
  const update = () => {
    const stage = stages[range.valueAsNumber];
    words.textContent = `after ${stage}`;
    range.setAttribute("aria-valuetext", `after ${stage}`);
    [...ticks.children].forEach((tick, place) => tick.classList.toggle("on", place === range.valueAsNumber));
    changed(range.valueAsNumber);
  };
  range.addEventListener("input", update);
  return {
    open(comparison) {
      stages = comparison.stages;
      range.max = stages.length - 1;
      range.value = stages.length - 1;
      ticks.replaceChildren(...stages.map((stage, place) => button(stage, () => {
        range.value = place;
        update();
      }, "compare-tick")));
      if (stages.length) update();
    },
    value: () => range.valueAsNumber,
  };
};
