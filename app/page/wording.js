// Numbers and elements as a page writes them. Knows no server and no place on the page.

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.95 ? value.toFixed(0) : value.toPrecision(3)} ${UNITS[unit]}`;
}

// 4 ms, 0.41 s, 12.3 s, 3 min 20 s: as many digits as help.
export function seconds(value) {
  if (value < 0.0995) {
    return value < 0.0005 ? "< 1 ms" : `${Math.round(value * 1000)} ms`;
  }
  return value >= 119.5 ? minutes(value) : `${value.toFixed(value >= 9.995 ? 1 : 2)} s`;
}

// Whole ones, for a wait: 4 s, 3 min 20 s.
export function wait(value) {
  return value >= 119.5 ? minutes(value) : `${Math.max(1, Math.ceil(value))} s`;
}

function minutes(value) {
  const whole = Math.round(value);
  if (whole >= 7200) {
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function byId(id) {
  return document.getElementById(id);
}

// Children that are strings become text, never markup.
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Only where it differs, so that a live region speaks of changes alone.
export function say(target, text) {
  if (target.textContent !== text) {
    target.textContent = text;
  }
}
