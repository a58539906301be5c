// The images of the Compare tab: fetches them, keeps them and shows them. Next and previous follow the gallery's order.
const frameOf = (key, request) => {
  const kept = frames.get(key);
  frames.delete(key);
  const found = kept ?? fetchFrame(request);
  frames.set(key, found);
  if (!kept) found.then((frame) => frame.maps || frames.delete(key));
  while (frames.size > KEPT_FRAMES) frames.delete(frames.keys().next().value);
  return found;
};
const fetchFrame = async (request) => {
  const answer = await server.compare_frame(request);
  if (!answer) return { down: true };
  if (!answer.planes) return answer;
  const [photo, maps] = await Promise.all([pictureOf(answer.photo), unpacked(answer)]);
  return { ...answer, data: null, photo, maps, extra: null, before: null };
};
const requestOf = (image) => ({ run, image });
const say = (text, kind = "problem") => {
  status.textContent = text;
  status.className = `notice ${kind} compare-status`;
  status.hidden = !text;
};
const show = async (target) => {
  wanted = target;
  if (target.upload) gallery.mark(null, false);
  const key = target.upload ?? `${run}/${target.image}`;
  const frame = await frameOf(key, target.upload ? { upload: target.upload } : requestOf(target.image));
  if (wanted !== target) return;
  if (frame.closed) {
    comparison = null; // the server started anew: the run is loaded again, and then this image
    linked = target.image;
    return;
  }
  if (!frame.maps) {
    say(frame.down ? DOWN : frame.problem);
    if (frame.down) target.late = Date.now();
    return;
  }
  say("");
  target.late = null;
  loaded = frame;
  current = target;
  viewer.show(frame.photo, frame.width, frame.height);
  if (why()[mode]) mode = "masks";
  drawModes();
  drawCaption();
  drawSide();
  paint();
  await viewer.drawn();
  root.dataset.shown = target.image ?? target.upload;
  if (target.image && wanted === target) {
    window.segskdLink({ image: target.image });
    for (const other of [neighbour(1), neighbour(-1)]) if (other) frameOf(`${run}/${other}`, requestOf(other));
  }
  due();
};
const open = (image) => {
  gallery.mark(image);
  if (props.value?.upload) props.value = { run, upload: null };
  return show({ image });
};
const neighbour = (by) => {
  const names = gallery.names();
  if (!names.length) return null;
  const place = names.indexOf((wanted ?? current)?.image);
  return place < 0 ? names[0] : names[(place + by + names.length) % names.length];
};
const step = (by) => {
  const image = neighbour(by);
  if (image) open(image);
};
const drawCaption = () => {
  const names = gallery.names();
  const row = comparison.images.find(([name]) => name === current.image);
  caption.replaceChildren(node("strong", "", current.image ?? loaded.name));
  if (current.upload) caption.append(node("span", "hint", `your own image, seen at ${loaded.height} × ${loaded.width}${loaded.tile ? `, by tiles of ${loaded.tile.join(" × ")}` : ""}`));
  if (!row) return;
  const place = names.indexOf(current.image);
  if (place >= 0) caption.append(node("span", "hint", `${place + 1} of ${names.length}`));
  caption.append(node("span", "hint", `mIoU ${figure(row[1])} / ${figure(row[2])}`));
};
const filter = async (name) => {
  const answer = name ? await server.compare_gaps({ run, class: name }) : { images: comparison.images };
  if (!answer?.images) {
    say(answer?.problem ?? DOWN);
    return;
  }
  retention.choose(name);
  gallery.show(answer.images, name ?? "");
  gallery.mark(current?.image, false);
  if (name) gallery.look();
  if (current) drawCaption();
};
