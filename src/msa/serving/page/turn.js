// One question and its answer: drawn while the answer streams in, and again from memory after a reload.

import { announce, byId, count, el, marked, plural, seconds, titleOf } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { citedPassage, excerptAround } from "./passage.js";

/** A question that has just been asked. */
export const newTurn = (memory, question) => ({
  memory,
  question,
  text: "",
  rounds: [],
  sources: [],
  citations: [],
  votes: null,
  timings: null,
  usage: null,
  notes: [],
  finish: null,
  error: null,
  done: false,
});

/** Put one event of the stream into a turn. Says what changed. */
export function take(turn, event) {
  const changed = new Set();
  const choice = event.choices?.[0];
  const about = event.msa ?? {};
  if (typeof about.round === "number") {
    let round = turn.rounds.find((known) => known.number === about.round);
    if (!round) turn.rounds.push((round = { number: about.round, retrieved: [] }));
    if (about.retrieved) {
      round.retrieved.push(about.retrieved.id);
      if (!turn.sources.some((source) => source.id === about.retrieved.id)) turn.sources.push(about.retrieved);
      changed.add("sources");
    }
    changed.add("rounds");
  }
  if (Array.isArray(about.rounds)) {
    turn.rounds = about.rounds.map(({ retrieved }, index) => ({ number: index + 1, retrieved }));
    changed.add("rounds");
  }
  if (about.votes) turn.votes = { ...turn.votes, ...about.votes };
  if (about.timings) turn.timings = about.timings;
  if (about.notes) turn.notes = about.notes;
  if (event.sources) turn.sources = event.sources;
  if (event.usage) turn.usage = event.usage;
  if (choice?.delta?.annotations)
    turn.citations = choice.delta.annotations.map((annotation) => annotation.url_citation);
  if (choice?.delta?.content) {
    turn.text += choice.delta.content;
    changed.add("text");
  }
  if (choice?.finish_reason) turn.finish = choice.finish_reason;
  return changed;
}

