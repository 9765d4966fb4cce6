"""What flows into a memory: a :class:`Document` is one text of the user's, with an id and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text of the user's.

    Attributes:
        id: the user's name for it, stable: adding the same id again updates the document.
        text: any Unicode text, may be empty.
        metadata: JSON-serialisable values; ``title`` and ``path`` are shown beside answers where present.
    """

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
