"""Cards as they are shown: in lists, in one document, and as a page that runs nothing of what it shows."""

import datetime as dt
import re
from pathlib import Path

import attrs
import pytest
from registry_kit import AUC, NAME, NOW, artifact, card, filled_registry

from app.cards import (
    ShownCard,
    list_models,
    open_registry,
    read_shown_card,
    render_card,
    show_instant,
    show_number,
    show_percent,
    show_range,
)
from app.settings import Settings
from models.errors import ModelError, ModelUnknown
from models.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions: the first was the champion, the second is, the third is in the shadow of it."""
    registry = filled_registry(tmp_path, 3)
    for version in ("1", "2"):
        registry.promote(version, reason="a < b", now=NOW)
    registry.promote("3", alias="shadow", now=NOW)
    return registry


def shown_with(**changes: object) -> ShownCard:
    """A shown card of version 1, with changes to the card."""
    return ShownCard(version="1", aliases=(), card=card(artifact(), **changes), rollouts=())


def test_list_models_has_each_version_with_its_aliases(registry: Registry) -> None:
    """What a card says of the version, and who names it."""
    found = list_models(registry, registry.aliases())
    assert [(one.version, one.aliases) for one in found] == [("1", ()), ("2", ("champion",)), ("3", ("shadow",))]
    assert (found[0].created_at, found[0].is_simulated, found[0].metric, found[0].problem) == (NOW, True, AUC, None)


def test_list_models_tells_why_a_card_can_not_be_used(registry: Registry) -> None:
    """Such a version is in the list all the same."""
    (registry.folder / "versions" / "2" / "card.json").unlink()
    bad = list_models(registry, registry.aliases())[1]
    assert (bad.version, bad.aliases, bad.problem) == ("2", ("champion",), "card.json: it is missing")
    assert (bad.created_at, bad.is_simulated, bad.metric, bad.artifact_hash) == (None,) * 4


def test_list_models_tells_that_a_card_was_edited(registry: Registry) -> None:
    """Nothing of what it says now is shown."""
    path = registry.folder / "versions" / "2" / "card.json"
    path.write_bytes(path.read_bytes().replace(b"0.71", b"0.91"))
    bad = list_models(registry, registry.aliases())[1]
    assert (bad.problem or "").startswith("card.json: its SHA-256 is ") and bad.metric is None


def test_a_changed_artifact_is_listed_with_the_reason(tmp_path: Path) -> None:
    """The card is as it was, and of no use: no worker would load what lies beside it."""
    registry = filled_registry(tmp_path, 1)
    (registry.folder / "versions" / "1" / "model.ubj").write_bytes(artifact(9))
    (bad,) = list_models(registry, {})
    assert (bad.problem or "").startswith("model.ubj: its SHA-256 is ") and bad.metric is None


def test_list_models_takes_a_card_without_metrics(tmp_path: Path) -> None:
    """Nothing was measured, which is no error."""
    registry = Registry(tmp_path, NAME)
    registry.publish(artifact(), card(artifact(), metrics=()))
    assert [(one.metric, one.problem) for one in list_models(registry, registry.aliases())] == [(None, None)]


def test_shown_card_has_the_moves_of_its_version(registry: Registry) -> None:
    """Those to it and away from it, and of no other."""
    shown = read_shown_card(registry, "1")
    assert [(line.former, line.version) for line in shown.rollouts] == [(None, "1"), ("1", "2")]
    assert [(line.alias, line.version) for line in read_shown_card(registry, "shadow").rollouts] == [("shadow", "3")]


def test_shown_card_is_one_document(registry: Registry) -> None:
    """The card's fields stand beside version, aliases and rollouts, in this order."""
    document = read_shown_card(registry, "champion").document()
    names = [field.name for field in attrs.fields(type(card(artifact())))]
    assert list(document) == ["version", "aliases", *names, "rollouts"]
    assert (document["version"], document["aliases"], document["rollouts"][0]["reason"]) == (
        "2",
        ("champion",),
        "a < b",
    )


def test_shown_card_of_nothing_is_unknown(registry: Registry) -> None:
    """A name that nobody knows is told apart from a card that can't be used."""
    with pytest.raises(ModelUnknown):
        read_shown_card(registry, "9")
    (registry.folder / "versions" / "2" / "card.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match="name: missing"):
        read_shown_card(registry, "champion")


def test_card_page_has_every_part(registry: Registry) -> None:
    """A person finds what JSON has: inputs, figures with intervals, slices, checks, limits and moves."""
    page = render_card(read_shown_card(registry, "champion"))
    for heading in ("Limits", "Offline metrics", "Slices", "Fairness", "Training data", "Inputs", "Rollout history"):
        assert f"<h2>{heading}</h2>" in page
    for text in ("tip_length_chars", "0.680 – 0.740", "hours_since_sync: missing", "score gap", "champion", "95 %"):
        assert text in page
    assert "learned from a simulated world" in page


def test_card_page_says_what_was_not_measured() -> None:
    """An empty part is a sentence, never an empty table; a model of real data carries no warning."""
    training = attrs.evolve(card(artifact()).training, is_simulated=False)
    page = render_card(shown_with(metrics=(), slices=(), fairness=(), limits=(), training=training))
    for sentence in ("None are stated.", "None were measured.", "Nothing was checked.", "No alias has named"):
        assert sentence in page
    assert "simulated world. No user" not in page
    assert page.count("<table>") == 1  # the inputs


def test_card_page_runs_nothing_and_loads_nothing() -> None:
    """Text of a card is text, and the page needs no other file."""
    evil = "<script>alert(1)</script>\"'><img src=x>{{ 7 * 7 }}"
    page = render_card(shown_with(limits=(evil,), parameters={evil: evil}))
    assert page.count("&lt;script&gt;") == 3
    assert not re.search(r"<script|<img|<link|@import|url\(|src=[^x]|http", page) and "49" not in page


def test_open_registry_is_where_the_settings_say(tmp_path: Path) -> None:
    """In STATE_DIR, in a folder of its own, or nowhere."""
    for settings, folder in (
        (Settings(state_dir=tmp_path), tmp_path / "models" / NAME),
        (Settings(model_registry="/m", model_name="other"), Path("/m/other")),
    ):
        registry = open_registry(settings)
        assert registry is not None and registry.folder == folder
    assert open_registry(Settings(model_registry="none")) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.7123, "0.712"), (0, "0.000"), (0.00012345, "0.000123"), (-0.5, "-0.500"), (123456.0, "1.23e+05")],
)
def test_show_number_keeps_what_matters(value: float, shown: str) -> None:
    """Metrics have three decimals; what is smaller or larger keeps three digits."""
    assert show_number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.95, "95 %"), (0.999, "99.9 %"), (0.0712, "7.1 %"), (0, "0 %")])
def test_show_percent_is_short(value: float, shown: str) -> None:
    """One decimal at most."""
    assert show_percent(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(None, None, "any"), (0, None, "from 0"), (None, 23, "to 23"), (0, 1, "0 to 1"), (-720, 840, "-720 to 840")],
)
def test_show_range_is_words(low: float | None, high: float | None, shown: str) -> None:
    """Where there is no limit, none is shown."""
    assert show_range(low, high) == shown


def test_show_instant_is_utc() -> None:
    """Whatever zone a card was written in."""
    zone = dt.timezone(dt.timedelta(hours=2))
    assert show_instant(dt.datetime(2026, 3, 1, 1, 30, tzinfo=zone)) == "2026-02-28 23:30 UTC"
