"""JSON as it is defined: bodies are parsed strictly."""

from __future__ import annotations

import json
import math
from typing import Any

from msa.serving.errors import invalid


def parse_json(raw: bytes) -> Any:
    """A body's JSON: no NaN, no infinities, no number that is too large to be one; an empty body is ``{}``.

    Raises:
        ApiError: it is not: 400.
    """
    if not raw.strip():
        return {}
    try:
        return json.loads(raw, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not JSON: {reason}", code="invalid_json") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:40]} is out of range")
    return number
