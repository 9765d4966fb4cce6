"""What tells contents apart: digests of JSON values and of files, to be kept with results made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CHARACTERS = 16


def value_digest(value: Any) -> str:
    """Digest of a JSON value; the order of an object's keys does not count.

    >>> value_digest({"a": 1, "b": [2]}) == value_digest({"b": (2,), "a": 1})
    True
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_CHARACTERS]


def files_digest(paths: Iterable[Path]) -> str:
    """Digest of the contents of files, in this order.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_CHARACTERS]
