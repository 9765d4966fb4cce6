// Adding documents: files and folders that are dropped or chosen, one after another, and texts written by hand.

import { memoryPath, request, upload } from "./api.js";
import { byId, bytes, count, el, plural } from "./dom.js";
import { notice, sendPending } from "./notices.js";
import { on, state, tell } from "./store.js";

const [FIRST_POLL_MS, LAST_POLL_MS, QUEUED_POLL_MS] = [80, 1000, 4000];
const TELL_MS = 3000; // how often the list shows what has been added so far
const BUSY_S = 2; // before a full queue is tried again, unless the server says when
const ENDED = ["succeeded", "failed", "cancelled"];

let queue = Promise.resolve(); // files are sent one after another
let unsent = 0; // how many of them wait here or are on their way
const followed = new Set(); // operations that have a row

export function setUpAdding() {
  const drop = byId("drop");
  let inside = 0;
  drop.addEventListener("dragenter", () => drop.classList.toggle("over", (inside += 1) > 0));
  drop.addEventListener("dragleave", () => drop.classList.toggle("over", (inside -= 1) > 0));
  // a file that is dropped beside the box must not replace the page
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    inside = 0;
    if (drop.contains(event.target)) add(await droppedFiles(event.dataTransfer));
  });
  byId("file-input").addEventListener("change", () => {
    add([...byId("file-input").files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
    byId("file-input").value = "";
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsent) event.preventDefault(); // asks whether to leave; what was sent already is the server's
  });
  setUpWriting();
  on("memory", followOperations);
}

/** The files that were dropped, those in folders with their paths. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, name: entry.fullPath.replace(/^\//, "") });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // gives some at a time
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const inner of some) await walk(inner);
    }
  };
  try {
    for (const entry of entries) await walk(entry);
  } catch (error) {
    notice(`What was dropped cannot be read: ${error.message}`);
  }
  return found;
}

function add(files) {
  if (!state.memory) {
    notice("Choose or make a memory first.");
    return;
  }
  const { memory } = state;
  const rows = [...files]
    .reverse()
    .map(({ file, name }) => ({ file, name, row: new Row(name, `waits, ${bytes(file.size)}`) }));
  unsent += rows.length;
  for (const { file, name, row } of rows.reverse()) {
    queue = queue.then(async () => {
      const operation = row.signal.aborted ? null : await send(memory, file, name, row);
      unsent -= 1;
      if (operation) attend(operation, row); // the next file is sent while this one is encoded
    });
  }
}

/** Send a file; null: that failed, and its row says why. */
async function send(memory, file, name, row) {
  try {
    await sendPending(memory);
    return await patiently(row, () => {
      row.show("sending", 0);
      return upload(
        `${memoryPath(memory, "documents")}?wait=false`,
        file,
        name,
        (share) => row.show("sending", share),
        row.signal,
      );
    });
  } catch (error) {
    return fail(error, row);
  }
}

function fail(error, row) {
  if (error.name === "AbortError") row.end("called off");
  else row.end(error.message, "failed");
  if (error.status === 401) tell("unauthorized");
  return null;
}

const attend = (operation, row) => follow(operation, row).catch((error) => fail(error, row));

/** Do it again while the server is too busy. */
async function patiently(row, action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (error.status !== 429) throw error;
      row.show("the server is busy, waiting", null);
      await pause(1000 * (error.retryAfter ?? BUSY_S));
      row.signal.throwIfAborted();
    }
  }
}

/** Show how an operation comes on until it has ended. */
async function follow(operation, row) {
  followed.add(operation.id);
  row.onCancel = () =>
    request("DELETE", `v1/operations/${encodeURIComponent(operation.id)}`).catch((error) => notice(error.message));
  let wait = FIRST_POLL_MS;
  let [told, toldAt] = [0, performance.now()];
  while (!ENDED.includes(operation.status)) {
    const { phase, documents = 0, documents_total: total } = operation.progress;
    const encoding = phase === "encoding" && total > 1;
    row.show(
      encoding ? `${count(documents)} of ${plural(total, "document")}` : (phase ?? operation.status),
      encoding ? documents / total : null,
    );
    if (documents > told && performance.now() - toldAt > TELL_MS) {
      [told, toldAt] = [documents, performance.now()];
      tell("documents", { memory: operation.memory, changed: true });
    }
    await pause(wait);
    wait = Math.min(1.5 * wait, operation.status === "queued" ? QUEUED_POLL_MS : LAST_POLL_MS);
    operation = await patiently(row, () => request("GET", `v1/operations/${encodeURIComponent(operation.id)}`));
  }
  if (operation.status === "succeeded") row.end(summary(operation.result));
  else if (operation.status === "cancelled") row.end("called off; what was added already stays");
  else row.end(operation.error?.message ?? "failed", "failed");
  tell("documents", { memory: operation.memory, changed: true });
}

