// The dialog that shows one document, at the passage that was cited.

import { memoryPath, request } from "./api.js";
import { byId, count, el, marked, titleOf } from "./dom.js";
import { state, tell } from "./store.js";

const SHOWN = 200_000; // characters at a time; more makes browsers slow

let shown = null; // {memory, id}

export function setUpViewer() {
  byId("document-close").addEventListener("click", () => byId("document-dialog").close());
  byId("document-delete").addEventListener("click", () => {
    byId("document-dialog").close();
    tell("delete", shown);
  });
}

/** Show a document. `known` has its id, and perhaps text and metadata; `passage` is a {start, end} of `known.text`. */
export async function openDocument(memory, known, passage = null) {
  shown = { memory, id: known.id, title: titleOf(known) };
  const dialog = byId("document-dialog");
  byId("document-title").textContent = titleOf(known);
  byId("document-id").textContent = known.id;
  byId("document-text").textContent = "Loading…";
  byId("document-delete").hidden = state.readOnly || memory !== state.memory;
  drawNote("");
  drawMetadata(known.metadata ?? {});
  if (!dialog.open) dialog.showModal();
  const wanted = shown;
  let found;
  try {
    found = await request("GET", memoryPath(memory, "documents", known.id));
  } catch (error) {
    if (shown !== wanted) return;
    if (error.status === 401) tell("unauthorized");
    if (known.text === undefined) {
      byId("document-text").textContent = "";
      drawNote(error.message);
      return;
    }
    const gone = error.status === 404;
    drawNote(gone ? "This document is no longer in the memory; below is the text that was retrieved." : error.message);
    found = known;
    if (gone) byId("document-delete").hidden = true;
  }
  if (shown !== wanted) return;
  drawMetadata(found.metadata ?? {}, found.text.length);
  drawText(found.text, passage && known.text ? known.text.slice(passage.start, passage.end) : "");
}

function drawNote(text) {
  byId("document-note").textContent = text;
  byId("document-note").hidden = !text;
}

function drawText(text, cited) {
  const at = cited ? text.indexOf(cited) : -1;
  const from = Math.max(0, Math.min(at, text.length) - SHOWN / 2);
  const to = Math.min(text.length, from + SHOWN);
  const place = byId("document-text");
  place.replaceChildren(marked(text, at < 0 ? [] : [[at, at + cited.length]], from, to));
  if (to - from < text.length) drawNote(`Characters ${count(from + 1)} to ${count(to)} of ${count(text.length)}.`);
  place.scrollTop = 0;
  place.querySelector("mark")?.scrollIntoView({ block: "center" });
}

function drawMetadata(metadata, characters) {
  const facts = Object.entries(metadata).filter(([name]) => name !== "title" || metadata.title !== shown.title);
  if (characters !== undefined) facts.push(["length", `${count(characters)} characters`]);
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  byId("document-metadata").replaceChildren(
    ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: text(value) })]),
  );
  const original = byId("document-original");
  const url = webAddress(metadata.url);
  original.hidden = !url;
  if (url) original.href = url;
  else original.removeAttribute("href");
}

/** The address if it is one of the web's and nothing that runs. */
function webAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}
