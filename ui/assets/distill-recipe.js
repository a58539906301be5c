// The run as a command and as a recipe: shown, copied, downloaded.
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

async function copy(text, button, code) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without https scripts can't use the clipboard. The text is selected, so that the person can press Ctrl+C.
    window.getSelection().selectAllChildren(code);
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function block(title, text, more) {
  const part = make("section", "code-part");
  const head = make("div", "code-head");
  const code = make("pre", "code", text);
  code.tabIndex = 0;
  code.setAttribute("aria-label", title);
  const button = make("button", "small", "Copy");
  button.type = "button";
  button.setAttribute("aria-label", `Copy the ${title.toLowerCase()}`);
  button.addEventListener("click", () => copy(text, button, code));
  head.append(make("strong", "", title), button, ...more);
  part.append(head, code);
  return part;
}

function render() {
  const box = element.querySelector(".panel");
  const { command, recipe, name } = props.value || {};
  if (!command || !recipe) {
    box.replaceChildren(make("p", "summary", "Correct the marked fields. Both then appear here."));
    return;
  }
  const save = make("button", "small", "Download");
  save.type = "button";
  save.setAttribute("aria-label", "Download the recipe");
  save.addEventListener("click", () => download(recipe, `${name}.yaml`));
  box.replaceChildren(block("Command", command, []), block("Recipe", recipe, [save]));
}
watch("value", render);
render();
