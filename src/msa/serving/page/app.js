// The page as a whole: starting, views, theme, API key and shortcuts.

import { setUpAdding } from "./adding.js";
import { apiKey, request, setApiKey } from "./api.js";
import { setUpAsk, stopAnswer } from "./ask.js";
import { setUpDocuments } from "./documents.js";
import { byId } from "./dom.js";
import { loadMemories, loseMemories, setUpMemories } from "./memories.js";
import { setUpNotices, undoLast } from "./notices.js";
import { on, recall, remember, state, tell } from "./store.js";
import { setUpViewer } from "./viewer.js";

const THEMES = ["system", "light", "dark"];

function setUpViews() {
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment of the address names the view
    byId("main").focus();
  });
  const show = () => {
    state.view = location.hash === "#documents" ? "documents" : "ask";
    for (const [view, title] of [
      ["ask", "Ask"],
      ["documents", "Documents"],
    ]) {
      byId(`view-${view}`).hidden = view !== state.view;
      byId(`tab-${view}`).toggleAttribute("aria-current", view === state.view);
      if (view === state.view) {
        byId(`tab-${view}`).setAttribute("aria-current", "page");
        byId("view-title").textContent = title;
        document.title = `msa: ${title}`;
      }
    }
    tell("view", state.view);
  };
  window.addEventListener("hashchange", show);
  show();
}

function setUpTheme() {
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme-name").textContent = theme;
  };
  const current = () => document.documentElement.dataset.theme ?? "system";
  apply(THEMES.includes(recall("localStorage", "theme")) ? recall("localStorage", "theme") : "system");
  byId("theme-button").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(current()) + 1) % THEMES.length];
    remember("localStorage", "theme", next);
    apply(next);
  });
}

function setUpKey() {
  const dialog = byId("key-dialog");
  const open = (message = "") => {
    byId("key-error").textContent = message;
    byId("key-input").value = apiKey();
    if (!dialog.open) dialog.showModal();
    byId("key-input").select();
  };
  byId("key-button").addEventListener("click", () => open());
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-forget").addEventListener("click", () => {
    setApiKey("");
    tell("forget"); // answers quote documents
    dialog.close();
    connect();
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setApiKey(byId("key-input").value.trim());
    if (await connect()) dialog.close();
  });
  on("unauthorized", () => {
    open(apiKey() ? "The server does not accept this key." : "This server wants an API key.");
  });
}

/** Find the server, its model and its memories; says whether that worked. */
async function connect() {
  try {
    const { model } = await request("GET", "ready");
    state.model = model;
    byId("model-name").textContent = model;
    await loadMemories();
  } catch (error) {
    loseMemories();
    if (error.status === 401) tell("unauthorized");
    const text =
      error.status === 401 ? "Without a key that the server accepts, nothing can be asked here." : error.message;
    showBanner(text, error.status === 401 ? "Enter the key" : "Try again");
    return false;
  }
  byId("banner").hidden = true;
  byId("key-button").classList.toggle("set", Boolean(apiKey()));
  return true;
}

function showBanner(text, action) {
  byId("banner").hidden = false;
  byId("banner-text").textContent = text;
  byId("banner-action").textContent = action;
  byId("banner-action").onclick = () => (action === "Try again" ? connect() : byId("key-button").click());
}

const SHORTCUTS = {
  "/": () => byId(state.view === "ask" ? "question" : "search-input").focus(),
  1: () => {
    location.hash = "ask";
  },
  2: () => {
    location.hash = "documents";
  },
  m: () => byId("memory-select").focus(),
  a: () => {
    location.hash = "documents";
    if (!state.readOnly) byId("file-input").click();
  },
  z: () => undoLast(),
  t: () => byId("theme-button").click(),
  "?": () => byId("help-button").click(),
};

function setUpShortcuts() {
  const box = byId("shortcuts-on");
  box.checked = recall("localStorage", "shortcuts") !== "off";
  box.addEventListener("change", () => remember("localStorage", "shortcuts", box.checked ? null : "off"));
  byId("help-button").addEventListener("click", () => byId("help-dialog").showModal());
  byId("help-close").addEventListener("click", () => byId("help-dialog").close());
  document.addEventListener("keydown", (event) => {
    const inDialog = document.querySelector("dialog[open]") !== null;
    if (event.key === "Escape" && !inDialog && stopAnswer()) event.preventDefault();
    const typing = event.target.closest("textarea, select, input:not([type=checkbox], [type=file])") !== null;
    if (inDialog || typing || !box.checked || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = SHORTCUTS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

setUpTheme();
setUpNotices();
setUpViewer();
setUpMemories();
setUpAsk();
setUpDocuments();
setUpAdding();
setUpKey();
setUpShortcuts();
setUpViews();
connect();
