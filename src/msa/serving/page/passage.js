// Which passage of a document an answer rests on: the sentence that shares most with it.

const LONGEST = 200_000; // characters that are looked at
const LONGEST_PASSAGE = 400;

const wordsOf = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

/** [start, end] of each sentence; lines part sentences too. */
function sentencesOf(text) {
  if (typeof Intl.Segmenter === "function") {
    const pieces = new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text);
    return Array.from(pieces, (piece) => [piece.index, piece.index + piece.segment.length]);
  }
  return Array.from(text.matchAll(/[^.!?\n]+[.!?\n]*\s*/g), (match) => [match.index, match.index + match[0].length]);
}

/**
 * The passage of `text` that supports `answer`; null if nothing does. A word counts the more the rarer it is in the
 * text, and the question's words only decide between sentences that share something with the answer.
 *
 * Returns {start, end, exact}: the sentence, and where in it the whole answer stands, if it does.
 */
export function citedPassage(text, answer, question = "") {
  const looked = text.slice(0, LONGEST);
  const said = answer.trim().replace(/[.!?]+$/, "");
  const exactAt = said.length > 1 ? looked.toLowerCase().indexOf(said.toLowerCase()) : -1;
  const sentences = sentencesOf(looked);
  if (exactAt >= 0 && looked.toLowerCase().length === looked.length) {
    const exact = [exactAt, exactAt + said.length];
    const around = sentences.find(([start, end]) => start <= exact[0] && exact[0] < end) ?? exact;
    return { ...trimmed(looked, around[0], Math.max(around[1], exact[1]), exact[0]), exact };
  }
  const rarity = new Map();
  for (const word of wordsOf(looked)) rarity.set(word, (rarity.get(word) ?? 0) + 1);
  const answered = new Set(wordsOf(answer));
  const asked = new Set(wordsOf(question));
  let best = null;
  let bestScore = 0;
  for (const [start, end] of sentences) {
    let shared = 0;
    let wanted = 0;
    for (const word of new Set(wordsOf(looked.slice(start, end)))) {
      const weight = (word.length < 4 && !/\p{N}/u.test(word) ? 0.1 : 1) / rarity.get(word);
      if (answered.has(word)) shared += weight;
      else if (asked.has(word)) wanted += 0.25 * weight;
    }
    if (shared >= 0.5 && shared + wanted > bestScore) [best, bestScore] = [[start, end], shared + wanted];
  }
  return best && { ...trimmed(looked, ...best, best[0]), exact: null };
}

/** Without the space around it, and no longer than a passage should be. */
function trimmed(text, start, end, anchor) {
  while (start < end && /\s/.test(text[start])) start += 1;
  while (end > start && /\s/.test(text[end - 1])) end -= 1;
  if (end - start > LONGEST_PASSAGE) {
    start = Math.max(start, anchor - LONGEST_PASSAGE / 2);
    end = Math.min(end, start + LONGEST_PASSAGE);
  }
  return { start, end };
}

/** Where to begin and end an excerpt around a passage: whole words, about `size` characters. */
export function excerptAround(text, passage, size = 320) {
  if (!passage) return [0, cut(text, Math.min(text.length, size))];
  const spare = Math.max(0, size - (passage.end - passage.start));
  let from = Math.max(0, passage.start - Math.floor(spare / 2));
  const to = cut(text, Math.min(text.length, passage.end + spare - (passage.start - from)));
  if (from > 0) {
    const space = text.indexOf(" ", from);
    if (space >= 0 && space < passage.start) from = space + 1;
  }
  return [from, to];
}

function cut(text, at) {
  if (at >= text.length) return text.length;
  const space = text.lastIndexOf(" ", at);
  return space > at - 30 ? space : at;
}
