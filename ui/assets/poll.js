// What scripts share that ask the server again and again: no two questions at once, no click and no focus lost.

function button(text, action, className = "strip-button") {
  const made = make("button", { type: "button", class: className, text });
  made.addEventListener("click", action);
  return made;
}

// Asks at once and every `pause` ms while the component is seen. Gives a function that asks in between.
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

// A node that is replaced between press and release loses its click: while this is true, draw later.
let pressed = false;
element.addEventListener("pointerdown", () => {
  pressed = true;
  const release = () => setTimeout(() => { pressed = false; });
  for (const over of ["pointerup", "pointercancel"]) window.addEventListener(over, release, { once: true });
});

// Draws, and gives the focus back to what stands in the place of the node that had it.
function keepingFocus(root, draw) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  draw();
  if (!key || root.contains(document.activeElement)) return;
  [...root.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
}
