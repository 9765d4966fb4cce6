// The list of a memory's documents, a page at a time, and what a search finds.

import { memoryPath, request } from "./api.js";
import { byId, count, el, marked, plural, titleOf } from "./dom.js";
import { isPending } from "./notices.js";
import { citedPassage, excerptAround } from "./passage.js";
import { on, state, tell } from "./store.js";
import { openDocument } from "./viewer.js";

const PAGE = 25;
const HITS = 20;

let cursors = [null]; // behind which document each page begins, up to the one that is shown
let page = null; // {data, has_more, last_id, total}
let hits = null; // of a search; null: the list is shown
let asked = 0; // answers of older requests are dropped

export function setUpDocuments() {
  byId("page-next").addEventListener("click", () => turnPage(1));
  byId("page-previous").addEventListener("click", () => turnPage(-1));
  byId("list-all").addEventListener("click", showAll);
  byId("jump-add").addEventListener("click", () => {
    byId("adding").scrollIntoView();
    byId("file-input").focus();
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  byId("search-input").addEventListener("search", () => {
    if (!byId("search-input").value) showAll(); // the field's own button to clear it
  });
  on("memory", () => {
    byId("search-input").value = "";
    [cursors, page, hits] = [[null], null, null];
    asked += 1; // an answer on its way is about another memory
    if (state.view === "documents") load();
    else draw();
  });
  on("view", (view) => view === "documents" && load());
  on("documents", ({ memory, changed }) => {
    if (memory !== state.memory) return;
    if (changed) load();
    else draw();
  });
}

function showAll() {
  hits = null;
  byId("search-input").value = "";
  load();
}

function turnPage(step) {
  byId("page-previous").disabled = byId("page-next").disabled = true; // until that page is there
  if (step > 0) cursors.push(page.last_id);
  else cursors.pop();
  load().then(() => byId("browser").scrollIntoView({ block: "nearest" }));
}

/** Ask the server for the page that is shown, or for the search again. */
async function load() {
  if (hits !== null) return search();
  if (!state.memory) {
    page = null;
    return draw();
  }
  const turn = (asked += 1);
  const after = cursors.at(-1);
  const query = new URLSearchParams({ limit: PAGE, text: false, ...(after === null ? {} : { after }) });
  try {
    const found = await request("GET", `${memoryPath(state.memory, "documents")}?${query}`);
    if (turn !== asked) return undefined;
    page = found;
    if (!page.data.length && cursors.length > 1) {
      cursors.pop(); // the last page has become empty
      return load();
    }
  } catch (error) {
    if (turn !== asked) return undefined;
    if (error.code === "document_not_found" && cursors.length > 1) {
      cursors = [null]; // the document that the page began behind is gone
      return load();
    }
    return fail(error);
  }
  if (cursors.length === 1 && state.documents !== page.total) {
    state.documents = page.total;
    tell("stats");
  }
  return draw();
}

async function search() {
  const query = byId("search-input").value.trim();
  if (!query || !state.memory) return showAll();
  const turn = (asked += 1);
  byId("list-range").textContent = "Searching…";
  try {
    const body = { query, top_k: HITS, hybrid: byId("search-hybrid").checked };
    const { data } = await request("POST", memoryPath(state.memory, "search"), body);
    if (turn !== asked) return undefined;
    hits = data;
  } catch (error) {
    return turn === asked ? fail(error) : undefined;
  }
  return draw();
}

function fail(error) {
  if (error.status === 401) tell("unauthorized");
  [cursors, page, hits] = [[null], null, null];
  draw();
  byId("list-all").hidden = false; // to try again
  drawEmpty("This cannot be shown", error.message + (error.details ? ` (${error.details})` : ""));
}

function draw() {
  const searching = hits !== null;
  const shown = (searching ? hits : (page?.data ?? [])).filter((document) => !isPending(state.memory, document.id));
  byId("list-title").textContent = searching ? "Found" : "Documents";
  byId("list-all").hidden = !searching;
  byId("pager").hidden = searching || !page || (cursors.length === 1 && !page.has_more);
  byId("page-previous").disabled = cursors.length === 1;
  byId("page-next").disabled = !page?.has_more;
  byId("list-range").textContent = range(searching);
  const query = byId("search-input").value.trim();
  const best = Math.max(...shown.map((hit) => hit.score ?? 0), 1e-9);
  byId("document-list").replaceChildren(...shown.map((document) => item(document, query, best)));
  if (shown.length) byId("list-empty").hidden = true;
  else drawEmpty(...emptyTexts(searching));
}

function range(searching) {
  if (searching) return plural(hits.length, "document");
  if (!page?.total) return "";
  const first = (cursors.length - 1) * PAGE + 1;
  return `${count(first)}–${count(first + page.data.length - 1)} of ${count(page.total)}`;
}

function emptyTexts(searching) {
  if (!state.connected) return ["", ""];
  if (!state.memory) return ["No memory is chosen", "Make one with “New…” above."];
  if (searching) return ["Nothing found", "The memory holds no documents."];
  if (page?.data.length) return ["Nothing left on this page", "What stood here is about to be deleted."];
  return page ? ["No documents yet", "Drop files into the box, or write a text."] : ["Loading…", ""];
}

function drawEmpty(title, text) {
  byId("list-empty").hidden = false;
  byId("list-empty-title").textContent = title;
  byId("list-empty-text").textContent = text;
}

function item(document, query, best) {
  const title = titleOf(document);
  const open = el("button", {
    type: "button",
    class: "title",
    text: title,
    on: {
      click: () => openDocument(state.memory, document, document.text ? citedPassage(document.text, query) : null),
    },
  });
  const facts = title === document.id ? [] : [el("span", { class: "mono id", text: document.id })];
  if (document.characters !== undefined) facts.push(el("span", { text: `${count(document.characters)} characters` }));
  facts.push(
    ...Object.entries(document.metadata ?? {})
      .filter(([name]) => name !== "title" && name !== "path")
      .slice(0, 4)
      .map(([name, value]) =>
        el("span", { text: `${name}=${typeof value === "string" ? value : JSON.stringify(value)}` }),
      ),
  );
  if (document.score !== undefined) {
    facts.push(
      el("meter", { min: 0, max: 1, value: Math.max(0, document.score / best), "aria-label": `Score of ${title}` }),
      el("span", { class: "mono", text: document.score.toFixed(3), title: `Ranked by ${document.ranking}` }),
    );
  }
  return el(
    "li",
    {},
    el(
      "div",
      { class: "body" },
      open,
      document.text ? excerpt(document.text, query) : null,
      el("div", { class: "row small muted" }, ...facts),
    ),
    state.readOnly ? null : deleteButton(document, title),
  );
}

function excerpt(text, query) {
  const passage = citedPassage(text, query);
  const [from, to] = excerptAround(text, passage, 240);
  return el(
    "p",
    { class: "excerpt" },
    from > 0 ? "… " : "",
    marked(text, passage ? [[passage.start, passage.end]] : [], from, to),
    to < text.length ? " …" : "",
  );
}

function deleteButton(document, title) {
  const remove = (event) => {
    const row = event.target.closest("li");
    const index = [...row.parentElement.children].indexOf(row);
    tell("delete", { memory: state.memory, id: document.id, title });
    const rows = byId("document-list").children; // the focus must not be lost with the row
    (rows[Math.min(index, rows.length - 1)]?.querySelector(".delete") ?? byId("main")).focus({ preventScroll: true });
  };
  return el("button", {
    type: "button",
    class: "quiet delete",
    text: "Delete",
    "aria-label": `Delete ${title}`,
    on: { click: remove },
  });
}
