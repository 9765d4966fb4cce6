"""What a user should know of files that were read all the same, a line for each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

from msa.documents.formats import REPLACED
from msa.documents.types import Document

_SHOWN_ID_CHARS = 100


class Remarks:
    """Looks at the documents of one file after the other.

    Args:
        tell: called with each remark.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._seen: dict[str, tuple[bytes, str, int | None]] = {}  # by id: a text's digest and where it was
        # of the file being read
        self._decodings: Counter[tuple[str, bool]] = Counter()  # and whether of lines
        self._replacing = ""  # the first document that replaces one of the same call
        self._num_replacing = 0

    def look(self, document: Document, shown: str, line: int | None, decoding: str | None) -> None:
        """At the next document.

        Args:
            document: the document.
            shown: the path of its file.
            line: its line in a file of JSON lines.
            decoding: how it was decoded if not as it should be.
        """
        if decoding:
            self._decodings[decoding, line is not None] += 1
        here = hashlib.blake2b(document.text.encode(), digest_size=16).digest(), shown, line
        there = self._seen.get(document.id)
        if there and there[0] != here[0]:
            self._num_replacing += 1
            self._replacing = self._replacing or (
                f"{_place(shown, line)}: replaces {_place(*there[1:])}, a document with the same id "
                f"{document.id[:_SHOWN_ID_CHARS]!r} and another text"
            )
        self._seen[document.id] = here

    def end_file(self, shown: str) -> None:
        """Tell what there is to tell of the file just read; ``shown`` is its path."""
        if self._replacing:
            more = f" ({self._num_replacing - 1:,} more of this file do so)" if self._num_replacing > 1 else ""
            self._tell(f"{self._replacing}{more}. Give each document an id of its own to keep both")
        self._replacing, self._num_replacing = "", 0
        for (decoding, of_lines), number in self._decodings.items():
            lines = f"{number:,} line{'s' * (number > 1)} of " if of_lines else ""
            self._tell(f"{lines}{shown}: {_decoded(decoding)}")
        self._decodings.clear()


def _place(shown: str, line: int | None) -> str:
    return shown if line is None else f"{shown}, line {line}"


def _decoded(decoding: str) -> str:
    if decoding.endswith(REPLACED):
        return f"not all of it is {decoding.removesuffix(REPLACED).upper()}; the other bytes became U+FFFD"
    return f"not UTF-8, read as {decoding}. If that is wrong, convert it: iconv -f ENCODING -t UTF-8 IN > OUT"
