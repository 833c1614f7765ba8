// The settings: kept in this browser, shown in a dialog.

const NAME = "fiddler.settings";
const DEFAULTS = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "", theme: "auto", key: "" };
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

let current = { ...DEFAULTS, ...read(NAME, {}) };

/** What is kept under a name, or the fallback. */
export function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keeps a value. A browser that keeps nothing is not an error. */
export function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // private windows may refuse, or have no room
  }
}

/** The settings as they are now. */
export function settings() {
  return current;
}

/** The fields of a request that the settings set. */
export function requestFields() {
  return Object.fromEntries(NUMBERS.filter((name) => current[name] !== "").map((name) => [name, Number(current[name])]));
}

function apply() {
  document.documentElement.dataset.theme = current.theme;
}

/** Connects the dialog. */
export function connectSettings(onChange) {
  const dialog = document.getElementById("settings");
  const form = dialog.querySelector("form");
  const show = () => {
    for (const name of Object.keys(DEFAULTS)) form.elements[name].value = current[name];
  };
  const change = () => {
    for (const name of Object.keys(DEFAULTS)) {
      const field = form.elements[name];
      if (field.checkValidity()) current[name] = field.value;
    }
    write(NAME, current);
    apply();
    onChange();
  };
  form.addEventListener("input", change);
  document.getElementById("open-settings").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  document.getElementById("reset").addEventListener("click", () => {
    current = { ...DEFAULTS };
    show();
    change();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  apply();
}
