// The stage rail: one cell for each stage, which fills while the stage trains. A click or Enter opens the stage's masks.

const RAIL_SIGNS = { done: "✓", training: "▶", filling: "◔", "to come": "○" };

// A phase that trains one stage has the stage's name, perhaps followed by a teacher's. Other phases have names of their own.
const STAGE = /^(?:(encoder|decoder)\.(\d+)|head)(-.*)?$/;
const MANY_PHASES = 14;

function phaseGroup(name) {
  const stage = STAGE.exec(name);
  return stage ? stage[1] || "head" : "";
}

function railGroups(phases) {
  const groups = [];
  for (const phase of phases) {
    const name = phaseGroup(phase.name);
    if (!groups.length || groups.at(-1).name !== name) groups.push({ name, phases: [] });
    groups.at(-1).phases.push(phase);
  }
  return groups;
}

function railWords(phase, working, single) {
  if (phase.state === "done") return single || !STAGE.test(phase.name) ? "trained" : "frozen";
  if (phase.state === "to come") return "to come";
  if (!working) return `stopped at ${wholePercent(phase.share)}`;
  if (phase.state === "training" && phase.share >= 1) return "measuring";
  return phase.state === "filling" ? "storing features" : `training, ${wholePercent(phase.share)}`;
}

function makeRail(host, choose) {
  const cells = new Map();
  let shape = "";

  function build(phases) {
    cells.clear();
    host.replaceChildren();
    host.classList.toggle("many", phases.length > MANY_PHASES);
    for (const group of railGroups(phases)) {
      const row = make("div", { class: "rail-cells" });
      const box = make("div", { class: "rail-group", role: "group", "aria-label": group.name || "phases" }, [
        make("span", { class: "rail-title", text: group.name || "phases", "aria-hidden": "true" }),
        row,
      ]);
      box.style.setProperty("--cells", group.phases.length);
      for (const phase of group.phases) row.append(buildCell(phase.name));
      host.append(box);
    }
  }

  function buildCell(name) {
    const parts = {};
    for (const part of ["sign", "name", "words", "bar", "loss", "miou", "kept"]) {
      parts[part] = make("span", { class: `rail-${part}` });
    }
    parts.name.textContent = name;
    parts.sign.setAttribute("aria-hidden", "true");
    parts.bar.append(make("span", {}));
    const top = make("span", { class: "rail-top" }, [parts.sign, parts.name]);
    const figures = make("span", { class: "rail-figures" }, [parts.loss, parts.miou, parts.kept]);
    const button = make("button", { type: "button", class: "rail-cell", "aria-pressed": "false" }, [
      top,
      parts.words,
      parts.bar,
      figures,
    ]);
    button.addEventListener("click", () => choose(name));
    cells.set(name, { button, ...parts });
    return button;
  }

  function fill(phase, { working, teacher, chosen, shown, single }) {
    const cell = cells.get(phase.name);
    const alive = working && (phase.state === "training" || phase.state === "filling");
    cell.button.dataset.state = alive || phase.state === "done" || phase.state === "to come" ? phase.state : "stopped";
    cell.button.setAttribute("aria-pressed", String(chosen === phase.name));
    cell.button.classList.toggle("shown", shown === phase.name);
    setText(cell.sign, alive || phase.state in { done: 1, "to come": 1 } ? RAIL_SIGNS[phase.state] : "‖");
    setText(cell.words, railWords(phase, working, single));
    cell.bar.firstChild.style.transform = `scaleX(${phase.share})`;
    setText(cell.loss, phase.loss === null ? "" : `loss ${shortLoss(phase.loss)}`);
    setText(cell.miou, phase.graft_miou === null ? "" : `mIoU ${percent(phase.graft_miou)}`);
    const kept = phase.graft_miou !== null && teacher ? phase.graft_miou / teacher : null;
    setText(cell.kept, kept === null ? "" : `${percent(kept)} of teacher`);
    cell.button.title = `Show the masks and the loss of ${phase.name}`;
  }

  host.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...cells.values()].map((cell) => cell.button);
    const place = buttons.indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, place + step))].focus();
  });

  return {
    update(phases, look) {
      const names = phases.map((phase) => phase.name).join("|");
      if (names !== shape) build(phases);
      shape = names;
      const single = phases.length === 1;
      host.classList.toggle("single", single);
      for (const phase of phases) fill(phase, { ...look, single });
    },
  };
}
