// What the whole page needs: the address follows what is looked at; light or dark and the data that were chosen are remembered.
let loaded = false; // until then the first tab's own opening would overwrite the address
window.segskdOpened = () => {
  const shade = window.localStorage.getItem("segskd-shade");
  if (shade) document.body.classList.toggle("dark", shade === "dark");
  const asked = new URL(window.location).searchParams;
  let choice = null;
  try {
    choice = JSON.parse(window.localStorage.getItem("segskd-choice"));
  } catch {
    window.localStorage.removeItem("segskd-choice");
  }
  return [asked.get("run"), asked.get("tab"), choice];
};
window.segskdKeep = (choice) => {
  if (loaded && choice) window.localStorage.setItem("segskd-choice", JSON.stringify(choice));
};
window.segskdLoaded = () => { loaded = true; };
window.segskdLink = (parts) => {
  if (!loaded) return;
  const address = new URL(window.location);
  for (const [key, value] of Object.entries(parts)) {
    if (value === null || value === undefined || value === "") address.searchParams.delete(key);
    else address.searchParams.set(key, value);
  }
  window.history.replaceState(null, "", address);
};

window.segskdShade = () => {
  const dark = document.body.classList.toggle("dark");
  window.localStorage.setItem("segskd-shade", dark ? "dark" : "light");
};
