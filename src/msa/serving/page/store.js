// What the whole page knows, and who wants to hear when it changes.

export const state = {
  model: "",
  memories: [], // {id, available}
  memory: "", // the chosen one
  available: undefined, // whether the model that is served made it
  documents: undefined, // how many it holds, once that is known
  readOnly: false, // whether it is
  connected: false, // whether the server has told its memories
  view: "ask", // or "documents"
};

const listeners = new Map();

/**
 * Call `listener` whenever `event` happens: "memory" (another one was chosen), "stats"
 * (its figures are known), "documents" ({memory, changed}: its documents changed, or whether they are about to go),
 * "view", "notice" (a text), "delete" ({memory, id, title}), "unauthorized" (the key is wrong), "forget" (it is gone).
 */
export function on(event, listener) {
  listeners.set(event, [...(listeners.get(event) ?? []), listener]);
}

export function tell(event, details) {
  for (const listener of listeners.get(event) ?? []) listener(details);
}

/** What this browser (`localStorage`) or tab (`sessionStorage`) remembers; null: nothing, or storage is blocked. */
export function recall(storage, name) {
  try {
    return window[storage].getItem(`msa-${name}`);
  } catch {
    return null;
  }
}

/** Remember it; null forgets. Says whether that worked. */
export function remember(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(`msa-${name}`);
    else window[storage].setItem(`msa-${name}`, value);
    return true;
  } catch {
    return false; // blocked, or full
  }
}
