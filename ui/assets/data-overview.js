// What a dataset holds: facts, problems, the share of the pixels by class.
const WORDS = {
  ready: ["✓", "ready"],
  incomplete: ["⚠", "incomplete"],
  draw: ["✎", "to be drawn"],
  download: ["↓", "to be downloaded"],
  hand: ["☞", "to be downloaded by hand"],
  broken: ["⚠", "its card is broken"],
};
const SPLITS = { train: "training", val: "validation", test: "test" };

const tile = (entry, chosen, choose) =>
  el(
    "button",
    { type: "button", class: `tile ${entry.state}`, "aria-pressed": String(chosen), onclick: () => choose(entry.place) },
    el("strong", {}, entry.name),
    el("span", { class: "title" }, entry.title),
    el("span", { class: "colours" }, ...(entry.colors || []).map(swatch)),
    el(
      "span",
      { class: "state" },
      `${WORDS[entry.state][0]} ${WORDS[entry.state][1]}`,
      entry.classes ? ` · ${plural(entry.classes, "class", "classes")}` : "",
      entry.own ? " · yours" : "",
    ),
  );

// A dataset that is not on this server yet: how to get it.
const absent = (view, act) => {
  const texts = {
    draw: ["These scenes are not drawn yet: ", `${view.how}.`],
    download: ["This dataset is not on this server yet. It comes from ", `${view.how}.`],
    hand: ["Download this dataset by hand: ", `${view.how}.`],
    broken: ["", view.how],
  };
  const buttons = { draw: "Draw the scenes", download: "Download it" };
  const [before, how] = texts[view.state] || ["", view.problem || ""];
  return el(
    "div",
    { class: "absent" },
    el("p", {}, before, how),
    view.licence && el("p", { class: "quiet" }, `Licence: ${view.licence}`),
    view.task
      ? view.task
      : buttons[view.state]
        ? el("button", { type: "button", class: "main", onclick: () => act("fetch") }, buttons[view.state])
        : el("button", { type: "button", class: "plain", onclick: () => act("look") }, "Look again"),
  );
};

const facts = (view) => {
  const images = Object.entries(view.images).map(([split, count]) => `${count.toLocaleString("en")} ${SPLITS[split]}`);
  const parts = [`${images.join(" · ")} images`, plural(view.classes.length, "class", "classes")];
  if (view.found) {
    const sizes = view.found.sizes.map(([size, count], place, all) =>
      all.length > 1 ? `${size.replace("x", "×")} (${count})` : size.replace("x", "×"),
    );
    if (view.found.more_sizes) sizes.push(`${view.found.more_sizes} more sizes`);
    parts.push(`${sizes.join(", ")} pixels high × wide`);
  }
  if (view.licence) parts.push(`licence: ${view.licence}`);
  return el("p", { class: "facts" }, parts.join(" · "));
};

const problems = (found) => {
  const { count, kinds, shown } = found.problems;
  if (!count) return el("p", { class: "good" }, "✓ Every file was read; nothing is wrong with any of them.");
  const sorts = Object.entries(kinds).map(([kind, number]) => `${number} ${kind}`);
  const more = count > shown.length ? ` The first ${shown.length} of them:` : "";
  return el(
    "details",
    { class: "problems", open: count <= 5 },
    el("summary", {}, `⚠ ${plural(count, "problem", "problems")}: ${sorts.join(", ")}.${more}`),
    el("ul", {}, ...shown.map((one) => el("li", {}, el("b", {}, `${one.kind}:`), " ", one.text))),
  );
};

// The share of the pixels by class, for training and validation. The colours are the card's, so this is the legend too.
const histogram = (view) => {
  const { shares } = view.found;
  const splits = ["train", "val"].filter((split) => shares[split]);
  const most = Math.max(...splits.flatMap((split) => shares[split]), 0.0001);
  const row = (entry, index) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: entry.name }, swatch(entry.color), el("span", {}, entry.name)),
      el("td", { class: "bars" }, ...splits.map((split) => bar(shares[split][index], most, entry.color, split))),
      ...splits.map((split) => el("td", { class: "figure" }, percent(shares[split][index]))),
    );
  return el(
    "table",
    { class: "histogram" },
    el("caption", {}, "Share of the pixels by class ", el("small", {}, "thick: training, thin: validation")),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Class"),
        el("td"),
        ...splits.map((split) => el("th", { scope: "col", class: "figure" }, SPLITS[split])),
      ),
    ),
    el("tbody", {}, ...view.classes.map(row)),
  );
};
