// Helpers that show values on the page.

export function show(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text; // screen readers announce changes only
}

export function showState(id, state, text = state) {
  document.getElementById(id).dataset.state = state;
  show(id, text);
}

export const percent = (value) => `${Math.round(value)} %`;

export function bytes(value, per = "") {
  if (value === null) return "not available";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 999.5 && unit < units.length - 1; unit++) value /= 1000;
  return `${value < 9.95 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}${per}`;
}

export const rate = (value) => bytes(value, "/s");
