"""Cut a long text into pieces of at most so many tokens, at the borders a reader would choose."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence

# Borders, best first; a border is the end of a match, so white space stays with the text before it.
_BORDERS = (
    re.compile(r"\n(?:[^\S\n]*\n)+|[\u2029\f]"),  # blank line
    re.compile(r"[\n\r\u0085\u2028]"),  # line end
    re.compile(r"[.!?…؟۔।][\"'”’»)\]]*\s|[。！？．｡][”’」』）】]*"),  # sentence end
    re.compile(r"[\s\u200b]"),  # white space
)
_MAX_BORDER_CHARS = 16  # how much of a border may lie before the last half it ends in
_MAX_CLUSTER_CHARS = 64  # how far back to look for the start of a character and its combining marks
_SHRINKS_BEFORE_HALVING = 4


def split_text(text: str, *, max_tokens: int, token_starts: Callable[[str], Sequence[int]]) -> list[tuple[int, int]]:
    """Cut ``text`` into consecutive spans of at most ``max_tokens`` tokens each.

    Each span is as long as the limit allows and then ends at the best border in its last half: a blank line, else a
    line end, a sentence end, white space, or any character. White space belongs to the span before the border. A
    letter is not parted from its combining marks, nor an emoji sequence cut, unless nothing else fits.

    The whole text is tokenised once, each span about once more: a piece may have other tokens than the same stretch
    of the whole, and a span that comes out too long is shortened until it fits.

    Args:
        text: any text.
        max_tokens: the most tokens a span may have. Only a single character that alone has more tokens exceeds it.
        token_starts: gives the offset in characters at which each token of a text starts, in ascending order.

    Returns:
        Spans ``(start, end)`` in characters that together are the whole text; ``[(0, 0)]`` for an empty one.

    Raises:
        ValueError: ``max_tokens < 1``.

    >>> words = lambda text: [match.start() for match in re.finditer(r"\\w+", text)]
    >>> split_text("One two. Three four five six", max_tokens=3, token_starts=words)
    [(0, 9), (9, 25), (25, 28)]
    """
    if max_tokens < 1:
        raise ValueError(f"expected max_tokens of at least 1, found {max_tokens}")
    starts = token_starts(text)
    if len(starts) <= max_tokens:
        return [(0, len(text))]
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        first = bisect_left(starts, start)
        if first and (first == len(starts) or starts[first] > start):
            first -= 1  # the span begins inside this token
        after = first + max_tokens
        limit = starts[after] if after < len(starts) else len(text)
        end = _fitting_end(text, start, max(limit, start + 1), max_tokens, token_starts)
        spans.append((start, end))
        start = end
    return spans


def _fitting_end(
    text: str, start: int, limit: int, max_tokens: int, token_starts: Callable[[str], Sequence[int]]
) -> int:
    """The end, at most ``limit``, of a span from ``start`` that has at most ``max_tokens`` tokens."""
    num_shrinks = 0
    while True:
        end = _best_border(text, start, limit)
        starts = token_starts(text[start:end])
        if len(starts) <= max_tokens or end == start + 1:
            return end
        num_shrinks += 1
        room = min(starts[max_tokens], end - start - 1)
        if num_shrinks > _SHRINKS_BEFORE_HALVING:  # a tokeniser may react to each cut with yet another tokenisation
            room = min(room, (end - start) // 2)
        limit = start + max(room, 1)


def _best_border(text: str, start: int, limit: int) -> int:
    if limit == len(text):
        return limit
    low = start + (limit - start) // 2
    for border in _BORDERS:
        end = -1
        for match in border.finditer(text, max(start, low - _MAX_BORDER_CHARS), limit):
            if match.end() >= low and not _is_inside_character(text, match.end(), start):
                end = match.end()
        if end > start:
            return end
    for end in range(limit, max(start, low, limit - _MAX_CLUSTER_CHARS), -1):
        if not _is_inside_character(text, end, start):
            return end
    return limit


def _is_inside_character(text: str, offset: int, start: int) -> bool:
    """Whether a cut at ``offset`` parts what is shown as one character; ``start`` is a cut already made."""
    before, after = text[offset - 1], text[offset]
    if after.isascii():
        return before == "\r" and after == "\n"
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return True
    if before == "\u200d" or after == "\u200d" or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    # skin tones, the tags of regional flags, the vowels and final consonants of decomposed Hangul
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f" or "\u1160" <= after <= "\u11ff":
        return True
    if _is_flag_half(before) and _is_flag_half(after):
        num_halves = 1
        while offset - num_halves > start and _is_flag_half(text[offset - num_halves - 1]):
            num_halves += 1
        return num_halves % 2 == 1
    return False


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
