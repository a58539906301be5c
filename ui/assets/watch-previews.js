// The pinned validation images: photograph, truth, teacher's mask and graft's mask. Masks lie over the photograph.

// Shows the pictures in host. `ask` fetches them (see Watching.previews).
function makePreviews(host, ask) {
  const rows = make("div", { class: "previews-rows" });
  const legend = make("ul", { class: "legend", "aria-label": "classes" });
  const slider = make("input", { type: "range", min: "0", max: "100", value: "75", id: "watch-opacity" });
  const control = make("div", { class: "opacity" }, [
    make("label", { for: "watch-opacity", text: "mask over image" }),
    slider,
  ]);
  const words = make("p", { class: "quiet" });
  host.append(control, words, rows, legend);
  const lay = () => host.style.setProperty("--mask", slider.value / 100);
  slider.addEventListener("input", lay);
  lay();

  const known = new Map(); // name of an image -> its row
  let run = "";
  let phase = "";
  let busy = false;
  let asked = "";

  function panel(caption) {
    const photo = make("img", { class: "photo", alt: "" });
    const mask = make("img", { class: "mask", alt: "" });
    const label = make("figcaption", { text: caption });
    const figure = make("figure", {}, [make("div", { class: "stack" }, [photo, mask]), label]);
    return { figure, photo, mask, label };
  }

  function addRow(image) {
    const panels = { image: panel("image"), truth: panel("truth") };
    if (image.teacher) panels.teacher = panel("teacher");
    panels.graft = panel("");
    for (const [name, part] of Object.entries(panels)) {
      part.photo.src = image.photo;
      part.photo.alt = name === "image" ? `validation image ${image.name}` : "";
      if (name === "image") part.mask.remove();
    }
    panels.truth.mask.src = image.truth;
    panels.truth.mask.alt = `true classes of ${image.name}`;
    if (panels.teacher) {
      panels.teacher.mask.src = image.teacher;
      panels.teacher.mask.alt = `the teacher's classes of ${image.name}`;
    }
    const row = make("div", { class: "previews-row" }, Object.values(panels).map((part) => part.figure));
    row.style.setProperty("--panels", Object.keys(panels).length);
    rows.append(row);
    known.set(image.name, { panels, row, stamp: "", photo: image.photo });
  }

  // A new mask replaces the old one only when it is decoded, so that nothing flickers.
  async function swap(entry, image, caption) {
    const { mask, label } = entry.panels.graft;
    let words = caption;
    if (image.mask) {
      const ready = new Image();
      ready.src = image.mask;
      try {
        await ready.decode();
        mask.src = image.mask;
      } catch {
        mask.removeAttribute("src");
        words = `${caption}: its file can’t be read`;
      }
      entry.stamp = image.stamp;
    }
    mask.alt = `classes of ${image.name}, ${words}`;
    setText(label, words);
  }

  function drawLegend(classes) {
    const entries = classes.map((entry) => {
      const patch = make("span", { class: "patch" });
      patch.style.background = entry.color;
      return make("li", {}, [patch, make("span", { text: entry.name })]);
    });
    legend.replaceChildren(...entries);
  }
  const showLegend = onChange(drawLegend);

  async function fetchMasks(caption) {
    const stamps = Object.fromEntries([...known].map(([name, entry]) => [name, `${entry.stamp}`]));
    const question = { run, phase, known: stamps, pictures: [...known.keys()] };
    const answer = await ask(question);
    if (!answer || question.run !== run || question.phase !== phase) return false;
    setText(words, answer.problem);
    showLegend(answer.legend);
    for (const image of answer.images) {
      if (!known.has(image.name)) addRow(image);
      await swap(known.get(image.name), image, caption);
    }
    return true;
  }

  function clear() {
    known.clear();
    rows.replaceChildren();
    showLegend([]);
  }

  return {
    // Shows the masks after phase `name`. `stamp` changes with the masks; "" says that there are none yet.
    async update(runName, name, stamp, caption, none) {
      if (runName !== run) clear();
      const same = `${runName}|${name}|${stamp}`;
      [run, phase] = [runName, name];
      control.hidden = rows.hidden = legend.hidden = !stamp;
      if (!stamp) {
        asked = "";
        return setText(words, none);
      }
      if (same === asked || busy) return undefined;
      busy = true;
      try {
        for (const entry of known.values()) entry.stamp = asked.startsWith(`${runName}|${name}|`) ? entry.stamp : "";
        if (await fetchMasks(caption)) asked = same;
      } finally {
        busy = false;
      }
      return undefined;
    },
  };
}
