// Notices at the edge of the page, and deletions that wait there until they can no longer be undone.

import { memoryPath, request } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { on, tell } from "./store.js";

const UNDO_S = 8;
const NOTICE_S = 8;
const STEP_MS = 100;

const pending = []; // deletions, the newest last

export function setUpNotices() {
  on("notice", notice);
  on("delete", deleteLater);
}

/** Whether a document is about to be deleted. */
export const isPending = (memory, id) => pending.some((entry) => entry.memory === memory && entry.id === id);

/** A message that goes away by itself; it stays as long as it is pointed at or holds the focus. */
export function notice(text, { action = null, duration = NOTICE_S, onEnd = () => {} } = {}) {
  const bar = el("span", { class: "left" });
  const toast = el("div", { class: "toast" }, el("p", { text }), bar);
  let left = duration;
  const end = () => {
    clearInterval(timer);
    const hadFocus = toast.contains(document.activeElement);
    toast.remove();
    if (hadFocus) byId("main").focus({ preventScroll: true });
  };
  const timer = setInterval(() => {
    // not while it is looked at, nor while a dialog keeps it out of reach
    if (toast.matches(":hover, :focus-within") || document.querySelector("dialog[open]")) return;
    left -= STEP_MS / 1000;
    bar.style.setProperty("--left", String(Math.max(0, left / duration)));
    if (left > 0) return;
    end();
    onEnd();
  }, STEP_MS);
  const button = action ?? { text: "Close", run: () => {} };
  toast.append(
    el("button", {
      type: "button",
      text: button.text,
      on: {
        click: () => {
          end();
          button.run();
        },
      },
    }),
  );
  byId("toasts").append(toast);
  announce(text);
  return end;
}

/** Delete a document when the time to undo is over: until then nothing is sent. */
function deleteLater({ memory, id, title }) {
  if (isPending(memory, id)) return;
  const entry = { memory, id, title };
  entry.endNotice = notice(`“${title}” will be deleted.`, {
    action: { text: "Undo", run: () => undo(entry) },
    duration: UNDO_S,
    onEnd: () => {
      entry.sent = send(entry);
    },
  });
  pending.push(entry);
  tell("documents", { memory });
}

function undo(entry) {
  pending.splice(pending.indexOf(entry), 1);
  announce(`“${entry.title}” stays.`);
  tell("documents", { memory: entry.memory });
}

/** Undo the newest deletion; says whether there was one. */
export function undoLast() {
  const entry = pending.filter((known) => !known.sent).at(-1);
  if (!entry) return false;
  entry.endNotice();
  undo(entry);
  return true;
}

async function send(entry) {
  try {
    await request("DELETE", memoryPath(entry.memory, "documents", entry.id));
    announce(`“${entry.title}” was deleted.`);
  } catch (error) {
    if (error.status === 401) tell("unauthorized");
    if (error.code !== "document_not_found") notice(`“${entry.title}” was not deleted: ${error.message}`);
  }
  pending.splice(pending.indexOf(entry), 1);
  tell("documents", { memory: entry.memory, changed: true });
}

/** Send what waits for a memory now, so that a document that is added again afterwards stays. */
export async function sendPending(memory) {
  const waiting = pending.filter((entry) => entry.memory === memory);
  await Promise.all(
    waiting.map((entry) => {
      entry.endNotice();
      return (entry.sent ??= send(entry));
    }),
  );
}
