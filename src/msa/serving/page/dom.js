// Making and finding elements. Text of documents and models becomes text nodes here and never markup.

/** The element of index.html with this id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/**
 * A new element. `properties` are set on it (`text` is its text, `on` its listeners, `data` its dataset, names with a
 * dash or in `attributes` are attributes); children are elements or strings.
 */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A text with one part of it marked; `marks` are [start, end] pairs, sorted and apart from each other. */
export function marked(text, marks, from = 0, to = text.length) {
  const parts = document.createDocumentFragment();
  let at = from;
  for (const [start, end] of marks) {
    if (end <= at || start >= to) continue;
    parts.append(
      text.slice(at, Math.max(at, start)),
      el("mark", { text: text.slice(Math.max(at, start), Math.min(end, to)) }),
    );
    at = Math.min(end, to);
  }
  parts.append(text.slice(at, to));
  return parts;
}

/** Say something to screen readers. */
export function announce(message) {
  byId("announcer").textContent = message;
}

const counting = new Intl.NumberFormat("en");

/** 1234567 → "1,234,567". */
export const count = (number) => counting.format(number);

/** "1 document", "2 documents". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Seconds, as precise as is useful. */
export function seconds(value) {
  if (value < 1) return `${Math.round(1000 * value)} ms`;
  return value < 100
    ? `${value.toFixed(value < 10 ? 2 : 1)} s`
    : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Bytes in binary units. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** What to call a document: its title, else its path, else its id. */
export const titleOf = (document) =>
  String(document.title || document.metadata?.title || document.metadata?.path || document.id);
