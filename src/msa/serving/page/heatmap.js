// Which router layers chose which documents: a table with a row for each document and a column for each layer.

import { el, titleOf } from "./dom.js";

const MOST_ROWS = 24;

/**
 * The table; null where there are no votes.
 *
 * `votes` maps each router layer to the ids it chose, best first; `sources`, the retrieved ones, give the titles. Of
 * more documents than fit, those that fewest layers chose are left out, but never a retrieved one.
 */
export function heatmap(votes, sources) {
  const layers = Object.keys(votes ?? {}).sort((a, b) => Number(a) - Number(b));
  const chosen = new Map(); // id → layer → rank
  for (const layer of layers) {
    for (const [rank, id] of [...new Set(votes[layer])].entries()) {
      if (!chosen.has(id)) chosen.set(id, new Map());
      chosen.get(id).set(layer, rank + 1);
    }
  }
  if (!chosen.size) return null;
  const titles = new Map(sources.map((source) => [source.id, titleOf(source)]));
  const all = [...chosen].sort(([, a], [, b]) => b.size - a.size || sumOf(a) - sumOf(b));
  const rows = all.filter(([id], place) => place < MOST_ROWS || titles.has(id));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col", text: "Document" }),
    ...layers.map((layer) => el("th", { scope: "col", text: layer })),
    el("th", { scope: "col", text: "Layers" }),
  );
  const body = rows.map(([id, ranks]) =>
    el(
      "tr",
      titles.has(id) ? { class: "retrieved" } : {},
      el("th", { scope: "row", text: titles.get(id) ?? id, title: id }),
      ...layers.map((layer) => cell(ranks.get(layer))),
      el("td", { class: "sum", text: `${ranks.size}/${layers.length}` }),
    ),
  );
  const table = el("table", { class: "heatmap" }, el("thead", {}, head), el("tbody", {}, ...body));
  const scrolled = el(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Choices of each router layer" },
    table,
  );
  const left = all.length - rows.length;
  const legend = el("p", {
    class: "muted",
    text:
      "Columns are router layers. A cell holds the document’s rank among those that the layer chose; " +
      "documents in bold were retrieved." +
      (left ? ` ${left} more were chosen by fewer layers.` : ""),
  });
  return el(
    "details",
    { class: "votes" },
    el("summary", { text: "Which layers chose which documents" }),
    scrolled,
    legend,
  );
}

const sumOf = (ranks) => [...ranks.values()].reduce((sum, rank) => sum + rank, 0);

function cell(rank) {
  if (rank === undefined) return el("td", { class: "none" }, el("span", { class: "unseen", text: "not chosen" }));
  return el("td", { class: `rank rank-${rank <= 1 ? 1 : rank <= 3 ? 2 : rank <= 8 ? 3 : 4}`, text: String(rank) });
}
