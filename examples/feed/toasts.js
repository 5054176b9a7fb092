// Short messages at the foot of the page, which screen readers read out. One may offer to undo.

const place = document.getElementById("toasts");
const SHOWN_MS = 5000;

// undo: what its button does. Returns a function that takes the message away.
export function toast(text, { undo = null, shown_ms = SHOWN_MS } = {}) {
  const element = document.createElement("div");
  element.className = "toast";
  element.append(text);
  const close = () => element.remove();
  if (undo) {
    const button = document.createElement("button");
    button.textContent = "Undo";
    button.addEventListener("click", () => {
      close();
      undo();
    });
    element.append(button);
  }
  place.append(element);
  setTimeout(close, shown_ms);
  return close;
}

// Undoes what was done last and can be.
export function undoLast() {
  [...place.querySelectorAll("button")].at(-1)?.click();
}
