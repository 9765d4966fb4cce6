"""Metadata as terms that filters look up: a digest of every key with its value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from msa.bank.schema import dump_json
from msa.documents.json_values import json_problem


def document_terms(metadata: Mapping[str, Any]) -> set[bytes]:
    """A digest of every key with its value, and with each member of a value that is a list."""
    return {term(key, value) for key, value in metadata.items()} | member_terms(metadata)


def member_terms(metadata: Mapping[str, Any]) -> set[bytes]:
    """A digest of every key whose value is a list with each of its members."""
    lists = ((key, value) for key, value in metadata.items() if isinstance(value, list | tuple))
    return {term(key, member) for key, members in lists for member in members}


def filter_terms(where: Mapping[str, Any]) -> list[list[bytes]]:
    """Per condition of ``where`` the terms of which a document must have one.

    Raises:
        ValueError: no mapping, an empty or non-string key, or a value JSON cannot express or a memory not hold.
    """
    if not isinstance(where, Mapping):
        raise ValueError(f'where must be a mapping such as {{"lang": "en"}}, found one of type {type(where).__name__}')
    for key, value in where.items():
        if not isinstance(key, str) or not key:
            raise ValueError(f"the keys of where must be metadata keys, not empty, found {key!r}")
        if problem := json_problem(value):
            raise ValueError(f"no document can have the value of metadata key {key!r}: {problem}")
    return [
        [term(key, each) for each in (value if isinstance(value, list | tuple) else [value])]
        for key, value in where.items()
    ]


def term(key: str, value: Any) -> bytes:
    """The digest of a key with a value; equal digests mean values that are equal as JSON."""
    what = f"the value of metadata key {key!r}"
    # read back: JSON has one kind of number, so that 1 and 1.0 are equal
    text = dump_json(json.loads(dump_json([key, value], what), parse_float=_number), what)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _number(digits: str) -> float | int:
    number = float(digits)
    return int(number) if number.is_integer() else number
