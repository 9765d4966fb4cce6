"""Typed access to the parts of one record of a training file; everything here raises :class:`Fault`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msa.training.data.collector import Collector, Fault, Place, read_records

_CORPUS_KEYS = ("_id", "id", "title", "text", "metadata")


def kind_of(value: Any) -> str:
    """A value's type in the words of JSON."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names[type(value)]


def as_object(value: Any, example: str) -> dict[str, Any]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise Fault("wrong type", f"expected an object such as {example}, found {kind_of(value)}")
    return value


def string(record: dict[str, Any], *keys: str) -> str:
    """The string under the first of these keys that the record has."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise missing(record, *keys)
    return _checked_string(record[key], key)


def optional_string(record: dict[str, Any], key: str) -> str | None:
    """The string under a key; None if it is missing or null."""
    value = record.get(key)
    return None if value is None else _checked_string(value, key)


def _checked_string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise Fault("wrong type", f'"{key}" is {kind_of(value)}. Give it as a string')
    return value


def optional_list(record: dict[str, Any], key: str) -> list[Any]:
    """The list under a key; empty if it is missing or null."""
    return [] if record.get(key) is None else as_list(record[key], key)


def as_list(value: Any, key: str) -> list[Any]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise Fault("wrong type", f'"{key}" is {kind_of(value)}. Give it as a list')
    return value


def missing(record: dict[str, Any], *keys: str) -> Fault:
    """The fault of a record that has none of these keys."""
    wanted = " or ".join(f'"{key}"' for key in keys)
    found = ", ".join(json.dumps(key, ensure_ascii=False) for key in list(record)[:8]) or "none"
    return Fault("missing key", f"has no {wanted} (its keys: {found})")


def identifier(record: dict[str, Any], *keys: str) -> str:
    """The id under the first of these keys that the record has; a number becomes its string."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise missing(record, *keys)
    value = record[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not _checked_string(value, key):
        raise Fault("wrong type", f'"{key}" is an empty string. Give the document a name')
    return value


def document_text(record: dict[str, Any], *keys: str) -> str:
    """The title, if there is one, on a line of its own, and the text (under ``keys``, else under ``text``)."""
    title, text = optional_string(record, "title"), string(record, *(keys or ("text",)))
    return f"{title}\n{text}" if title and title.strip() else text


def read_corpus(path: Path, collector: Collector, prefix: str = "") -> None:
    """Read ``{"id", "text"}`` or BEIR's ``{"_id", "title", "text"}`` into the corpus, ``prefix`` before each id."""
    found = False
    for place, record in read_records(path, collector):
        found = True
        with collector.faults(place):
            record = as_object(record, '{"id": "a", "text": "..."}')
            text = document_text(record)
            collector.add_document(prefix + identifier(record, "id", "_id"), text, place)
            collector.note_unused(record, _CORPUS_KEYS)
    if not found:
        collector.add_problem(Place(path.as_posix()), "empty corpus", "holds no documents")
