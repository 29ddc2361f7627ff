"""Structured logs: one JSON object a line on stderr; numbers and names, never text of a prompt or an answer."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

_logger = logging.getLogger("kvlab.server")


def log(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log ``event`` with ``facts``: numbers, names and reasons."""
    _logger.log(level, event, extra={"facts": facts})


def to_stderr() -> None:
    """Write the server's log to stderr; for the command line, not for notebooks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    _logger.handlers = [handler]
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        return json.dumps(line, default=str)
