// Which memories there are, the one that is chosen, its figures, and looking after it.

import { memoryPath, request } from "./api.js";
import { byId, bytes, count, el, plural } from "./dom.js";
import { notice } from "./notices.js";
import { on, recall, remember, state, tell } from "./store.js";

export function setUpMemories() {
  byId("memory-select").addEventListener("change", (event) => choose(event.target.value));
  on("view", (view) => view === "documents" && drawFacts());
  on("documents", ({ memory, changed }) => changed && memory === state.memory && drawFacts());
  setUpCreating();
  for (const [id, action] of [
    ["verify-button", verify],
    ["compact-button", compact],
    ["snapshot-button", snapshot],
  ]) {
    byId(id).addEventListener("click", () => maintain(byId(id), action));
  }
}

/** Read model and memories anew, and choose `wanted`, else the remembered one, else the first. */
export async function loadMemories(wanted = "") {
  const { data } = await request("GET", "v1/memories");
  Object.assign(state, { memories: data, connected: true });
  const names = data.map((memory) => memory.id);
  const select = byId("memory-select");
  select.replaceChildren(
    ...data.map(({ id, available }) => el("option", { value: id, text: available ? id : `${id} (another model’s)` })),
  );
  if (!names.length) select.append(el("option", { value: "", text: "none yet" }));
  select.disabled = !names.length;
  const first = (data.find((memory) => memory.available) ?? data[0])?.id ?? "";
  choose([wanted, state.memory, recall("localStorage", "memory")].find((name) => names.includes(name)) ?? first);
}

/** The server does not tell: there is nothing to choose. */
export function loseMemories() {
  Object.assign(state, { memories: [], connected: false });
  byId("memory-select").replaceChildren();
  byId("memory-select").disabled = true;
  choose("");
}

export function choose(name) {
  const known = state.memories.find((memory) => memory.id === name);
  byId("memory-select").value = known ? name : "";
  Object.assign(state, {
    memory: known ? name : "",
    available: known?.available,
    documents: undefined,
    readOnly: false,
  });
  if (known) remember("localStorage", "memory", name);
  byId("maintenance-result").textContent = "";
  drawFacts();
  tell("memory");
}

async function drawFacts() {
  const name = state.memory;
  byId("maintenance").hidden = !name;
  if (!name) {
    byId("facts").replaceChildren();
    byId("snapshots").replaceChildren();
    drawReadOnly(false);
    return;
  }
  let about;
  try {
    about = await request("GET", memoryPath(name));
  } catch (error) {
    if (name !== state.memory) return;
    byId("facts").replaceChildren(el("dt", { text: "State" }), el("dd", { class: "error", text: error.message }));
    return;
  }
  if (name !== state.memory) return;
  const facts = [
    ["Documents", about.documents],
    ["Tokens", about.tokens],
    ["Parts", about.parts],
    ["Chunks", about.chunks],
    ["On disk", bytes(about.bytes_on_disk)],
    ["Made by", about.model_name],
  ];
  byId("facts").replaceChildren(
    ...facts
      .filter(([, value]) => value !== undefined && value !== null)
      .flatMap(([title, value]) => [
        el("dt", { text: title }),
        el("dd", { text: typeof value === "number" ? count(value) : value }),
      ]),
  );
  drawReadOnly(about.read_only);
  if (state.documents !== about.documents) {
    state.documents = about.documents;
    tell("stats");
  }
  if (state.view === "documents") await drawSnapshots(name);
}

function drawReadOnly(readOnly) {
  const changed = state.readOnly !== readOnly;
  state.readOnly = readOnly;
  byId("adding").hidden = byId("jump-add").hidden = readOnly;
  byId("read-only-note").hidden = !readOnly;
  byId("compact-button").hidden = byId("snapshot-button").hidden = readOnly;
  if (changed) tell("documents", { memory: state.memory });
}

function setUpCreating() {
  const dialog = byId("memory-dialog");
  byId("new-memory").addEventListener("click", () => {
    byId("memory-error").textContent = "";
    dialog.showModal();
  });
  byId("memory-cancel").addEventListener("click", () => dialog.close());
  byId("memory-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = byId("memory-input").value.trim();
    byId("memory-submit").disabled = true;
    try {
      await request("PUT", memoryPath(name), {});
      await loadMemories(name);
      dialog.close();
      byId("memory-form").reset();
      location.hash = "documents";
    } catch (error) {
      byId("memory-error").textContent = error.message;
      if (error.status === 401) tell("unauthorized");
    } finally {
      byId("memory-submit").disabled = false;
    }
  });
}

/** Run one of the actions below with its button held down, and show what came of it. */
async function maintain(button, action) {
  const name = state.memory;
  const result = byId("maintenance-result");
  button.disabled = true;
  result.textContent = "Working…";
  result.classList.remove("error");
  let text;
  try {
    text = await action(name);
  } catch (error) {
    if (error.status === 401) tell("unauthorized");
    text = error.message;
    result.classList.add("error");
  }
  button.disabled = false;
  if (name === state.memory) result.textContent = text;
}

async function verify(name) {
  const { ok, problems } = await request("POST", memoryPath(name, "verify"));
  return ok ? "Every checksum is right." : problems.join("\n");
}

async function compact(name) {
  await request("POST", memoryPath(name, "compact"));
  await drawFacts();
  return "Rewritten without what was deleted.";
}

async function snapshot(name) {
  await request("POST", memoryPath(name, "snapshots"), {});
  await drawSnapshots(name);
  return "A checked copy was made.";
}

async function drawSnapshots(name) {
  let data = [];
  try {
    ({ data } = await request("GET", memoryPath(name, "snapshots")));
  } catch {
    // the figures above have said what is wrong
  }
  if (name !== state.memory) return;
  byId("snapshots").replaceChildren(...data.reverse().map((copy) => snapshotItem(name, copy)));
}

function snapshotItem(name, copy) {
  const made = new Date(1000 * copy.created_at);
  const restore = async () => {
    const stamp = made.toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-");
    const fresh = `${name.slice(0, 48)}-${stamp}`;
    try {
      await request("POST", memoryPath(name, "snapshots", copy.id, "restore"), { memory: fresh });
      await loadMemories(fresh);
      notice(`Restored as the new memory “${fresh}”.`);
    } catch (error) {
      notice(`Not restored: ${error.message}`);
    }
  };
  const remove = () => {
    item.hidden = true;
    notice(`The snapshot of ${when} will be deleted.`, {
      action: {
        text: "Undo",
        run: () => {
          item.hidden = false;
        },
      },
      onEnd: () =>
        request("DELETE", memoryPath(name, "snapshots", copy.id)).catch((error) => {
          item.hidden = false;
          notice(`The snapshot was not deleted: ${error.message}`);
        }),
    });
  };
  const button = (text, title, run) =>
    state.readOnly
      ? null
      : el("button", {
          type: "button",
          class: "link",
          text,
          title,
          "aria-label": `${text} the snapshot of ${when}`,
          on: { click: run },
        });
  const when = made.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const item = el(
    "li",
    { class: "row small" },
    el("time", { dateTime: made.toISOString(), text: when }),
    el("span", { class: "muted", text: plural(copy.documents, "doc") }),
    el("span", {}, button("Restore", "Makes a new memory of it", restore), " ", button("Delete", null, remove)),
  );
  return item;
}
