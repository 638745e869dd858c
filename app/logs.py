"""How the program logs: one event, one line, readable on a terminal and JSON elsewhere.

This module owns the two formats and the one handler on the root logger. It refuses to let a value break out of its
line: control characters, line separators and direction marks are written as escapes. What is worth a line is decided
where it happens, as ``logger.info("committed", extra={"fields": {"messages": 12}})``; payloads and secrets have no
place in a message or a field above debug.
"""

import datetime as dt
import json
import logging
from collections.abc import Mapping
from typing import TextIO

LEVEL_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "FATAL"}
RESERVED = frozenset({"ts", "level", "logger", "message", "exception", "stack"})


class LineHandler(logging.StreamHandler[TextIO]):
    """The handler that configure_logging puts on the root logger, and replaces when called again."""


def configure_logging(level: str, log_format: str | None, stream: TextIO) -> None:
    """Makes the root logger write to ``stream``; handlers that others put there stay.

    Args:
        level: debug, info, warning or error.
        log_format: text or json; None takes text on a terminal and json elsewhere.
        stream: where the lines go; it stays open.
    """
    handler = LineHandler(stream)
    is_text = stream.isatty() if log_format is None else log_format == "text"
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    for other in [other for other in root.handlers if isinstance(other, LineHandler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())


def one_line(text: str) -> str:
    """Returns ``text`` with every character that is not printable written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class TextFormatter(logging.Formatter):
    """``12:00:01.123 INFO  streams.consumer  message key=value``, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one line."""
        time = dt.datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        level = LEVEL_NAMES.get(record.levelno, record.levelname)
        head = f"{time} {level:<5} {record.name}  {record.getMessage()}"
        pairs = [f"{key}={_quoted(value)}" for key, value in (_fields(record) | _traces(self, record)).items()]
        return one_line(" ".join([head, *pairs]))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (RFC 3339, UTC), level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one line; a field that JSON can't hold is written as text."""
        own: dict[str, object] = {
            "ts": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields, traces = _fields(record), _traces(self, record)
        try:
            return json.dumps(own | fields | traces, default=str, allow_nan=False)
        except (TypeError, ValueError):  # an infinite number, a key that is no text, an object inside itself
            return json.dumps(own | {key: str(value) for key, value in fields.items()} | traces)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {f"{key}_" if key in RESERVED else str(key): value for key, value in fields.items()}


def _traces(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    traces: dict[str, object] = {}
    if record.exc_info and record.exc_info[0] is not None:
        traces["exception"] = formatter.formatException(record.exc_info)
    if record.stack_info:
        traces["stack"] = record.stack_info
    return traces


def _quoted(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text, ensure_ascii=False)
