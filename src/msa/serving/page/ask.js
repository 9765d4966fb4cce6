// The view that asks: the question, its options, and the answers as they stream in.

import { ApiError, stream } from "./api.js";
import { openDocument } from "./viewer.js";
import { announce, byId, plural } from "./dom.js";
import { on, recall, remember, state, tell } from "./store.js";
import { TurnView, newTurn, place, take } from "./turn.js";

const KEPT = 20; // turns remembered over a reload
const EARLIER = 6; // turns sent as history

let turns = [];
let running = null; // the AbortController of the answer that streams in

export function setUpAsk() {
  const form = byId("composer");
  const question = byId("question");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(question.value);
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask(question.value);
  });
  byId("stop-button").addEventListener("click", stopAnswer);
  byId("clear-turns").addEventListener("click", clear);
  on("memory", drawEmpty);
  on("stats", drawEmpty);
  on("forget", clear);
  restore();
}

/** Stop the answer that streams in; says whether there was one. */
export function stopAnswer() {
  running?.abort();
  return running !== null;
}

async function ask(text) {
  const question = text.trim();
  const field = byId("question");
  if (!question || running) {
    field.focus();
    return;
  }
  if (!state.memory) {
    tell("notice", "Choose or make a memory first.");
    return;
  }
  let body;
  try {
    body = requestBody(question);
  } catch (error) {
    byId("options").open = true;
    tell("notice", error.message);
    return;
  }
  field.value = "";
  const turn = newTurn(state.memory, question);
  turns.push(turn);
  drawEmpty();
  await answer(turn, body);
}

async function answer(turn, body) {
  const view = new TurnView(turn, actions);
  place(view);
  running = new AbortController();
  drawRunning();
  announce("Asked. Looking for documents.");
  try {
    for await (const event of stream("v1/chat/completions", body, running.signal)) view.update(take(turn, event));
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else turn.error = { message: error.message, details: error.details ?? "", status: error.status };
    if (error instanceof ApiError && error.status === 401) tell("unauthorized");
    if (!(error instanceof ApiError) && error.name !== "AbortError") throw error;
  } finally {
    running = null;
    view.finish();
    drawRunning();
    save();
  }
  if (!turn.error) announce(`Answered, with ${plural(turn.sources.length, "source")}.`);
}

/** The request for a question, with the options that are set. */
function requestBody(question) {
  const body = {
    model: `${state.model}@${state.memory}`,
    messages: [...(byId("option-history").checked ? history() : []), { role: "user", content: question }],
    stream: true,
    stream_events: true,
    stream_options: { include_usage: true },
  };
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  body.retrieval = byId("option-retrieval").value || undefined;
  body.max_documents = number("option-documents");
  body.max_rounds = number("option-rounds");
  body.max_tokens = number("option-tokens");
  body.temperature = number("option-temperature");
  if (byId("option-hybrid").checked) body.hybrid = true;
  const where = readFilter(byId("option-where").value);
  if (where) body.where = where;
  return body; // what is undefined is not sent
}

function history() {
  const earlier = turns.filter((turn) => turn.memory === state.memory && turn.text && !turn.error).slice(-EARLIER);
  return earlier.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.text },
  ]);
}

/** `lang=en, year=2024` as the API's `where`; numbers, true and false are taken as such unless in quotes. */
function readFilter(text) {
  const found = {};
  for (const piece of text.split(",").filter((part) => part.trim())) {
    const [name, ...rest] = piece.split("=");
    const value = rest.join("=").trim();
    if (!name.trim() || !rest.length)
      throw new Error(`The metadata filter needs name=value, separated by commas; “${piece.trim()}” is not.`);
    try {
      found[name.trim()] = JSON.parse(value);
    } catch {
      found[name.trim()] = value;
    }
  }
  return Object.keys(found).length ? found : null;
}

const actions = {
  open: openDocument,
  retry(turn) {
    if (!running) ask(turn.question);
  },
};

function clear() {
  stopAnswer();
  turns = [];
  byId("turns").replaceChildren();
  save();
  drawEmpty();
  byId("question").focus();
}

function drawRunning() {
  byId("stop-button").hidden = !running;
  byId("ask-button").hidden = Boolean(running);
}

function drawEmpty() {
  byId("clear-turns").hidden = !turns.length;
  byId("ask-empty").hidden = turns.length > 0;
  const [title, text, link] = emptyTexts();
  byId("ask-empty-title").textContent = title;
  byId("ask-empty-text").textContent = text;
  byId("ask-empty-actions").hidden = !link;
}

function emptyTexts() {
  if (!state.connected) return ["Ask a memory", "", false];
  if (!state.memories.length) {
    return ["No memory yet", "Make one with “New…” above, then add documents to it and ask about them.", false];
  }
  if (state.available === false) {
    return ["Another model’s memory", `This memory was not made by ${state.model} and cannot be asked by it.`, false];
  }
  if (state.documents === 0) return ["This memory is empty", "Add some documents, then ask about them.", true];
  const number = state.documents === undefined ? "this memory" : plural(state.documents, "document");
  return [
    `Ask ${number}`,
    "The routers choose documents, the model reads them and answers. What it read stands beside the answer.",
    false,
  ];
}

function save() {
  // a document can be long, and the browser keeps some megabytes: then the oldest turns go
  for (let kept = turns.slice(-KEPT); ; kept = kept.slice(1)) {
    if (remember("sessionStorage", "turns", kept.length ? JSON.stringify(kept) : null) || !kept.length) return;
  }
}

function restore() {
  try {
    turns = JSON.parse(recall("sessionStorage", "turns") ?? "[]");
    for (const turn of turns) byId("turns").append(new TurnView(turn, actions).element);
  } catch {
    turns = []; // another version of this page wrote it
    byId("turns").replaceChildren();
  }
  drawEmpty();
}
