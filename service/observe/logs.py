"""Logging of a process of the service: to standard error, JSON or text, the same from every part.

A JSON object a line: time (UTC), level, logger, message, pid, and while a request is answered its
request_id, trace_id and span_id. What a caller has sent can't break a line or feign another one:
control characters are escaped in either format.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from service.observe import request_context

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "text"]

OUR_PACKAGES = ("service", "cli", "model", "learning")

_others = {"debug": "INFO", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}
_line_ends = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029])
_escaped = {code: f"\\x{code:02x}" for code in _line_ends} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}


def configure(level: Level, form: Format) -> None:
    """Makes this process log so; what was configured before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(_Text() if text else _Json())
    handler.addFilter(_in_request)
    others = _others[level]
    logging.basicConfig(handlers=[handler], level=others, force=True)
    for name in OUR_PACKAGES:
        logging.getLogger(name).setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        # Its access log holds paths, and with them user ids; `log_requests` is in its place.
        logger.propagate = name != "uvicorn.access"
        logger.setLevel(others)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of_thread


def _in_request(record: logging.LogRecord) -> bool:
    context = request_context.current.get()
    if context is not None:
        record.request_id = context.request_id
        if context.trace_id is not None:
            record.trace_id, record.span_id = context.trace_id, context.span_id
    return True


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(JsonFormatter):
    def __init__(self) -> None:
        names = {
            "asctime": "time",
            "levelname": "level",
            "name": "logger",
            "message": "message",
            "process": "pid",
            "exc_info": "exception",
        }
        super().__init__(
            [name for name in names if name != "exc_info"],
            rename_fields=names,
            reserved_attrs=[*RESERVED_ATTRS, "taskName", "color_message"],
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if (request_id := getattr(record, "request_id", None)) is not None:
            line += f" [{request_id}]"
        lines = [line.translate(_escaped)]
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            lines += [f"  {part}".translate(_escaped) for part in trace.split("\n")]
        return "\n".join(lines)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger(__name__).critical("uncaught", exc_info=(kind, error, traceback))


def _log_uncaught_of_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None:
        _log_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
