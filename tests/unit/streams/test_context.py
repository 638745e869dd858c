"""What a handler may ask for, what it sees, and what is refused."""

import datetime as dt
from pathlib import Path
from typing import cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams_kit import make_message, make_scope

from models.errors import DeclarationError, PayloadError, Retry, StoreUnwritable
from state.tables import AnyTable, Table
from streams.context import Context, Scope, Written


@attrs.frozen(kw_only=True)
class Row:
    count: int = 0


@attrs.frozen(kw_only=True)
class Other:
    count: int = 0


ROWS = Table("streaks", Row)
COUNTERS = Table("days", Row, kind="counters")
FOREIGN = Table("foreign", Row)
IMPOSTOR = Table("streaks", Row)


def make_context(*, seq: int = 7, ts: int | None = None, scope: Scope | None = None, key: str = "ana") -> Context:
    """The context of a message in lane ``ana`` over two tables."""
    message = make_message(seq) if ts is None else make_message(seq, ts=ts)
    return Context(message, key, scope or make_scope([ROWS, COUNTERS]))


def test_context_without_effects_has_none() -> None:
    """A handler that only looks asks for nothing."""
    ctx = make_context()
    assert (ctx.get(ROWS, "ana"), ctx.effects, ctx.key) == (None, None, "ana")


def test_now_is_the_streams_time_to_the_microsecond() -> None:
    """Time comes from the message, aware and in UTC."""
    now = make_context(ts=1_700_000_000_123_456_789).now
    assert now == dt.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=dt.UTC)
    assert now.utcoffset() == dt.timedelta(0)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_now_never_rounds_up(ts: int) -> None:
    """No float loses a digit: the instant is the timestamp's whole microseconds."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert (make_context(ts=ts).now - epoch) // dt.timedelta(microseconds=1) == ts // 1000


def test_random_and_ids_repeat_at_every_attempt() -> None:
    """The same message gives the same numbers and ids, another message, table or call others."""

    def drawn(ctx: Context) -> tuple[float, float, str, str]:
        return ctx.random.random(), ctx.random.random(), ctx.new_id(), ctx.new_id()

    first, again = drawn(make_context()), drawn(make_context())
    others = [drawn(make_context(seq=8)), drawn(make_context(ts=1))]
    named = make_context(scope=attrs.evolve(make_scope(), name="other")).new_id()
    assert first == again
    assert len({*first, *others[0], *others[1], named}) == 3 * 4 + 1


def test_get_reads_the_committed_row() -> None:
    """A committed row is decoded."""
    scope = make_scope([ROWS], rows={("streaks", "ana"): b'{"count":3}', ("streaks", "bob"): b"{}"})
    assert make_context(scope=scope).get(ROWS, "ana") == Row(count=3)


def test_get_sees_own_writes_before_those_of_the_lane_before_committed_ones() -> None:
    """What this attempt wrote hides what the lane has waiting, and that hides what is committed; a deletion too."""
    scope = make_scope([ROWS], rows={("streaks", "ana"): b'{"count":1}'})
    ctx = make_context(scope=scope)
    scope.waiting["streaks", "ana"] = Written(Row(count=2))
    assert ctx.get(ROWS, "ana") == Row(count=2)
    ctx.put(ROWS, "ana", Row(count=3))
    assert ctx.get(ROWS, "ana") == Row(count=3)
    ctx.delete(ROWS, "ana")
    assert ctx.get(ROWS, "ana") is None
    scope.waiting["streaks", "ana"] = Written(None)
    assert make_context(scope=scope).get(ROWS, "ana") is None


def test_get_after_another_effect_still_reads_the_lane() -> None:
    """An effect on something else hides no row."""
    ctx = make_context(scope=make_scope([ROWS, COUNTERS], rows={("streaks", "ana"): b'{"count":1}'}))
    ctx.add(COUNTERS, "mon", "count", 1)
    assert ctx.get(ROWS, "ana") == Row(count=1)


def test_get_of_a_row_that_does_not_fit_asks_for_another_run() -> None:
    """A stored row of another shape is not the message's fault: as a Reject it would end innocent messages."""
    ctx = make_context(scope=make_scope([ROWS], rows={("streaks", "ana"): b'{"count":"x"}'}))
    with pytest.raises(Retry, match="^get: a row of 'streaks' can't be read: count: expected int, got str$") as caught:
        ctx.get(ROWS, "ana")
    assert (caught.value.delay_s, type(caught.value.__cause__)) == (None, PayloadError)


