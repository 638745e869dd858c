"""Subject tables: what may be declared, and who handles what."""

import datetime as dt
import functools
import inspect
from typing import Any

import attrs
import pytest

from models.errors import DeclarationError, PayloadError
from state.tables import Table
from streams import Context, Policy, SubjectTable


@attrs.frozen(kw_only=True)
class Broken:
    user_id: str
    days: int = 0


@attrs.frozen
class Row:
    count: int = 0


class NoRecord:
    user_id = "x"


async def streak_broken(event: Broken, ctx: Context) -> None:
    """Handles what tests send it to."""


async def another(event: Broken, ctx: Context) -> None:
    """Handles what tests send it to."""


def test_table_keeps_what_was_declared() -> None:
    """Name, tables and options are as given; the defaults are those of the documentation."""
    rows = Table("streaks", Row)
    table = SubjectTable("streaks", tables=[rows], key="tip_id", concurrency=7, ack_wait_s=5)
    assert (table.name, table.tables, table.key, table.concurrency, table.ack_wait_s) == (
        "streaks",
        (rows,),
        "tip_id",
        7,
        5,
    )
    plain = SubjectTable("streaks")
    assert (plain.tables, plain.key, plain.concurrency, plain.ack_wait_s) == ((), "user_id", 100, 30)
    assert plain.handlers == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param({"concurrency": 0}, "concurrency: expected an int from 1 to 1000, got 0", id="no-slot"),
        pytest.param({"concurrency": 1001}, "concurrency: expected an int .* got 1001", id="too-many-slots"),
        pytest.param({"ack_wait_s": 0.9}, "ack_wait_s: expected 1 to 3600 seconds, got 0.9", id="short-wait"),
        pytest.param({"ack_wait_s": 3601}, "ack_wait_s: expected 1 to 3600 seconds, got 3601", id="long-wait"),
        pytest.param({"order": "any"}, "order: expected 'key' or 'none', got 'any'", id="order"),
        pytest.param({"delivery": "fetch"}, "delivery: expected 'pull' or 'push', got 'fetch'", id="delivery"),
        pytest.param({"version": 0}, "version: expected an int from 1 to 10000, got 0", id="version"),
        pytest.param({"renamed_from": "A"}, r"renamed_from: expected \[a-z\].*, got 'A'", id="former-name"),
        pytest.param({"key": 5}, "key: expected the name of an attribute or a function .*, got 5", id="key"),
        pytest.param({"start": "now"}, "start: expected 'all', 'new', a sequence .*, got 'now'", id="start"),
        pytest.param({"start": 0}, "start: expected .*, got 0", id="start-sequence"),
        pytest.param({"start": dt.datetime(2026, 1, 1)}, "start: .*with a zone, got .*", id="naive-start"),
        pytest.param({"tables": ["streaks"]}, "tables: expected Table objects, got 'streaks'", id="no-table"),
        pytest.param(
            {"order": "none", "tables": [Table("rows", Row)]},
            "tables: 'rows' is of kind 'rows', and order='none' takes kind 'counters' only",
            id="rows-without-order",
        ),
        pytest.param({"order": "none", "delivery": "push"}, "delivery: 'push' goes to one worker, .*", id="push"),
    ],
)
def test_table_refuses_options_out_of_bounds(options: dict[str, Any], problem: str) -> None:
    """An option outside its bounds is named with its value and what is accepted."""
    with pytest.raises(DeclarationError, match=f"^subject table 'streaks': {problem}$"):
        SubjectTable("streaks", **options)


@pytest.mark.parametrize("options", [{"concurrency": 1, "ack_wait_s": 1}, {"concurrency": 1000, "ack_wait_s": 3600}])
def test_table_takes_the_bounds(options: dict[str, Any]) -> None:
    """The bounds themselves are accepted."""
    table = SubjectTable("streaks", **options)
    assert {"concurrency": table.concurrency, "ack_wait_s": table.ack_wait_s} == options


@pytest.mark.parametrize("name", ["", "A", "a.b", "a-b", "a b", "*", "é", "a" * 65])
def test_table_refuses_a_name_that_is_no_part_of_a_durable(name: str) -> None:
    """A name is small letters, digits and underscores."""
    with pytest.raises(DeclarationError, match="name: expected"):
        SubjectTable(name)


def test_handler_is_declared_with_all_its_parts() -> None:
    """The decorator returns the function, and the handler knows name, subject, policy, type, lane and decoder."""
    table, policy = SubjectTable("streaks"), Policy(max_deliver=2)
    assert table.on("signals.streak.broken", policy=policy)(streak_broken) is streak_broken
    (handler,) = table.handlers
    assert (handler.name, handler.subject, handler.policy) == ("streaks.streak_broken", "signals.streak.broken", policy)
    assert (handler.event, handler.function) == (Broken, streak_broken)
    event = handler.decode(b'{"user_id":"ana","days":3}')
    assert (event, handler.key_of(event)) == (Broken(user_id="ana", days=3), "ana")
    with pytest.raises(PayloadError, match="user_id: missing"):
        handler.decode(b"{}")


def test_handler_without_a_policy_has_the_default_one() -> None:
    """No policy is the default policy."""
    table = SubjectTable("streaks")
    table.on("signals.a")(streak_broken)
    assert table.handlers[0].policy == Policy()


