// Pruning on the Export tab: begins a pruned student of the chosen run, and shows those that there are.
// `begin` is given a ratio, `look` and `follow` a run's name.
const makePruning = ({ begin, look, follow }) => {
  const ratio = make("select", { "aria-label": "share of every layer's channels" });
  const go = button("Prune and repair", () => begin(Number(ratio.value)), "export-go again");
  const hint = make("p", { class: "hint" });
  const list = make("ul", { class: "export-pruned" });
  const asking = make("div", { class: "export-choice" }, [ratio, go]);
  const root = make("fieldset", { class: "export-kinds export-prune" }, [make("legend", { text: "Smaller and faster still" }), hint, asking, list]);
  const words = (run) => {
    if (run.state === "finished") return `mIoU ${percent(run.miou)}, ${isNumber(run.percent_of_teacher) ? `${run.percent_of_teacher.toFixed(1)} % of its teacher, ` : ""}${megabytes(run.bytes)}`;
    return run.doing || run.state;
  };
  const item = (run) => {
    const done = run.state === "finished";
    const open = button(done ? "Take it along" : "Watch it", () => (done ? look : follow)(run.name));
    return make("li", { title: run.name }, [make("span", {}, [make("strong", { text: `${Math.round(100 * run.pruned)} %` }), ` ${words(run)}`]), open]);
  };
  const drawRatios = onChange((ratios) => {
    ratio.replaceChildren(...ratios.map((value) => make("option", { value, text: `take ${Math.round(100 * value)} % of the channels away` })));
    ratio.value = "0.3";
  });
  const drawRuns = onChange((state) => {
    const time = isNumber(state.seconds) ? ` It takes about ${duration(state.seconds)} of training.` : "";
    hint.textContent = `Whole channels are taken away, then every stage is repaired against the teacher, as a run of its own.${time}`;
    list.replaceChildren(...state.runs.map(item));
    list.hidden = !state.runs.length;
  });
  return {
    root,
    draw: (state) => {
      root.hidden = !state;
      if (!state) return;
      drawRatios(state.ratios);
      drawRuns(state);
    },
    hold: (held) => { go.disabled = held; },
  };
};