def test_get_from_a_store_that_can_not_be_read_asks_for_another_run() -> None:
    """While the store gives no answer no attempt counts as a failure."""

    def fetch(table: str, key: str) -> bytes | None:
        raise StoreUnwritable(Path("state.db"), "can't be read or written (disk I/O error)")

    ctx = make_context(scope=attrs.evolve(make_scope([ROWS]), fetch=fetch))
    with pytest.raises(Retry, match="^get: a row of 'streaks' can't be read: state.db: can't be read or written"):
        ctx.get(ROWS, "ana")
    assert ctx.effects is None


def test_effects_are_collected_and_nothing_is_done() -> None:
    """Writes, deletions, increments and events are kept in order, the last write of a row wins, no row is touched."""
    rows = {("streaks", "ana"): b'{"count":1}'}
    scope = make_scope([ROWS, COUNTERS], rows=rows)
    ctx = make_context(scope=scope)
    ctx.put(ROWS, "ana", Row(count=2))
    ctx.put(ROWS, "ana", Row(count=3))
    ctx.add(COUNTERS, "mon", "count", 1)
    ctx.add(COUNTERS, "mon", "count", -(2**70))
    ctx.publish("signals.a", Row(count=4))
    ctx.publish("signals.b", b"\x00raw")
    ctx.publish("signals.a", {"n": None})
    effects = ctx.effects
    assert effects is not None
    assert effects.puts == {("streaks", "ana"): b'{"count":3}'}
    assert effects.rows["streaks", "ana"].row == Row(count=3)
    assert effects.adds == [("days", "mon", "count", 1), ("days", "mon", "count", -(2**70))]
    assert effects.publishes == [("signals.a", b'{"count":4}'), ("signals.b", b"\x00raw"), ("signals.a", b'{"n":null}')]
    assert (rows, scope.waiting) == ({("streaks", "ana"): b'{"count":1}'}, {})


def test_delete_is_an_effect() -> None:
    """A deletion is kept as a row that is none."""
    ctx = make_context()
    ctx.delete(ROWS, "ana")
    assert ctx.effects is not None and ctx.effects.puts == {("streaks", "ana"): None}


@pytest.mark.parametrize("verb", ["get", "put", "delete"])
@pytest.mark.parametrize(
    ("table", "key", "problem"),
    [
        pytest.param(ROWS, "bob", "'bob' is not the lane's own key 'ana'; other keys take add", id="another-key"),
        pytest.param(FOREIGN, "ana", "table 'foreign' is not one of its tables", id="foreign-table"),
        pytest.param(IMPOSTOR, "ana", "table 'streaks' is not one of its tables", id="same-name"),
        pytest.param(COUNTERS, "ana", "table 'days' is of kind 'counters', not 'rows'", id="counters"),
    ],
)
def test_rows_of_others_are_refused(verb: str, table: AnyTable, key: str, problem: str) -> None:
    """Whole rows are read and written under the lane's own key in the table's own tables only."""
    ctx = make_context()
    args = (table, key, Row()) if verb == "put" else (table, key)
    with pytest.raises(DeclarationError, match=f"^subject table 'signals': {verb}: {problem}"):
        getattr(ctx, verb)(*args)
    assert ctx.effects is None


def test_put_of_another_class_is_a_type_error_and_no_effect() -> None:
    """A row of another class is refused before anything is collected."""
    ctx = make_context()
    with pytest.raises(TypeError, match="expected a Row, got Other"):
        ctx.put(cast(AnyTable, ROWS), "ana", Other())
    assert ctx.effects is None


