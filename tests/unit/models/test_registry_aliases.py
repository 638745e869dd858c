"""The registry's aliases: how they move, what is said of each move, and what awaits the first one."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from registry_kit import NAME, NOW, artifact, card, filled_registry, flip, part

from models.errors import ModelError, ModelUnknown
from models.registry import STARTER_REASON, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with three versions and no alias."""
    return filled_registry(tmp_path / "models", 3)


def test_promote_moves_the_alias_and_says_so(registry: Registry) -> None:
    """The other alias stays; who, when and why is in the history, and the same promotion again is none."""
    registry.promote("1", now=NOW)
    registry.promote("2", alias="shadow", now=NOW)
    moved = registry.promote("3", reason="AUC 0.71", now=NOW + dt.timedelta(hours=1))
    assert registry.promote("3", now=NOW) is None
    assert dict(registry.aliases()) == {"champion": "3", "shadow": "2"}
    assert moved == registry.history()[-1]
    assert [attrs.astuple(line)[1:] for line in registry.history()] == [
        ("champion", "1", None, "promote", ""),
        ("shadow", "2", None, "promote", ""),
        ("champion", "3", "1", "promote", "AUC 0.71"),
    ]


def test_promote_keeps_what_it_does_not_know(registry: Registry) -> None:
    """An alias of a newer version, or a note, survives; null is no alias."""
    (registry.folder / "aliases.json").write_text('{"canary": "1", "note": {"by": [1, 2.50]}, "champion": null}')
    registry.promote("2", now=NOW)
    found = json.loads((registry.folder / "aliases.json").read_bytes())
    assert found == {"canary": "1", "note": {"by": [1, 2.5]}, "champion": "2"}
    assert registry.history()[0].former is None


def test_promote_leaves_alone_what_it_must_not_replace(registry: Registry) -> None:
    """Who promotes only where there is no version yet finds out under the lock that somebody else was first."""
    assert registry.promote("1", now=NOW, replaces=False) == registry.history()[0]
    assert registry.promote("2", now=NOW, replaces=False) is None
    assert registry.promote("2", alias="shadow", now=NOW, replaces=False) is not None
    assert dict(registry.aliases()) == {"champion": "1", "shadow": "2"}
    assert len(registry.history()) == 2


def announce(registry: Registry, reason: str) -> None:
    """Leaves what a process that ends between the history and the alias leaves."""
    registry.promote("1", reason=reason, now=NOW)
    (registry.folder / "aliases.json").unlink()


def add_real(registry: Registry) -> None:
    """Publishes a version that has learned from users."""
    training = attrs.evolve(card(artifact()).training, is_simulated=False)
    registry.publish(artifact(), card(artifact(), training=training))


@pytest.mark.parametrize(
    ("change", "awaits"),
    [
        pytest.param(lambda _: None, True, id="simulated"),
        pytest.param(lambda registry: announce(registry, STARTER_REASON), True, id="announced"),
        pytest.param(lambda registry: announce(registry, "better"), False, id="announced by a person"),
        pytest.param(add_real, False, id="real"),
        pytest.param(lambda registry: registry.promote("2", now=NOW), False, id="champion"),
        pytest.param(lambda registry: registry.promote("2", alias="shadow", now=NOW), False, id="shadow"),
        pytest.param(lambda registry: (registry.folder / "aliases.json").write_text("{}"), False, id="by hand"),
        pytest.param(lambda registry: part(registry, "2", "card.json").unlink(), False, id="no card"),
    ],
)
def test_registry_awaits_its_starter_until_somebody_decides(
    registry: Registry, change: Callable[[Registry], object], *, awaits: bool
) -> None:
    """With simulated versions alone, and never an alias, it is as a starter left it that ended before its promotion."""
    change(registry)
    assert registry.awaits_starter() is awaits


def test_empty_registry_awaits_its_starter(tmp_path: Path) -> None:
    """Whatever the aliases were: there is nothing to decide about."""
    registry = Registry(tmp_path, NAME)
    assert registry.awaits_starter()
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "aliases.json").write_text('{"champion": "1"}')
    assert registry.awaits_starter()


@pytest.mark.parametrize("alias", ["canary", "", "../champion"])
def test_aliases_are_champion_and_shadow(registry: Registry, alias: str) -> None:
    """No other can be moved, whichever way."""
    for function in (
        lambda: registry.promote("1", alias=alias, now=NOW),
        lambda: registry.rollback(alias=alias, now=NOW),
        lambda: registry.demote(alias, now=NOW),
    ):
        with pytest.raises(ModelUnknown, match="expected an alias: champion or shadow$"):
            function()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "payload: not valid JSON"),
        (b"[]", "payload: expected object, got array"),
        (b'{"shadow": 3}', "shadow: expected str | null, got int"),
    ],
    ids=["json", "list", "number"],
)
def test_aliases_name_what_is_wrong_with_their_file(registry: Registry, content: bytes, problem: str) -> None:
    """Nothing is moved then, and nothing is overwritten."""
    (registry.folder / "aliases.json").write_bytes(content)
    for function in (registry.aliases, lambda: registry.promote("1", now=NOW)):
        with pytest.raises(ModelError) as caught:
            function()
        assert str(caught.value).startswith(f"model tip-scorer: aliases.json: {problem}")
    assert (registry.folder / "aliases.json").read_bytes() == content


def test_resolve_takes_versions_and_aliases(registry: Registry) -> None:
    """An alias without a version is told apart from a name that nobody knows."""
    registry.promote("2", now=NOW)
    assert [registry.resolve(name) for name in ("3", "champion")] == ["3", "2"]
    with pytest.raises(ModelUnknown, match="^model shadow: no version has this alias yet$"):
        registry.resolve("shadow")
    with pytest.raises(ModelUnknown, match=r"^model '../x': no such version; there is 1, 2, 3$"):
        registry.resolve("../x")


