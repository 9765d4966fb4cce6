"""Child processes for tests that kill them: forked by scripts that run in a process of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def fork(work: Callable[[], None]) -> int:
    """Do something in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