@pytest.mark.parametrize(
    ("table", "field", "problem"),
    [
        pytest.param(ROWS, "count", "table 'streaks' is of kind 'rows', not 'counters'", id="rows"),
        pytest.param(FOREIGN, "count", "table 'foreign' is not one of its tables", id="foreign"),
        pytest.param(COUNTERS, "other", "table 'days' has no field 'other'", id="unknown-field"),
    ],
)
def test_add_to_what_is_no_counter_is_refused(table: AnyTable, field: str, problem: str) -> None:
    """Increments go to declared fields of the own counters tables."""
    ctx = make_context()
    with pytest.raises(DeclarationError, match=f"add: {problem}"):
        ctx.add(table, "any key", field, 1)
    assert ctx.effects is None


@pytest.mark.parametrize("n", [1.0, True, "1", None])
def test_add_of_no_integer_is_a_type_error(n: int) -> None:
    """Only integers add up without a loss; a bool is a mistake."""
    ctx = make_context()
    with pytest.raises(TypeError, match=f"add: expected an int, got {n!r}"):
        ctx.add(COUNTERS, "mon", "count", n)
    assert ctx.effects is None


def test_add_to_a_key_that_no_store_holds_is_the_handlers_error() -> None:
    """A lone surrogate fails in the handler, not in the commit."""
    ctx = make_context()
    with pytest.raises(UnicodeEncodeError):
        ctx.add(COUNTERS, "\ud800", "count", 1)
    assert ctx.effects is None


@pytest.mark.parametrize("subject", ["orders.new", "signals.*", "signals.>", "signals.", "signals.a b", "", "a\r\nb"])
def test_publish_outside_the_streams_is_refused(subject: str) -> None:
    """An event goes to one subject that a stream for handlers takes, never to a pattern."""
    ctx = make_context(scope=attrs.evolve(make_scope(), publishable=lambda s: s.startswith(("signals", "a"))))
    with pytest.raises(DeclarationError, match="publish: no stream for handlers takes the subject"):
        ctx.publish(subject, {})
    assert ctx.effects is None


@pytest.mark.parametrize(
    ("subject", "event"),
    [
        pytest.param("signals.\ud800", {}, id="subject"),
        pytest.param("signals.a", {"user_id": "\ud800"}, id="value"),
        pytest.param("signals.a", {"\udfff": 1}, id="name"),
    ],
)
def test_publish_of_what_no_store_holds_is_the_handlers_error(subject: str, event: object) -> None:
    """A lone surrogate fails in the handler, not in the commit of it and of others."""
    ctx = make_context()
    with pytest.raises(UnicodeEncodeError):
        ctx.publish(subject, event)
    assert ctx.effects is None


def test_publish_measures_an_event_as_it_is_sent() -> None:
    """The limit is one of the encoded event's bytes, and asked for at each call, for the server's may change."""
    limits = iter([12, 11])
    ctx = make_context(scope=attrs.evolve(make_scope(), max_payload_bytes=lambda: next(limits)))
    ctx.publish("signals.a", {"n": "üü"})
    with pytest.raises(DeclarationError, match="publish: 12 bytes are above the limit of 11"):
        ctx.publish("signals.a", {"n": "üü"})


def test_publish_is_limited_to_what_the_server_takes() -> None:
    """A payload of exactly the limit is taken, one byte more is refused with both sizes."""
    ctx = make_context(scope=attrs.evolve(make_scope(), max_payload_bytes=lambda: 10))
    ctx.publish("signals.a", b"x" * 10)
    with pytest.raises(DeclarationError, match="publish: 11 bytes are above the limit of 10"):
        ctx.publish("signals.a", b"x" * 11)
    assert ctx.effects is not None and len(ctx.effects.publishes) == 1


def test_publish_of_what_json_can_not_hold_is_a_type_error() -> None:
    """An event that can't be encoded fails in the handler."""
    ctx = make_context()
    with pytest.raises(TypeError):
        ctx.publish("signals.a", object())
    assert ctx.effects is None


def test_written_rows_are_told_apart_by_identity() -> None:
    """Two writes of equal rows are two writes, so that the commit of the first does not forget the second."""
    assert Written(Row()) != Written(Row())
