"""Tokens → text pieces: whole characters only, stop strings found across tokens, the hidden opening left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msa.documents import Protocol

_UNFINISHED = "\ufffd"  # what a cut UTF-8 sequence decodes to
# tokens; what goes on for longer is no quotation, and whoever waits for an answer is shown it
LONGEST_QUOTATION = 256


# tokens at the end of an answer that are decoded at every new one, and how many of them were before: some tokenizers
# treat the first token of a text in another way
_DECODED_AGAIN, _OVERLAP = 64, 8


class _Settled(NamedTuple):
    """Text that further tokens cannot change; of the tokens from ``overlap`` on it ends with so many characters."""

    text: str = ""
    overlap: int = 0
    overlap_characters: int = 0


class TextStream:
    """Text of one answer as its tokens arrive.

    Args:
        protocol: decodes tokens.
        stop: strings that end the answer; neither they nor what follows is shown.
        hidden_lead: opening that is dropped if the text starts with it.
        quotation_end: token up to which the model quotes before it answers; None: it does not quote.

    Attributes:
        text: everything shown so far; an opening that is not the model's may be put here before the first token.
        quotation: what the model quoted; quoted_tokens: how many tokens that took, its end among them.
        stopped: whether a stop string was met.
    """

    def __init__(
        self, protocol: Protocol, stop: Sequence[str] = (), hidden_lead: str = "", quotation_end: int | None = None
    ) -> None:
        self._protocol = protocol
        self._stop = [string for string in stop if string]
        self._hidden_lead = hidden_lead.strip()
        self._quotation_end = quotation_end  # None: nothing is being quoted, or no longer
        self._tokens: list[int] = []
        self._settled = _Settled()
        self._num_shown = 0  # characters of what the tokens say
        self._follows_opening = False
        self.text = ""
        self.quotation = ""
        self.quoted_tokens = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain to be shown and was not returned before."""
        if self.stopped:
            return ""
        if self._quotation_end is not None:
            if token == self._quotation_end:
                self.quoted_tokens = len(self._tokens) + 1
                self.quotation, self._tokens = self._protocol.decode(self._tokens).strip(), []
                self._quotation_end = None
                return ""
            self._tokens.append(token)
            if len(self._tokens) < LONGEST_QUOTATION:
                return ""
            self._quotation_end = None
            return self._advance(final=False)
        if not self._tokens:
            self._follows_opening = bool(self.text)
        self._tokens.append(token)
        return self._advance(final=False)

    def finish(self, cut: bool = False) -> str:
        """The rest of the text, once no token follows; ``cut``: the model would have gone on.

        A quotation that was cut shows nothing; one that never ended, or grew too long to be one, is the answer.
        """
        if self._quotation_end is not None and cut:
            self.quoted_tokens = len(self._tokens)
            return ""
        self._quotation_end = None
        return "" if self.stopped else self._advance(final=True, cut=cut)

    def _advance(self, final: bool, cut: bool = False) -> str:
        said = self._said()
        if cut:
            said = said.rstrip(_UNFINISHED)  # what would have completed the character does not come
        whole = self._visible(said, begun=final and not cut)
        found = [at for string in self._stop if (at := whole.find(string)) >= 0]
        if found:
            whole, self.stopped = whole[: min(found)], True
        if not final and not self.stopped:
            whole = whole[: len(whole) - self._held(whole)]
        piece = whole[self._num_shown :]
        self._num_shown += len(piece)
        self.text += piece
        return piece

    def _said(self) -> str:
        """The text of all tokens, of which only the last few are decoded again."""
        settled = self._settled
        text = settled.text + self._protocol.decode(self._tokens[settled.overlap :])[settled.overlap_characters :]
        if len(self._tokens) - settled.overlap > _DECODED_AGAIN and not text.endswith(_UNFINISHED):
            overlap = len(self._tokens) - _OVERLAP
            ending = self._protocol.decode(self._tokens[overlap:])
            if text.endswith(ending):  # not so if they begin within a character: then a little later
                self._settled = _Settled(text, overlap, len(ending))
        return text

    def _visible(self, text: str, begun: bool) -> str:
        """Without the hidden lead; of one that was only ``begun``: all, else nothing, for it may still be coming."""
        if self._follows_opening:
            return text  # its first space parts it from the opening
        text = text.lstrip()
        if not self._hidden_lead:
            return text
        if text.startswith(self._hidden_lead):
            return text[len(self._hidden_lead) :].lstrip()
        return "" if not begun and self._hidden_lead.startswith(text.rstrip(_UNFINISHED)) else text

    def _held(self, text: str) -> int:
        """Characters at the end that may still change: a cut character, the beginning of a stop string."""
        whole = text.rstrip(_UNFINISHED)
        cut = len(text) - len(whole)
        held = 0
        for string in self._stop:
            for size in range(min(len(string) - 1, len(whole)), 0, -1):
                if whole.endswith(string[:size]):
                    held = max(held, size)
                    break
        return held + cut
