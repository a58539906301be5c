// Pruning on the Export tab: starts a pruned student of the chosen run, and lists the pruned students that exist.
// `begin(ratio, whole)` takes the ratio and whether all epochs are repeated. `look` and `follow` take a run's name.
const makePruning = ({ begin, look, follow }) => {
  const ratio = make("select", { "aria-label": "share of every layer's channels" });
  const long = make("select", { "aria-label": "how long the rest is trained" });
  const go = button("Prune and train", () => begin(Number(ratio.value), long.value === "1"), "export-go again");
  const hint = make("p", { class: "hint", text: "Whole channels are removed. Then another run trains every stage on the teacher's features again." });
  const list = make("ul", { class: "export-pruned" });
  const asking = make("div", { class: "export-choice" }, [ratio, long, go]);
  const root = make("fieldset", { class: "export-kinds export-prune" }, [make("legend", { text: "Smaller and faster still" }), hint, asking, list]);
  const words = (run) => {
    if (run.state === "finished") return `mIoU ${percent(run.miou)}, ${isNumber(run.percent_of_teacher) ? `${run.percent_of_teacher.toFixed(1)} % of its teacher, ` : ""}${megabytes(run.bytes)}`;
    return run.doing || run.state;
  };
  const item = (run) => {
    const done = run.state === "finished";
    const open = button(done ? "Export it" : "Watch it", () => (done ? look : follow)(run.name));
    return make("li", { title: run.name }, [make("span", {}, [make("strong", { text: `${Math.round(100 * run.pruned)} %` }), ` ${words(run)}`]), open]);
  };
  const drawRatios = onChange((ratios) => {
    ratio.replaceChildren(...ratios.map((value) => make("option", { value, text: `remove ${Math.round(100 * value)} % of the channels` })));
    ratio.value = "0.3";
  });
  const drawTimes = onChange((seconds) => {
    const chosen = long.value || "0";
    const time = (place) => (isNumber(seconds?.[place]) ? `, ≈ ${duration(seconds[place])}` : "");
    const words = [`half its epochs${time(0)}`, `all its epochs${time(1)}: better`];
    long.replaceChildren(...words.map((text, value) => make("option", { value, text })));
    long.value = chosen;
  });
  const drawRuns = onChange((state) => {
    list.replaceChildren(...state.runs.map(item));
    list.hidden = !state.runs.length;
  });
  return {
    root,
    draw: (state) => {
      root.hidden = !state;
      if (!state) return;
      drawRatios(state.ratios);
      drawTimes(state.seconds);
      drawRuns(state);
    },
    hold: (held) => { go.disabled = held; },
  };
};
