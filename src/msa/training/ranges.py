"""The numbers of a configuration: finite and in their range, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Collection


def check_numbers(
    config: object,
    where: str = "",
    *,
    from_one: Collection[str] = (),
    positive: Collection[str] = (),
    shares: Collection[str] = (),
) -> None:
    """Refuse a number that is not finite, or out of its range: 0 or more where no other is named.

    Args:
        config: a dataclass; fields that hold no number are passed over.
        where: what it belongs to, for the message.
        from_one: fields of 1 or more.
        positive: fields above 0.
        shares: fields from 0 to 1.

    Raises:
        ValueError: the first that does not fit; names it.
    """
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, most = int(name in from_one), 1 if name in shares else math.inf
        if math.isfinite(value) and least <= value <= most and not (name in positive and value == 0):
            continue
        wanted = "in 0..1" if name in shares else f"{least} or more" if name not in positive else "above 0"
        raise ValueError(f"{f'{where}: ' if where else ''}{name} must be a number {wanted}, got {value}")
