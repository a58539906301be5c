// For scripts that poll the server: one request at a time, and neither clicks nor focus are lost.

function button(text, action, className = "strip-button") {
  const made = make("button", { type: "button", class: className, text });
  made.addEventListener("click", action);
  return made;
}

// Polls at once and then every `pause` ms while the component is visible. Returns a function that polls out of turn.
function poll(ask, pause, seen = () => element.offsetParent !== null) {
  let asking = null;
  const once = () => (asking ??= ask().finally(() => { asking = null; }));
  const round = async () => {
    if (!element.isConnected) return;
    try {
      if (!document.hidden && seen()) await once();
    } finally {
      setTimeout(round, pause);
    }
  };
  setTimeout(round);
  return async () => {
    await asking;
    await once();
  };
}

// True while a mouse button is down. A node that is replaced between press and release loses its click, so draw later.
let pressed = false;
element.addEventListener("pointerdown", () => {
  pressed = true;
  const release = () => setTimeout(() => { pressed = false; });
  for (const over of ["pointerup", "pointercancel"]) window.addEventListener(over, release, { once: true });
});

// Draws, then gives the focus to the node that replaced the focused one.
function keepingFocus(root, draw) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  draw();
  if (!key || root.contains(document.activeElement)) return;
  [...root.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
}
