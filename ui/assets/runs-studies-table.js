// The table of a study: rows by share of the images, as in its table.md. The best mean of each share is bold.
const AXIS_TITLES = { student: "student", rule: "images chosen", labels: "labels", init: "first weights", rate: "peak rate" };

// A whole number with separated thousands. Small numbers keep three significant digits.
const count = (value) => {
  if (!isNumber(value)) return "–";
  if (value !== 0 && Math.abs(value) < 10 && !Number.isInteger(value)) return String(Number(value.toPrecision(3)));
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u00a0");
};
const axisText = {
  student: (row) => row.student,
  rule: (row) => row.rule,
  labels: (row) => (row.labels === null ? "all" : row.labels ? share(row.labels) : "none"),
  init: (row) => (row.init === null ? "the default" : row.init.split("/").pop()),
  rate: (row) => (row.rate === null ? "by default" : String(row.rate)),
};
const inSeconds = (key, title) => [title, (row) => count(row[key]), "number"];

// Shows CPU or GPU seconds, whichever every cell has.
function studyColumns(study) {
  const some = (key) => study.rows.some((row) => isNumber(row[key]));
  return [
    ["method", (row) => row.method, ""],
    ...study.varying.map((axis) => [AXIS_TITLES[axis], axisText[axis], "axis"]),
    ["seeds", (row) => (row.seeds === row.cells ? String(row.seeds) : `${row.seeds} of ${row.cells}`), "number"],
    ["mIoU", (row) => spread(row.miou_mean, row.miou_std, 3), "number"],
    ["% of teacher", (row) => spread(row.percent_mean, row.percent_std, 1), "number"],
    ["image passes", (row) => count(row.image_passes), "number"],
    ["training TFLOPs", (row) => count(isNumber(row.training_flops) ? row.training_flops / 1e12 : null), "number"],
    inSeconds("seconds", "wall\u00a0s"),
    ...[["cpu_seconds", "CPU\u00a0s"], ["gpu_seconds", "GPU\u00a0s"]].filter(([key]) => some(key)).map(([key, title]) => inSeconds(key, title)),
  ];
}

// On a narrow page the axes that vary stand below the method.
function studyRow(row, columns, varying) {
  const [first, ...cells] = columns.map(([, text, kind], place) => (
    make(place ? "td" : "th", { class: kind, text: text(row), ...(place ? {} : { scope: "row" }) })
  ));
  if (varying.length) first.append(make("span", { class: "studies-further", "aria-hidden": "true", text: varying.map((axis) => axisText[axis](row)).join(", ") }));
  return make("tr", { class: `${row.best ? "best" : ""}${row.seeds ? "" : " to-come"}` }, [first, ...cells]);
}

function studyTable(study) {
  const columns = studyColumns(study);
  const head = make("tr", {}, columns.map(([title, , kind]) => make("th", { scope: "col", class: kind, text: title })));
  const bodies = [...new Set(study.rows.map((row) => row.fraction))].map((fraction) => {
    const own = study.rows.filter((row) => row.fraction === fraction);
    const title = make("tr", { class: "studies-share" }, [make("th", { scope: "rowgroup", colspan: columns.length }, [make("span", { text: imagesOf(own[0]) })])]);
    return make("tbody", {}, [title, ...own.map((row) => studyRow(row, columns, study.varying))]);
  });
  return make("table", { class: "studies-table" }, [make("thead", {}, [head]), ...bodies]);
}
