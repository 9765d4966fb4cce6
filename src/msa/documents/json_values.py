"""Values that can be kept as JSON and compared later: of a nesting that every reader can follow, and finite."""

from __future__ import annotations

import math
from typing import Any

MAX_NESTING = 100  # lists and objects inside each other; far below what JSON readers and Python's stack can do


def json_problem(value: Any) -> str | None:
    """What keeps a value from being stored; None: neither its nesting nor its numbers do.

    Goes through the value level by level, so a hostile depth costs nothing, and a value that contains itself ends.

    >>> json_problem({"a": [1.5, None]}), json_problem([float("nan")])
    (None, 'nan is not a number of JSON')
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        for each in level:
            if isinstance(each, float) and not math.isfinite(each):
                return f"{each} is not a number of JSON"
        containers = [each for each in level if isinstance(each, dict | list | tuple)]
        if not containers:
            return None
        # once each, however often it stands there
        level = [*{id(child): child for each in containers for child in _inside(each)}.values()]
    return f"lists and objects are nested more than {MAX_NESTING} levels deep"


def _inside(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Any:
    return value.values() if isinstance(value, dict) else value
