// The phases that will be trained, in groups, with their epochs.
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const GROUPS = [[/^encoder\./, "Encoder"], [/^decoder\./, "Decoder"], [/^head$/, "head"], [/^(?!(encoder|decoder)\.|head$)/, ""]];
const number = (value) => value.toLocaleString("en");
const plural = (epochs) => `${number(epochs)} ${epochs === 1 ? "epoch" : "epochs"}`;

function cells(phases, alike) {
  const list = make("ol", "cells");
  for (const phase of phases) {
    const cell = make("li", "cell");
    cell.append(make("span", "cell-name", phase.name), make("span", "cell-epochs", plural(phase.epochs)));
    if (phase.beside) cell.append(make("span", "cell-on", `with ${phase.beside}`));
    if (!alike) cell.append(make("span", "cell-on", phase.on));
    cell.title = `${phase.name}${phase.beside && ` with ${phase.beside}`}: ${plural(phase.epochs)} on ${phase.on}`;
    list.append(cell);
  }
  return list;
}

function stages(phases) {
  const box = make("div", "groups");
  for (const [kind, title] of GROUPS) {
    const some = phases.filter((phase) => kind.test(phase.name));
    if (!some.length) continue;
    const group = make("section", "group");
    const alike = some.every((phase) => phase.on === some[0].on);
    const on = !some[0].on ? "" : alike ? `learns from ${some[0].on}` : "learns phase by phase";
    const line = make("p", "group-line");
    line.append(make("strong", "", title || (some.length === 1 ? some[0].name : "Whole network")), ` ${on}`);
    group.append(line, cells(some, alike));
    box.append(group);
  }
  return box;
}

function summary(run) {
  const total = run.phases.reduce((sum, phase) => sum + phase.epochs, 0);
  const why = run.chosen ? `, chosen for ${number(run.images)} images` : "";
  const alike = run.phases.every((phase) => phase.epochs === run.epochs);
  const each = run.phases.length === 1 ? `1 phase of ${plural(total)}${why}`
    : alike ? `${run.phases.length} stages, ${plural(run.epochs)} each${why}; ${number(total)} in all`
      : `${run.phases.length} phases, ${plural(total)} in all${why}`;
  const labels = run.labelled === run.images ? ""
    : run.labelled ? `; labels of ${number(run.labelled)} of ${number(run.images)} images`
      : `; no labels: ${number(run.images)} images as the teacher sees them`;
  return make("p", "summary", each + labels);
}

function render() {
  const box = element.querySelector(".panel");
  const value = props.value || {};
  box.replaceChildren(make("h3", "", "What will be trained"));
  if (!value.run) {
    box.append(make("p", "summary", "Correct the marked fields; the stages then appear here."));
    return;
  }
  if (value.teacher) {
    const images = `${number(value.teacher.images)} images`;
    const epochs = plural(value.teacher.phases[0].epochs);
    box.append(make("p", "summary", `First the teacher: ${epochs} on the labels of ${images}. Then the student:`));
  }
  box.append(summary(value.run), stages(value.run.phases));
}
watch("value", render);
render();