def test_demote_takes_the_shadow_away(registry: Registry) -> None:
    """What else the file holds stays, the history has it, and once more there is nothing to take away."""
    registry.promote("1", now=NOW)
    registry.promote("2", alias="shadow", now=NOW)
    before = registry.stamp()
    moved = registry.demote("shadow", reason="worse", now=NOW)
    assert moved == registry.history()[-1]
    assert moved and attrs.astuple(moved)[1:] == ("shadow", None, "2", "demote", "worse")
    assert (registry.demote("shadow", now=NOW), len(registry.history())) == (None, 3)
    assert json.loads((registry.folder / "aliases.json").read_bytes()) == {"champion": "1"}
    assert registry.stamp() != before


def test_rollback_goes_nowhere_after_a_demotion(registry: Registry) -> None:
    """A shadow begins anew: neither is the former one brought back, nor one before it."""
    registry.promote("1", alias="shadow", now=NOW)
    registry.demote("shadow", now=NOW)
    for version in (None, "2"):
        if version:
            registry.promote(version, alias="shadow", now=NOW)
        with pytest.raises(ModelError, match="there is no version before"):
            registry.rollback(alias="shadow", now=NOW)
    assert dict(registry.aliases()) == {"shadow": "2"}


def test_demote_refuses_the_champion(registry: Registry) -> None:
    """Something has to answer; what does is replaced, never taken away."""
    registry.promote("1", now=NOW)
    with pytest.raises(ModelError, match="^model champion: it answers every request: promote another version, or roll"):
        registry.demote("champion", now=NOW)
    assert (dict(registry.aliases()), len(registry.history())) == ({"champion": "1"}, 1)


def test_rollback_goes_back_promotion_by_promotion(registry: Registry) -> None:
    """Twice is two promotions back, and before the first there is nothing."""
    for version in ("1", "2", "3"):
        registry.promote(version, now=NOW)
    moves = [registry.rollback(reason="worse", now=NOW) for _ in range(2)]
    assert [(one.former, one.version, one.action, one.reason) for one in moves] == [
        ("3", "2", "rollback", "worse"),
        ("2", "1", "rollback", "worse"),
    ]
    with pytest.raises(ModelError, match="^model champion: there is no version before 1 to roll back to$"):
        registry.rollback(now=NOW)
    assert dict(registry.aliases()) == {"champion": "1"}


def test_rollback_refuses_a_version_that_can_not_be_served(registry: Registry) -> None:
    """The alias stays where it is when the version before has been spoiled."""
    for version in ("1", "2"):
        registry.promote(version, now=NOW)
    flip(part(registry, "1", "model.ubj"))
    with pytest.raises(ModelError, match="^model 1: model.ubj: its SHA-256"):
        registry.rollback(now=NOW)
    assert (dict(registry.aliases()), len(registry.history())) == ({"champion": "2"}, 2)


def test_rollback_knows_a_move_that_never_happened(registry: Registry) -> None:
    """A process that ended between the history and the alias, and one that ended within the line, mislead nobody."""
    for version in ("1", "2"):
        registry.promote(version, now=NOW)
    history = registry.folder / "history.jsonl"
    lines = history.read_bytes().splitlines(keepends=True)
    announced = json.loads(lines[-1]) | {"former": "2", "version": "3"}
    history.write_bytes(b"".join(lines) + json.dumps(announced).encode() + b'\n{"at":')
    assert registry.rollback(now=NOW).version == "1"
    assert len(registry.history()) == 4


def test_history_names_the_line_that_is_no_record(registry: Registry) -> None:
    """A spoiled history stops moves, for a rollback could go anywhere; it does not stop reading the alias."""
    registry.promote("1", now=NOW)
    history = registry.folder / "history.jsonl"
    history.write_bytes(b"{}\n" + history.read_bytes())
    for function in (registry.history, lambda: registry.promote("2", now=NOW)):
        with pytest.raises(ModelError, match=r"^model tip-scorer: history.jsonl: line 1: \w+: missing$"):
            function()
    assert dict(registry.aliases()) == {"champion": "1"}


def test_move_refuses_a_reason_that_is_no_text(registry: Registry) -> None:
    """Bytes of a command line that are no UTF-8 can't be kept, and then nothing moves."""
    with pytest.raises(ModelError, match="expected text that UTF-8 can hold"):
        registry.promote("1", reason="\udcff", now=NOW)
    assert (dict(registry.aliases()), registry.history()) == ({}, [])


def test_stamp_changes_with_every_move(registry: Registry) -> None:
    """To and fro between two versions gives a value never seen before; publishing and reading change nothing."""
    seen = [registry.stamp()]
    for version in ("1", "2", "1", "2", "1"):
        registry.promote(version, now=NOW)
        seen.append(registry.stamp())
    assert len(set(seen)) == 6
    registry.publish(artifact(), card(artifact()))
    registry.fetch("1")
    assert registry.stamp() == seen[-1]


def test_stamp_sees_a_move_by_hand(registry: Registry) -> None:
    """Whoever edits the file of the aliases leaves no line in the history."""
    registry.promote("1", now=NOW)
    before = registry.stamp()
    (registry.folder / "aliases.json").write_text('{"champion": "3", "by": "hand"}')
    assert registry.stamp() != before


def test_stamp_is_never_an_error(tmp_path: Path) -> None:
    """A registry that is missing, or whose folder is none, has a stamp of its own."""
    registry = Registry(tmp_path / "models", NAME)
    missing = registry.stamp()
    (tmp_path / "models").touch()
    assert registry.stamp() != missing