function summary({ documents = 0, updated = 0, unchanged = 0, tokens = 0 }) {
  const parts = [updated ? `${count(updated)} replaced` : null, unchanged ? `${count(unchanged)} unchanged` : null];
  const kinds = parts.filter(Boolean);
  return `${plural(documents, "document")}${kinds.length ? ` (${kinds.join(", ")})` : ""}, ${plural(tokens, "token")}`;
}

/** Operations that this page did not start, or started before it was loaded again. */
async function followOperations() {
  const { memory } = state;
  if (!memory) return;
  let data;
  try {
    ({ data } = await request("GET", `v1/operations?${new URLSearchParams({ memory })}`));
  } catch {
    return; // a read-only server has none; what else is wrong, the list of documents says
  }
  for (const operation of data) {
    if (ENDED.includes(operation.status) || operation.kind !== "add_documents" || followed.has(operation.id)) continue;
    const row = new Row("Documents sent earlier", operation.status);
    attend(operation, row);
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** One line in the list of what is being added. */
class Row {
  constructor(name, text) {
    const stop = new AbortController();
    this.signal = stop.signal;
    this.onCancel = () => stop.abort();
    this.name = name;
    this.text = el("span", { class: "small muted", text });
    this.progress = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
    this.button = el("button", {
      type: "button",
      class: "link",
      text: "Cancel",
      "aria-label": `Cancel ${name}`,
      on: { click: () => this.press() },
    });
    this.element = el(
      "li",
      {},
      el("span", { class: "mono id", text: name, title: name }),
      this.button,
      this.progress,
      this.text,
    );
    byId("uploads").prepend(this.element);
  }

  press() {
    if (!this.ended) {
      this.onCancel();
      if (this.text.textContent.startsWith("waits")) this.end("called off");
      return;
    }
    this.element.remove();
  }

  /** `share` null: it is not known how far it is. */
  show(text, share) {
    this.text.textContent = text;
    if (share === null) this.progress.removeAttribute("value");
    else this.progress.value = share;
  }

  end(text, how = "done") {
    this.ended = true;
    this.text.textContent = text;
    this.progress.remove();
    this.element.className = how;
    this.button.textContent = "Clear";
    this.button.setAttribute("aria-label", `Clear ${this.name}`);
    byId("upload-status").textContent = `${this.name}: ${text}`;
  }
}

function setUpWriting() {
  const dialog = byId("write-dialog");
  byId("write-button").addEventListener("click", () => {
    byId("write-error").textContent = "";
    if (state.memory) dialog.showModal();
    else notice("Choose or make a memory first.");
  });
  byId("write-cancel").addEventListener("click", () => dialog.close());
  byId("write-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { memory } = state;
    const [id, title, text] = ["write-id", "write-name", "write-text"].map((name) => byId(name).value);
    const document = {
      ...(id.trim() ? { id: id.trim() } : {}),
      text,
      metadata: title.trim() ? { title: title.trim() } : {},
    };
    byId("write-submit").disabled = true;
    try {
      await sendPending(memory);
      const added = await request("POST", `${memoryPath(memory, "documents")}?wait=true`, { documents: [document] });
      dialog.close();
      byId("write-form").reset();
      notice(
        added.updated
          ? "The document was replaced."
          : added.unchanged
            ? "This document is in the memory already."
            : "The document was added.",
      );
      tell("documents", { memory, changed: true });
    } catch (error) {
      byId("write-error").textContent = error.message;
      if (error.status === 401) tell("unauthorized");
    } finally {
      byId("write-submit").disabled = false;
    }
  });
}
