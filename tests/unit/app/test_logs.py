"""The log formats, and that no value leaves its line."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.logs import JsonFormatter, LineHandler, TextFormatter, configure_logging, one_line


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was after the test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield root
    root.setLevel(level)
    root.handlers[:] = handlers


def record(message: str = "message", **attributes: Any) -> logging.LogRecord:
    """A record of 2024-02-03 04:05:06.789 UTC."""
    facts = {"name": "streams.consumer", "levelno": logging.INFO, "levelname": "INFO", "msg": message}
    return logging.makeLogRecord(facts | {"created": 1706933106.789} | attributes)


def failure() -> Any:
    """What the logging module keeps of an exception with two lines."""
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        return sys.exc_info()


def test_text_has_time_level_logger_message_and_fields() -> None:
    """A line for people: local time with milliseconds, then columns, then key=value."""
    line = TextFormatter().format(record("committed", fields={"messages": 12, "table": "signals"}))
    time, rest = line.split(" ", 1)
    assert (len(time), time[2:3], time[5:]) == (len("12:00:01.123"), ":", ":06.789")
    assert rest == "INFO  streams.consumer  committed messages=12 table=signals"


@pytest.mark.parametrize(
    ("level", "shown"), [("DEBUG", "DEBUG "), ("WARNING", "WARN  "), ("ERROR", "ERROR "), ("CRITICAL", "FATAL ")]
)
def test_text_levels_are_of_one_width(level: str, shown: str) -> None:
    """Each level takes five letters, so that the loggers' names stand in a column."""
    line = TextFormatter().format(record(levelno=logging.getLevelNamesMapping()[level], levelname=level))
    assert line.split(" ", 1)[1].startswith(f"{shown}streams.consumer")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("two words", '"two words"', id="space"),
        pytest.param("a=b", '"a=b"', id="equals"),
        pytest.param('say "x"', r'"say \"x\""', id="quotes"),
        pytest.param("", '""', id="empty"),
        pytest.param("a\nERROR b", r'"a\nERROR b"', id="newline"),
        pytest.param("\x1b[2J", r'"\u001b[2J"', id="escape-sequence"),
        pytest.param("a\u2028b", r'"a\u2028b"', id="line-separator"),
        pytest.param("é", "é", id="letter"),
        pytest.param(None, "None", id="none"),
    ],
)
def test_text_quotes_what_could_pass_for_another_field(value: object, shown: str) -> None:
    """A value that has spaces, quotes or control characters is quoted, so nobody forges a field or a line."""
    assert TextFormatter().format(record(fields={"key": value})).endswith(f"message key={shown}")


def test_text_writes_an_exception_as_one_field() -> None:
    """The whole traceback is there, in the line of its event."""
    line = TextFormatter().format(record(exc_info=failure()))
    assert 'message exception="Traceback (most recent call last):\\n' in line
    assert line.endswith(r'RuntimeError: first\nsecond"')
    assert len(line.splitlines()) == 1


def test_json_has_time_level_logger_message_and_fields() -> None:
    """One object: an RFC 3339 instant in UTC, lower-case level, logger, message, then the fields."""
    line = JsonFormatter().format(record("committed", fields={"messages": 12, "ok": True}))
    assert json.loads(line) == {
        "ts": "2024-02-03T04:05:06.789Z",
        "level": "info",
        "logger": "streams.consumer",
        "message": "committed",
        "messages": 12,
        "ok": True,
    }


def test_json_keeps_its_own_names() -> None:
    """A field called like one of the line's own gets a mark and replaces nothing."""
    parsed = json.loads(JsonFormatter().format(record(fields={"level": "x", "message": "y"})))
    assert (parsed["level"], parsed["message"]) == ("info", "message")
    assert (parsed["level_"], parsed["message_"]) == ("x", "y")


def test_json_writes_exception_and_stack_as_fields() -> None:
    """Traceback and stack are text fields of their event."""
    parsed = json.loads(JsonFormatter().format(record(exc_info=failure(), stack_info="Stack:\n  here")))
    assert parsed["exception"].endswith("RuntimeError: first\nsecond")
    assert parsed["stack"] == "Stack:\n  here"


def test_json_leaves_out_an_exception_that_is_none() -> None:
    """Asking for the traceback where nothing was raised adds no field."""
    assert "exception" not in json.loads(JsonFormatter().format(record(exc_info=(None, None, None))))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param({1, 2}, "{1, 2}", id="set"),
        pytest.param(float("inf"), "inf", id="infinite"),
        pytest.param({(1, 2): 3}, "{(1, 2): 3}", id="key-is-no-text"),
    ],
)
def test_json_writes_as_text_what_json_can_not_hold(value: object, shown: str) -> None:
    """A field of any type is logged; the line stays valid JSON."""
    line = JsonFormatter().format(record(fields={"key": value}))
    assert json.loads(line, parse_constant=pytest.fail)["key"] == shown


def test_json_keeps_the_types_of_other_fields() -> None:
    """A field that is no JSON becomes text by itself; the numbers beside it stay numbers."""
    parsed = json.loads(JsonFormatter().format(record(fields={"path": Path("a/b"), "messages": 12})))
    assert (parsed["path"], parsed["messages"]) == ("a/b", 12)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_formatters_ignore_fields_of_another_kind(formatter: logging.Formatter) -> None:
    """A library that puts something else under the same name breaks no line."""
    assert formatter.format(record(fields="not a mapping")) == formatter.format(record())


@settings(deadline=None)
@given(st.text(), st.text(), st.sampled_from([TextFormatter(), JsonFormatter()]))
def test_formatters_write_one_printable_line(message: str, value: str, formatter: logging.Formatter) -> None:
    """Whatever message, key and value hold, the line has one end and no control character."""
    line = formatter.format(record(message.replace("%", "%%"), fields={value: value}))
    assert line.isprintable()
    line.encode("utf-8")


def test_one_line_leaves_printable_text_alone() -> None:
    """Letters of any script pass; what moves the cursor or turns the direction is written out."""
    assert one_line("Größe 尺") == "Größe 尺"
    assert one_line("a\r\nb\x7f\u202e\ud800") == r"a\r\nb\x7f\u202e\ud800"


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        pytest.param(Terminal(), None, False, id="terminal"),
        pytest.param(io.StringIO(), None, True, id="pipe"),
        pytest.param(Terminal(), "json", True, id="terminal-json"),
        pytest.param(io.StringIO(), "text", False, id="pipe-text"),
    ],
)
def test_configure_logging_chooses_the_format(stream: io.StringIO, log_format: str | None, is_json: bool) -> None:
    """Text goes to a terminal and JSON elsewhere, unless the format is given."""
    configure_logging("info", log_format, stream)
    logging.getLogger("streams").info("hello", extra={"fields": {"n": 1}})
    assert stream.getvalue().startswith("{") is is_json
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_configure_logging_keeps_to_the_level(level: str, lines: int) -> None:
    """The level and those above it are written, no others."""
    stream = io.StringIO()
    configure_logging(level, "json", stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("app"), name)("hello")
    assert len(stream.getvalue().splitlines()) == lines


def test_configure_logging_replaces_its_own_handler_alone(root_logger: logging.Logger) -> None:
    """A second call moves the lines to the new stream; handlers of others stay."""
    other = logging.NullHandler()
    root_logger.addHandler(other)
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "text", first)
    configure_logging("info", "text", second)
    logging.getLogger("app").info("hello")
    assert (first.getvalue(), "hello" in second.getvalue()) == ("", True)
    assert other in root_logger.handlers
    assert len([handler for handler in root_logger.handlers if isinstance(handler, LineHandler)]) == 1
