"""What a user should know of files that were read all the same, a line for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from msa.documents.formats import REPLACED


class Remarks:
    """Looks at the documents of one file after the other.

    Args:
        tell: called with each remark.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._decodings: Counter[str] = Counter()  # of the file being read

    def look(self, line: int | None, decoding: str | None) -> None:
        """At the next document: its line in a file of JSON lines, and how it was decoded if not as it should be."""
        if decoding:
            self._decodings[decoding if line is None else f"{decoding}\n"] += 1

    def end_file(self, shown: str) -> None:
        """Tell what there is to tell of the file just read; ``shown`` is its path."""
        for decoding, number in self._decodings.items():
            lines = f"{number:,} line{'s' * (number > 1)} of " if decoding.endswith("\n") else ""
            self._tell(f"{lines}{shown}: {_decoded(decoding.rstrip())}")
        self._decodings.clear()


def _decoded(decoding: str) -> str:
    if decoding.endswith(REPLACED):
        return f"not all of it is {decoding.removesuffix(REPLACED).upper()}; the other bytes became U+FFFD"
    return f"not UTF-8, read as {decoding}. If that is wrong, convert it: iconv -f ENCODING -t UTF-8 IN > OUT"
