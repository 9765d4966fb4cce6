"""Documents a row has taken in: each once, under one id."""

from __future__ import annotations

from collections.abc import Mapping


def take_in(known: dict[str, str], documents: Mapping[str, str]) -> dict[str, str]:
    """Add documents (id → text) to those a row knows, and return the ones that are new to it.

    Raises:
        ValueError: a document is known with another text; nothing is added.

    >>> known = {"a": "one"}
    >>> take_in(known, {"a": "one", "b": "two"}), known
    ({'b': 'two'}, {'a': 'one', 'b': 'two'})
    """
    changed = [name for name, text in documents.items() if known.get(name, text) != text]
    if changed:
        raise ValueError(f"document {changed[0]!r} was taken in with another text; give it another id")
    new = {name: text for name, text in documents.items() if name not in known}
    known.update(new)
    return new
