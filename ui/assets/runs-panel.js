// The panel of one run: its actions, its name and its note. An open question and a half-written note stay while the
// table is drawn again.
function makePanel(panel, does) {
  let row = null;
  let asked = null;
  let busy = "";
  const title = make("h3");
  const facts = make("p", { class: "hint" });
  const errorBox = make("div", { class: "notice", role: "alert" });
  const why = make("div", { class: "notice hint" });
  const actions = make("div", { class: "runs-actions" });
  const close = button("Close", () => does.close(), "strip-button runs-close");
  const fields = {
    name: field("Name", "Rename", 100, (value) => value !== row.name && does.rename(row.name, value)),
    note: field("Note", "Save the note", 2000, (value) => does.note(row.name, value)),
  };
  panel.append(make("div", { class: "runs-head" }, [title, close]), facts, errorBox, why, actions, fields.name.form, fields.note.form);
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (asked) answer(null);
    else does.close();
  });

  function field(label, verb, most, save) {
    const input = make("input", { maxlength: most });
    const form = make("form", { class: "runs-field" }, [make("label", {}, [label, input]), make("button", { class: "strip-button", text: verb })]);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save(input.value.trim());
    });
    // The field keeps what the person is writing, unless the run's own value changes.
    return { form, show: onChange((_run, value) => { input.value = value; }) };
  }

  // A question replaces the buttons until it is answered. `key` names the button that opened it.
  const ask = (key, text, yes, no, then) => () => {
    asked = { run: row.name, state: row.state, key, text, yes, no, then };
    drawActions();
    actions.querySelector("button").focus();
  };
  function answer(then) {
    const { key } = asked;
    asked = null;
    drawActions();
    ([...actions.children].find((made) => made.dataset.key === key) ?? actions.querySelector("button"))?.focus();
    then?.();
  }

  function act(text, does, className) {
    const made = button(text, does, className);
    made.dataset.key = text;
    made.disabled = busy !== "";
    return made;
  }

  function offered({ name, state, kind, teacher }) {
    const open = (tab) => () => does.look(name, tab);
    const made = [act("Watch", open("watch"))];
    if (state === "finished") {
      if (kind === "distill" && teacher) made.push(act("Compare", open("compare")));
      made.push(act("Export", open("export")));
    }
    if (["interrupted", "failed", "paused", "new"].includes(state)) {
      made.push(act(state === "new" ? "Start" : "Resume", () => does.resume(name)));
    }
    if (state === "waiting") made.push(act("Take out of the queue", () => does.stop(name)));
    if (["running", "starting"].includes(state)) {
      const text = `Stop ${name} now? Its training so far is saved.`;
      made.push(act("Stop now", ask("Stop now", text, "Stop it", "Keep going", () => does.stop(name))));
    }
    if (state !== "damaged") {
      if (kind === "distill") made.push(act("Clone", () => does.clone(name)));
      made.push(act(busy || "Download", () => does.pack(name)));
    }
    if (["running", "starting", "waiting"].includes(state)) return made;
    const text = `Delete ${name} with all its results? This can't be undone.`;
    const remove = ask("Delete", text, "Delete it", "Keep it", () => does.remove(name));
    return [...made, act("Delete", remove, "strip-button strip-danger")];
  }

  function drawActions() {
    if (!asked) return keepingFocus(actions, () => actions.replaceChildren(...offered(row)));
    const { text, yes, no, then } = asked;
    const buttons = [button(yes, () => answer(then), "strip-button strip-danger"), button(no, () => answer(null))];
    return actions.replaceChildren(make("span", { class: "runs-sure", role: "group", "aria-label": text }, [make("span", { text }), ...buttons]));
  }

  const drawOffers = onChange((name, state) => {
    if (asked && (asked.run !== name || asked.state !== state)) asked = null;
    drawActions();
  });
  const say = (node, text) => { setText(node, text); node.hidden = !text; };

  say(errorBox, "");
  return {
    // The error of the last change, "" for none.
    say: (problem) => say(errorBox, problem),
    // The label of the download button while the zip is being made.
    busy: (text) => { busy = text; if (row) drawActions(); },
    draw(next) {
      panel.hidden = !next;
      if (next?.name !== row?.name) say(errorBox, "");
      row = next;
      if (!row) return;
      setText(title, row.name);
      setText(facts, [row.dataset, row.student, row.teacher && `teacher ${row.teacher}`, row.size, isNumber(row.epochs) && `${row.epochs} ${row.epochs === 1 ? "epoch" : "epochs"} a stage`, isNumber(row.seed) && `seed ${row.seed}`].filter(Boolean).join(" · "));
      say(why, row.problem || row.ended);
      drawOffers(row.name, row.state, row.kind, row.teacher);
      fields.name.show(row.name, row.name);
      fields.note.show(row.name, row.note);
      fields.name.form.hidden = fields.note.form.hidden = row.state === "damaged";
    },
  };
}
