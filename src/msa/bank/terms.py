"""Metadata as terms that filters look up: a digest of every key with its value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from msa.bank.schema import dump_json


def document_terms(metadata: Mapping[str, Any]) -> set[bytes]:
    """A digest of every key with its value."""
    return {term(key, value) for key, value in metadata.items()}


def filter_terms(where: Mapping[str, Any]) -> list[list[bytes]]:
    """Per condition of ``where`` the terms of which a document must have one.

    Raises:
        ValueError: an empty or non-string key, or a value JSON cannot express.
    """
    for key in where:
        if not isinstance(key, str) or not key:
            raise ValueError(f"the keys of where must be metadata keys, not empty, found {key!r}")
    return [
        [term(key, each) for each in (value if isinstance(value, list | tuple) else [value])]
        for key, value in where.items()
    ]


def term(key: str, value: Any) -> bytes:
    """The digest of a key with a value; equal digests mean values that are equal as JSON."""
    text = dump_json([key, _whole_floats_as_int(value)], f"the value of metadata key {key!r}")
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _whole_floats_as_int(value: Any) -> Any:
    # JSON has one kind of number: 1 and 1.0 are equal.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_floats_as_int(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_floats_as_int(each) for each in value]
    return value
