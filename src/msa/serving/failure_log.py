"""How a failure of the server's is logged: where it happened, on one line of JSON, and no word of any document.

An exception's message may quote what was being worked on, so it is left out; at the level DEBUG it is shown too.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from msa.serving.log_lines import log_line

WORK_ID: ContextVar[str] = ContextVar("msa_work_id", default="")  # the request or operation at hand
_PACKAGES = Path(__file__).parents[2]  # where msa lies; names of files are told from there
_MOST_FRAMES = 64  # of one exception; recursion without end has a thousand


def log_failure(logger: logging.Logger, what: str, error: BaseException, code: str | None = None) -> None:
    """Write one line: what failed, the kinds of the exception and of its causes, and the way to each.

    Args:
        logger: of the module at hand.
        what: when it failed.
        error: the exception.
        code: the error's ``code`` in the API; None: nobody expected it.
    """
    line = {"message": f"{'' if code else 'unexpected '}{type(error).__name__} {what}"}
    if code:
        line["code"] = code
    if WORK_ID.get():
        line["id"] = WORK_ID.get()
    causes = [{"error": type(cause).__name__, **_reason(cause), "traceback": _frames(cause)} for cause in _chain(error)]
    # the error itself first, as in the message
    shown = error if logger.isEnabledFor(logging.DEBUG) else None
    logger.error("%s", log_line("error", **line, errors=causes), exc_info=shown)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _reason(error: BaseException) -> dict[str, str]:
    """What the system or SQLite says of an error by number: a full disk, for instance; of both no text is quoted."""
    if isinstance(error, OSError) and error.errno is not None:
        return {"reason": os.strerror(error.errno)}
    name = getattr(error, "sqlite_errorname", None) if isinstance(error, sqlite3.Error) else None
    return {"reason": name} if name else {}


def _frames(error: BaseException) -> list[str]:
    """Where an exception came from, the innermost call last."""
    frames = traceback.extract_tb(error.__traceback__)
    left_out = len(frames) - _MOST_FRAMES
    shown = [f"{_place(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames[-_MOST_FRAMES:]]
    return [f"({left_out} more)", *shown] if left_out > 0 else shown


def _place(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGES):
        return str(path.relative_to(_PACKAGES))
    return "/".join(path.parts[-3:])  # of libraries
