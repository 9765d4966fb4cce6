"""Documents a row has taken in: each once, under one id."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b


def take_in(known: dict[str, bytes], documents: Mapping[str, str]) -> dict[str, str]:
    """Add documents (id → text) to those a row knows, and return the ones that are new to it.

    Args:
        known: id → digest of the text, for the documents taken in so far; the new ones are added.
        documents: what is given now.

    Raises:
        ValueError: a document is known with another text; nothing is added.

    >>> known = {}
    >>> take_in(known, {"a": "one"}), take_in(known, {"a": "one", "b": "two"}), list(known)
    ({'a': 'one'}, {'b': 'two'}, ['a', 'b'])
    """
    digests = {
        name: blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for name, text in documents.items()
    }
    changed = [name for name, digest in digests.items() if known.get(name, digest) != digest]
    if changed:
        raise ValueError(f"document {changed[0]!r} was taken in with another text; give it another id")
    new = {name: text for name, text in documents.items() if name not in known}
    known.update(digests)
    return new
