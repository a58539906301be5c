// Studies below the list of runs: how far each is, its table, its curve, its files.
const STUDY_STATES = { running: "▶ running", finished: "✓ finished", failed: "✕ failed", stopped: "‖ stopped" };
const STUDY_NOTE = "Mean ± sample standard deviation over the seeds. Weights of the last epoch; nothing was chosen on a split.";

function saveBytes(base64, name) {
  const content = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// One study. Its element stays while it is drawn again, so that it stays open or closed.
function makeStudy(name, open, fetchFile) {
  const card = make("details", { class: "card studies-study", ...(open ? { open: "" } : {}) });
  const title = make("span", { class: "studies-title" });
  const state = make("span");
  const bar = make("progress", { "aria-label": "finished cells and the progress of running ones" });
  let done = 0;
  const body = make("div", { class: "studies-body" });
  card.append(make("summary", {}, [title, state, bar]), body);
  const shared = make("p", { class: "hint" });
  const now = make("ul", { class: "studies-now" });
  const why = make("div", { class: "notice", role: "status" });
  const tableBox = make("div", { class: "studies-table-box", tabindex: 0, role: "region", "aria-label": "table of the study" });
  const curveBox = make("div", { class: "studies-curve" });
  const curve = makeCurve(curveBox);
  const note = make("p", { class: "hint", text: STUDY_NOTE });
  const files = make("div", { class: "runs-actions" });
  const errorBox = make("div", { class: "notice", role: "alert" });
  const opens = make("p", { class: "hint" });
  const sideways = make("p", { class: "hint studies-sideways", text: "Scroll to the right for more columns." });
  const read = make("div", { class: "studies-read" }, [make("div", { class: "studies-rows" }, [sideways, tableBox, note]), curveBox]);
  body.append(shared, now, why, read, files, errorBox, opens);
  const measure = () => { sideways.hidden = tableBox.scrollWidth <= tableBox.clientWidth + 8; }; // less is padding
  new ResizeObserver(measure).observe(tableBox);
  errorBox.hidden = true;

  const setNotice = (node, text) => { setText(node, text); node.hidden = !text; };
  const save = async (file) => {
    const answer = await fetchFile({ study: name, file });
    setNotice(errorBox, answer ? answer.problem ?? "" : "no answer from the server: try again in a moment");
    if (answer?.base64) saveBytes(answer.base64, `${name}-${file}`);
  };
  const drawFiles = onChange((names) => {
    files.hidden = !names.length;
    files.replaceChildren(make("span", { class: "hint", text: "Download" }), ...names.map((file) => button(file, () => save(file))));
  });
  const drawWhy = (study) => {
    const failed = study.failed.map(({ name: cell, error }) => make("li", { text: `✕ ${cell} failed${error ? `: ${error}` : ""}` }));
    const stopped = study.go_on && study.state === "stopped" ? "It was stopped. This command goes on with it: " : "This command tries the failed cells again: ";
    const goes = study.go_on ? [make("p", {}, [stopped, make("code", { text: study.go_on })])] : [];
    why.hidden = !failed.length && !goes.length;
    why.classList.toggle("hint", !failed.length);
    why.replaceChildren(...(failed.length ? [make("ul", {}, failed)] : []), ...goes);
  };
  return {
    card,
    draw(study) {
      setText(title, study.title ?? study.name);
      state.className = `state ${study.problem ? "damaged" : study.state}`;
      if (study.problem) {
        setText(state, "✕ damaged");
        bar.hidden = read.hidden = files.hidden = opens.hidden = shared.hidden = now.hidden = true;
        why.hidden = false;
        return why.replaceChildren(make("p", { text: study.problem }));
      }
      read.hidden = opens.hidden = shared.hidden = false; // it may have been damaged a moment ago
      [files.hidden, now.hidden] = [!study.files.length, !study.working.length];
      setText(state, `${STUDY_STATES[study.state]}, ${study.done} of ${study.total} cells${study.state === "finished" ? "" : " finished"}`);
      [bar.max, bar.value, done] = [study.total, study.done, study.done];
      bar.hidden = study.state === "finished";
      setText(shared, study.shared);
      drawWhy(study);
      tableBox.replaceChildren(studyTable(study));
      measure();
      curve(study);
      drawFiles(study.files);
      opens.replaceChildren("Its cells are runs; ", make("code", { text: study.open }), " opens them here.");
    },
    // What the running cells do.
    drawNow: onChange((working, doing) => {
      now.hidden = !working.length;
      bar.value = done;
      now.replaceChildren(...working.map((cell) => {
        const known = doing.find((one) => one.cell === cell);
        bar.value += known?.share ?? 0;
        const far = known?.share ? `, ${wholePercent(known.share)}` : "";
        return make("li", { text: `▶ ${cell}${known ? `: ${known.doing}${far}` : ""}` });
      }));
    }),
  };
}

// The section. `ask` and `fetchFile` are the server's functions. Returns a function that asks again.
function makeStudies(section, { ask, fetchFile }) {
  const list = make("div", { class: "studies-list" });
  section.append(make("h3", { text: "Studies", tabindex: -1 }), list);
  section.hidden = true;
  let studies = [];
  const cards = new Map();
  const draw = (changed) => {
    section.hidden = !studies.length;
    for (const name of [...cards.keys()]) if (!studies.some((study) => study.name === name)) cards.delete(name);
    const whole = cards.size ? [] : studies.filter((study) => !study.problem);
    const opened = whole.find((study) => study.state === "running") ?? whole[0];
    for (const study of changed) {
      if (!cards.has(study.name)) cards.set(study.name, makeStudy(study.name, study === opened || study.problem, fetchFile));
      cards.get(study.name).draw(study);
    }
    const wanted = studies.map((study) => cards.get(study.name).card);
    if (wanted.some((card, place) => list.children[place] !== card) || list.children.length !== wanted.length) list.replaceChildren(...wanted);
  };
  const drawChanged = (answer) => {
    const known = new Map([...studies, ...answer.studies].map((study) => [study.name, study]));
    const before = studies.map((study) => study.name).join("/");
    studies = answer.names.map((name) => known.get(name));
    if (answer.studies.length || answer.names.join("/") !== before) draw(answer.studies);
  };
  return async () => {
    const answer = await ask({ seen: Object.fromEntries(studies.map((study) => [study.name, study.tag])) });
    if (!answer || pressed) return studies.length;
    drawChanged(answer);
    for (const study of studies) {
      if (!study.problem) cards.get(study.name).drawNow(study.working, answer.now.filter((one) => one.study === study.name));
    }
    return studies.length;
  };
}
