"""Memory that was freed, given back to the system.

glibc keeps what is freed for the thread that asked for it, and a server has dozens of threads: prompts and documents of
ever new lengths leave holes in all of them, and the process grows for hours while nothing is held. Whoever watches it
cannot tell this from a leak.
"""

from __future__ import annotations

import asyncio
import ctypes

TRIM_S = 10.0  # it takes some milliseconds; a busy server frees 40 MB a minute that glibc would keep


async def keep_trimming(every_s: float = TRIM_S) -> None:
    """Give free memory back again and again, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(trim)


def trim() -> bool:
    """Give back what is free on the C library's heap, as far as it can; whether there was any. Elsewhere: False."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # no glibc
        return False
