"""Lines of the server's log: one JSON object each, with the moment and what happened."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any


def log_line(event: str, **fields: Any) -> str:
    """One line; ``event`` says of what kind it is."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": moment, "event": event, **fields})


class JsonLines(logging.Handler):
    """Writes every record to standard error as such a line; those that are one already stay as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            text = record.getMessage()
            lines = [text if text.startswith("{") else self._line(record, text)]
            if text.startswith("{") and record.exc_info and record.exc_info[1] is not None:
                lines.append(self._line(record, "the exception of the line before"))
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
        except Exception:
            self.handleError(record)

    @staticmethod
    def _line(record: logging.LogRecord, text: str) -> str:
        more = {}
        if record.exc_info and record.exc_info[1] is not None:
            more["traceback"] = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
        return log_line("message", level=record.levelname.lower(), message=text, **more)
