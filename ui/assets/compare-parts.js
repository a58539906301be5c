// What the scripts of the Compare tab share: elements, colours, and pictures as the server sends them.
const node = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const button = (text, action, className = "compare-button") => {
  const made = node("button", className, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
};
const figure = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
const signed = (value) => {
  if (value === null || value === undefined) return "–";
  const words = Math.abs(value).toFixed(3);
  return words === "0.000" ? words : `${value < 0 ? "−" : "+"}${words}`;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const count = (number) => number.toLocaleString("en");
const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
// A pixel of an ImageData as one number. Browsers run on little-endian machines only, so the low byte comes first.
const rgba = ([red, green, blue], alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const swatch = (color) => {
  const made = node("span", "swatch");
  made.style.background = css(color);
  made.setAttribute("aria-hidden", "true");
  return made;
};
const coloured = (map, table) => {
  const made = new Uint32Array(map.length);
  for (let i = 0; i < map.length; i += 1) made[i] = table[map[i]];
  return made;
};
// The maps of an answer by name: Uint8Array (height × width) each.
const unpacked = async ({ planes, height, width, data }) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const each = height * width;
  return Object.fromEntries(planes.map((name, place) => [name, whole.subarray(place * each, (place + 1) * each)]));
};
const pictureOf = async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
};
const DOWN = "No answer from the server, trying again …";