/** The part of the page that shows one turn. */
export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions; // {open(source, passage), retry(turn)}
    this.rounds = el("ol", { class: "rounds", "aria-label": "Rounds of retrieval" });
    this.answer = el("div", { class: "answer", "aria-live": "polite", "aria-busy": "true" });
    this.meta = el("div", { class: "meta muted" });
    this.votes = el("div");
    this.sources = el("ol", { class: "sources" });
    this.sourcesTitle = el("h3", { text: "Sources" });
    this.element = el(
      "article",
      { class: "turn", "aria-label": `Question: ${turn.question}` },
      el(
        "header",
        {},
        el("h2", { class: "asked", text: turn.question }),
        el("span", { class: "muted mono", text: turn.memory }),
      ),
      el("div", { class: "said" }, this.rounds, this.answer, this.meta, this.votes),
      el("section", { class: "beside", "aria-label": "Sources of the answer" }, this.sourcesTitle, this.sources),
    );
    this.drawRounds();
    this.drawSources();
    if (turn.done) this.finish();
    else this.answer.append((this.typed = document.createTextNode(turn.text)));
  }

  /** Draw what {@link take} has changed. */
  update(changed) {
    if (changed.has("rounds")) this.drawRounds();
    if (changed.has("sources")) this.drawSources();
    if (changed.has("text")) {
      const below = document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
      this.typed.appendData(this.turn.text.slice(this.typed.length));
      this.element.classList.add("writing");
      if (this.rounds.querySelector(".running")) {
        this.drawRounds();
        this.drawSources();
      }
      if (below < 40) window.scrollTo(0, document.documentElement.scrollHeight); // whoever reads above is left there
    }
  }

  drawRounds() {
    const { turn } = this;
    const items = turn.rounds.map((round, index) => this.roundItem(round, index === turn.rounds.length - 1));
    if (!items.length && !turn.done) items.push(el("li", { class: "running" }, "Waiting for the model"));
    this.rounds.replaceChildren(...items);
    const last = turn.rounds.at(-1);
    if (last && !turn.done && !turn.text) {
      announce(
        last.retrieved.length
          ? `Round ${last.number}: found ${this.nameOf(last.retrieved.at(-1))}`
          : `Round ${last.number}`,
      );
    }
  }

  roundItem(round, isLast) {
    const { turn } = this;
    const running = isLast && !turn.done && !turn.text;
    const found = round.retrieved.map((id) =>
      el("button", {
        type: "button",
        class: "chip",
        text: this.nameOf(id),
        title: id,
        on: { click: () => this.goTo(id) },
      }),
    );
    const more = round.number > 1 ? "nothing more" : "no document";
    const rest = running ? "looking…" : `${more} ${isLast && turn.text ? "needed, answered" : "found"}`;
    return el(
      "li",
      { class: running ? "running" : "" },
      el("span", { class: "label", text: `Round ${round.number}` }),
      ...(found.length ? found : [el("span", { class: "muted", text: rest })]),
    );
  }

  nameOf(id) {
    const source = this.turn.sources.find((known) => known.id === id);
    return source ? titleOf(source) : id;
  }

  goTo(id) {
    const card = [...this.sources.children].find((item) => item.dataset.id === id);
    card?.scrollIntoView({ block: "nearest" });
    card?.querySelector("button")?.focus();
  }

  drawSources() {
    const { turn } = this;
    const best = Math.max(...turn.sources.map((source) => source.score), 1e-9);
    this.sourcesTitle.textContent = turn.sources.length ? `Sources (${turn.sources.length})` : "Sources";
    const items = turn.sources.map((source, index) => this.sourceItem(source, index + 1, best));
    if (!items.length) {
      const text = turn.error
        ? "None."
        : turn.done || turn.text
          ? "No document was retrieved."
          : "Documents appear here as they are found.";
      items.push(el("li", { class: "muted none", text }));
    }
    this.sources.replaceChildren(...items);
  }

  sourceItem(source, number, best) {
    const { turn } = this;
    const passage = source.read && turn.done && turn.text ? citedPassage(source.text, turn.text, turn.question) : null;
    const [from, to] = excerptAround(source.text, passage);
    const excerpt = el(
      "p",
      { class: "excerpt" },
      from > 0 ? "… " : "",
      marked(source.text, passage ? [[passage.start, passage.end]] : [], from, to),
      to < source.text.length ? " …" : "",
    );
    if (passage?.exact) strengthen(excerpt, source.text.slice(...passage.exact));
    const open = el("button", {
      type: "button",
      class: "title",
      text: titleOf(source),
      title: "Open the document",
      on: { click: () => this.actions.open(turn.memory, source, passage) },
    });
    const score = el("meter", {
      min: 0,
      max: 1,
      value: Math.max(0, source.score / best),
      "aria-label": `Score of ${titleOf(source)}`,
    });
    const { part, parts } = source;
    return el(
      "li",
      { data: { id: source.id } },
      el(
        "div",
        { class: "row" },
        el("span", { class: "number", text: String(number) }),
        open,
        source.read
          ? el("span", { class: "tag", text: "read", title: "The model was given this text" })
          : el("span", { class: "tag weak", text: "found", title: "Retrieved; the model was not given its text" }),
      ),
      excerpt,
      el(
        "div",
        { class: "row small muted" },
        el("span", { class: "mono id", text: titleOf(source) === source.id ? "" : source.id }),
        parts > 1 ? el("span", { text: `part ${part} of ${parts}` }) : null,
        score,
        el("span", { class: "mono", text: source.score.toFixed(3), title: `Ranked by ${source.ranking ?? "memory"}` }),
      ),
    );
  }

  /** The answer is complete, or will not be. */
  finish() {
    const { turn } = this;
    turn.done = true;
    this.element.classList.remove("writing");
    this.drawRounds();
    this.drawSources();
    this.answer.replaceChildren(...this.citedText());
    if (turn.error) this.answer.append(this.errorBox());
    this.answer.setAttribute("aria-busy", "false");
    this.drawMeta();
    const table = heatmap(turn.votes, turn.sources);
    this.votes.replaceChildren(...(table ? [table] : []));
  }

  /** The answer with a number behind everything that is cited. */
  citedText() {
    const { turn } = this;
    const characters = Array.from(turn.text); // the server counts code points
    const parts = [];
    let at = 0;
    const whole = [];
    for (const citation of [...turn.citations].sort((a, b) => a.start_index - b.start_index)) {
      const index = turn.sources.findIndex((source) => source.url === citation.url);
      if (index < 0) continue;
      const spansAll = citation.start_index === 0 && citation.end_index >= characters.length;
      if (spansAll || citation.start_index < at) {
        whole.push(index);
        continue;
      }
      parts.push(
        characters.slice(at, citation.start_index).join(""),
        el("span", { class: "cited", text: characters.slice(citation.start_index, citation.end_index).join("") }),
        this.mark(index),
      );
      at = citation.end_index;
    }
    parts.push(characters.slice(at).join(""), ...whole.map((index) => this.mark(index)));
    return parts;
  }

  mark(index) {
    const source = this.turn.sources[index];
    return el("button", {
      type: "button",
      class: "cite",
      text: String(index + 1),
      "aria-label": `Source ${index + 1}: ${titleOf(source)}`,
      on: { click: () => this.goTo(source.id) },
    });
  }

  errorBox() {
    const { error } = this.turn;
    return el(
      "div",
      { class: "error box", role: "alert" },
      el("p", { text: error.message }),
      error.details ? el("p", { class: "mono small", text: error.details }) : null,
      el("button", { type: "button", text: "Ask again", on: { click: () => this.actions.retry(this.turn) } }),
    );
  }

  drawMeta() {
    const { turn } = this;
    const facts = [];
    const ends = {
      stop: "complete",
      length: "cut: token limit reached",
      cancelled: "stopped",
      stopped: "stopped by you",
    };
    if (turn.finish) facts.push(["finish reason", ends[turn.finish] ?? turn.finish]);
    if (turn.rounds.length) facts.push(["rounds", plural(turn.rounds.length, "round")]);
    if (turn.usage) {
      const { prompt_tokens: prompt, completion_tokens: written } = turn.usage;
      facts.push(["tokens read + written", `${count(prompt)} + ${count(written)} tokens`]);
    }
    const names = { route: "retrieval", first_token: "first token", total: "in all" };
    for (const [name, value] of Object.entries(turn.timings ?? {})) {
      facts.push([`time: ${name}`, `${names[name] ?? name.replaceAll("_", " ")} ${seconds(value)}`]);
    }
    const items = facts.map(([title, text]) => el("li", { text, title }));
    if (turn.text && navigator.clipboard) items.push(el("li", {}, this.copyButton()));
    this.meta.replaceChildren(
      el("ul", { "aria-label": "About this answer" }, ...items),
      ...turn.notes.map((note) => el("p", { text: `Note: ${note}.` })),
    );
  }

  copyButton() {
    const copy = async (event) => {
      await navigator.clipboard.writeText(this.turn.text);
      event.target.textContent = "Copied";
    };
    return el("button", { type: "button", class: "link", text: "Copy", on: { click: copy } });
  }
}

/** Stress the answer itself inside the marked passage. */
function strengthen(excerpt, said) {
  for (const mark of excerpt.querySelectorAll("mark")) {
    const at = mark.textContent.indexOf(said);
    if (at < 0) continue;
    const text = mark.textContent;
    mark.replaceChildren(text.slice(0, at), el("strong", { text: said }), text.slice(at + said.length));
  }
}

/** Put a view at the end of the conversation and show it. */
export function place(view) {
  byId("turns").append(view.element);
  view.element.scrollIntoView({ block: "start" });
}
