"""The history of an alias: lines that were cut off, moves that never happened, and where a rollback goes."""

import datetime as dt

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.card import Action, Rollout
from models.codec import encode_json
from models.errors import PayloadError
from models.rollouts import decode_history, earlier_versions

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def move(
    version: str | None, former: str | None = None, action: Action = "promote", alias: str = "champion"
) -> Rollout:
    """One line."""
    return Rollout(at=NOW, alias=alias, version=version, former=former, action=action)


def line(rollout: Rollout) -> bytes:
    """As the registry writes it."""
    return encode_json(attrs.asdict(rollout)) + b"\n"


WHOLE = line(move("1")) + line(move("2", "1"))


@pytest.mark.parametrize(
    ("content", "count", "size"),
    [
        pytest.param(b"", 0, 0, id="empty"),
        pytest.param(WHOLE, 2, len(WHOLE), id="whole"),
        pytest.param(WHOLE + b'{"at":"2026-', 2, len(WHOLE), id="cut off"),
        pytest.param(WHOLE + b"\0\0\0", 2, len(WHOLE), id="zeros"),
        pytest.param(WHOLE[:-1], 2, len(WHOLE) - 1, id="no end"),
        pytest.param(WHOLE + b"\n", 2, len(WHOLE) + 1, id="empty line"),
    ],
)
def test_history_leaves_out_what_a_crash_has_cut_off(content: bytes, count: int, size: int) -> None:
    """A last line without an end counts if it is a record."""
    found, kept = decode_history(content)
    assert (len(found), kept) == (count, size)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(WHOLE + b"{\n", "^line 3: payload: not valid JSON", id="json"),
        pytest.param(WHOLE.replace(b'"promote"', b'"push"', 1), "^line 1: action: invalid enum value", id="field"),
        pytest.param(WHOLE.replace(b"00Z", b"00", 1), "^line 1: at: expected an instant with a zone", id="zone"),
    ],
)
def test_history_names_the_line_that_is_no_record(content: bytes, problem: str) -> None:
    """What nobody's crash explains is told by its number and the field."""
    with pytest.raises(PayloadError, match=problem):
        decode_history(content)


@pytest.mark.parametrize(
    ("history", "current", "earlier"),
    [
        pytest.param([], None, [], id="nothing"),
        pytest.param([move("1")], "1", [], id="first"),
        pytest.param([move("1"), move("2", "1")], "2", ["1"], id="second"),
        pytest.param([move("1"), move("2", "1"), move("1", "2", "rollback")], "1", [], id="back"),
        pytest.param([move("1"), move("2", "1"), move("1", "2")], "1", ["1", "2"], id="promoted back"),
        pytest.param([move("1"), move("2", "1")], "1", [], id="last never happened"),
        pytest.param([move("1"), move("9", "1"), move("2", "1")], "2", ["1"], id="one never happened"),
        pytest.param([move("1"), move("2", "1")], "7", ["1", "2"], id="moved by hand"),
        pytest.param([move("1"), move("2", "1")], None, [], id="taken away by hand"),
        pytest.param([move("1", None, "rollback")], "1", [], id="written by hand"),
        pytest.param([move("1"), move("5", alias="shadow"), move("2", "1")], "2", ["1"], id="other alias"),
        pytest.param([move("1"), move("2", "1"), move(None, "2", "demote")], None, [], id="taken away"),
        pytest.param([move("1"), move("2", "1"), move(None, "2", "demote")], "2", ["1"], id="taking never happened"),
        pytest.param(
            [move("1"), move(None, "1", "demote"), move("2"), move("3", "2")], "3", ["2"], id="from the start again"
        ),
    ],
)
def test_earlier_versions_are_those_that_were_in_place(
    history: list[Rollout], current: str | None, earlier: list[str]
) -> None:
    """Each line says what it found, which corrects what the line before it had announced."""
    assert list(earlier_versions(history, "champion", current)) == earlier


@given(st.lists(st.tuples(st.sampled_from(["promote", "rollback", "demote"]), st.booleans())))
def test_rollbacks_take_promotions_away_one_by_one(steps: list[tuple[Action, bool]]) -> None:
    """Whatever was promoted, rolled back, taken away or interrupted, a rollback goes where their stack says."""
    stack: list[str] = []
    history: list[Rollout] = []
    for number, (action, is_interrupted) in enumerate(steps):
        if action == "rollback" and len(stack) < 2:
            continue
        after = {"promote": [*stack, str(number)], "rollback": stack[:-1], "demote": []}[action]
        history.append(move(after[-1] if after else None, stack[-1] if stack else None, action))
        stack = stack if is_interrupted else after
    assert list(earlier_versions(history, "champion", stack[-1] if stack else None)) == stack[:-1]