def test_lane_may_be_a_function_of_the_event() -> None:
    """A key function names the lane instead of an attribute."""
    table = SubjectTable("streaks", key=lambda event: f"{event.days}")
    table.on("signals.a")(streak_broken)
    assert table.handlers[0].key_of(Broken(user_id="ana", days=3)) == "3"


def test_handler_of_a_subject_is_the_one_whose_pattern_matches() -> None:
    """Exact subjects and patterns find their handler, an undeclared subject none."""
    table = SubjectTable("streaks")
    table.on("signals.streak.*")(streak_broken)
    table.on("signals.a.>")(another)
    found = [table.handler_for(subject) for subject in ("signals.streak.x", "signals.a.b.c", "signals.streak", "x")]
    assert found == [table.handlers[0], table.handlers[1], None, None]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("signals.a", "signals.a", id="same"),
        pytest.param("signals.*", "signals.a", id="pattern-first"),
        pytest.param("signals.a", "signals.>", id="pattern-second"),
        pytest.param("signals.*.b", "signals.a.*", id="two-patterns"),
    ],
)
def test_handlers_may_not_share_a_subject(first: str, second: str) -> None:
    """Two handlers of one table never match the same message; the error names both."""
    table = SubjectTable("streaks")
    table.on(first)(streak_broken)
    with pytest.raises(DeclarationError) as caught:
        table.on(second)(another)
    problem = f"subject: {second!r} overlaps {first!r} of streaks.streak_broken"
    assert str(caught.value) == f"subject table 'streaks', handler 'another': {problem}"
    assert len(table.handlers) == 1


def test_handlers_may_not_share_a_name() -> None:
    """A function's name is its identity, so one table has it once."""
    table = SubjectTable("streaks")
    table.on("signals.a")(streak_broken)
    with pytest.raises(DeclarationError, match="name: streaks.streak_broken handles 'signals.a' already"):
        table.on("signals.b")(streak_broken)


@pytest.mark.parametrize("subject", ["", "signals.", "signals..a", "signals.>.a", "signals.a b"])
def test_handler_refuses_what_is_no_subject(subject: str) -> None:
    """A bad pattern is named with the handler."""
    with pytest.raises(DeclarationError, match="handler 'streak_broken': subject: expected tokens"):
        SubjectTable("streaks").on(subject)(streak_broken)


def test_handler_needs_the_key_in_its_event() -> None:
    """An event without the attribute that names the lane is refused when it is declared."""
    table = SubjectTable("streaks", key="tip_id")
    with pytest.raises(DeclarationError, match="key: Broken has no attribute 'tip_id'"):
        table.on("signals.a")(streak_broken)


def _not_async(event: Broken, ctx: Context) -> None:
    pass


async def Capital(event: Broken, ctx: Context) -> None:
    """A name that starts with a capital."""


async def one_parameter(event: Broken) -> None:
    """Takes no context."""


async def three_parameters(event: Broken, ctx: Context, more: int = 0) -> None:
    """Takes more than a context."""


async def no_annotation(event, ctx):  # type: ignore[no-untyped-def]
    """Has no event type."""


async def a_dict(event: dict[str, str], ctx: Context) -> None:
    """Takes a dict."""


async def no_record(event: NoRecord, ctx: Context) -> None:
    """Takes a plain class."""


async def unknown_type(event: "Nowhere", ctx: Context) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Takes a type that does not exist."""


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        pytest.param(_not_async, "expected an 'async def' function", id="not-async"),
        pytest.param(functools.partial(_not_async), "expected an 'async def' function", id="not-even-a-function"),
        pytest.param(Capital, r"name: expected \[a-z\].*, got 'Capital'", id="name"),
        pytest.param(one_parameter, r"expected two parameters \(event, ctx\), got \['event'\]", id="one-parameter"),
        pytest.param(three_parameters, "expected two parameters", id="three-parameters"),
        pytest.param(no_annotation, "event: expected 'event' annotated with an attrs class, got None", id="untyped"),
        pytest.param(a_dict, "event: expected 'event' annotated with an attrs class, got dict", id="dict"),
        pytest.param(no_record, "event: expected 'event' annotated with an attrs class, got <class", id="plain-class"),
        pytest.param(unknown_type, "annotation: name 'Nowhere' is not defined", id="unknown-type"),
    ],
)
def test_handler_refuses_another_form_of_function(function: Any, problem: str) -> None:
    """A handler is an async function of an attrs event and a context, said when it is declared."""
    table = SubjectTable("streaks")
    with pytest.raises(DeclarationError, match=problem):
        table.on("signals.a")(function)
    assert table.handlers == []


def test_table_knows_where_it_was_made() -> None:
    """File and line of the declaration are kept, for the errors that are found later."""
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    table = SubjectTable("streaks")
    assert table.made_at == (__file__, line)


def test_table_in_use_takes_no_handler() -> None:
    """Once an app runs the table, another handler is refused and none is added."""
    table = SubjectTable("streaks")
    table.on("signals.a")(streak_broken)
    table.seal()
    with pytest.raises(DeclarationError, match="subject table 'streaks', handler 'another': the table is in use"):
        table.on("signals.b")(another)
    assert [handler.name for handler in table.handlers] == ["streaks.streak_broken"]
