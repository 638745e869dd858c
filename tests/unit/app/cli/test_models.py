"""``models``: lists, cards, and how aliases move, as a person types it."""

import json
from pathlib import Path

import attrs
import pytest
from process_kit import invoke
from registry_kit import INPUTS, NAME, NOW, artifact, card, filled_registry

from models.card import feature_hash
from models.errors import ModelError, SettingsError
from models.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions, of which none has an alias, where the settings expect them."""
    return filled_registry(tmp_path / "models", 3)


@pytest.fixture
def env(registry: Registry, tmp_path: Path) -> dict[str, str]:
    """The settings."""
    return {"STATE_DIR": str(tmp_path)}


def test_models_list_is_a_line_each(registry: Registry, env: dict[str, str]) -> None:
    """Version, aliases, instant, data, artifact and first metric; what is refused says why in place of the metric."""
    registry.promote("2", now=NOW)
    registry.promote("2", alias="shadow", now=NOW)
    (registry.folder / "versions" / "3" / "card.json").unlink()
    lines = [line.split("\t") for line in invoke("models", "list", **env).stdout.splitlines()]
    assert [line[:4] for line in lines] == [
        ["1", "-", "2026-03-01 12:00", "simulated"],
        ["2", "champion, shadow", "2026-03-01 12:00", "simulated"],
        ["3", "-", "-", "-"],
    ]
    assert lines[0][4:] == [card(artifact(1)).artifact_hash[:12], "auc 0.710 (0.680 to 0.740)"]
    assert lines[2][4:] == ["-", "refused: card.json: it is missing"]


def test_models_list_in_json_has_all_facts(registry: Registry, env: dict[str, str]) -> None:
    """Programs get what ``/models`` says of each version."""
    found = json.loads(invoke("models", "list", "--json", **env).stdout)
    assert [one["version"] for one in found] == ["1", "2", "3"]
    assert (found[0]["created_at"], found[0]["metric"]["low"]) == ("2026-03-01T12:00:00Z", 0.68)


def test_models_list_of_nothing_says_so(tmp_path: Path) -> None:
    """A line for a person, a list for a program, and nothing is made."""
    settings = {"STATE_DIR": str(tmp_path)}
    assert invoke("models", "list", **settings).stdout == "no version is published yet\n"
    assert json.loads(invoke("models", "list", "--json", **settings).stdout) == []
    assert list(tmp_path.iterdir()) == []


def test_models_list_takes_a_card_without_metrics(tmp_path: Path) -> None:
    """A dash stands for what was not measured."""
    Registry(tmp_path, "other").publish(artifact(), card(artifact(), name="other", metrics=()))
    result = invoke("models", "list", MODEL_REGISTRY=str(tmp_path), MODEL_NAME="other")
    assert result.stdout.endswith("\t-\n")


def test_models_card_prints_every_part(registry: Registry, env: dict[str, str]) -> None:
    """Text for a terminal, in which no control character of a card or a reason gets through."""
    registry.promote("1", reason="bell \x07", now=NOW)
    lines = invoke("models", "card", "champion", **env).stdout.splitlines()
    assert lines[0] == f"model       {NAME} 1 [champion]"
    assert [line for line in lines if line.startswith("---")] == [
        f"--- {name}" for name in ("limits", "metrics", "fairness", "inputs", "rollouts")
    ]
    assert "all\ttest\tauc 0.710 (0.680 to 0.740)\t95 %\t60" in lines
    assert "score gap\tnew 0.400, old 0.500\tgap 0.100, allowed 0.200\tpassed" in lines
    assert lines[-1] == "2026-03-01 12:00 UTC\tchampion: version none -> 1 (promote)\tbell \\x07"


def test_models_card_says_which_part_is_empty(env: dict[str, str]) -> None:
    """A version that no alias has named has no rollouts."""
    assert invoke("models", "card", "2", **env).stdout.endswith("--- rollouts\n(none)\n")


def test_models_card_prints_json_and_html(registry: Registry, env: dict[str, str]) -> None:
    """What ``/models/{version}/card`` answers, in either form."""
    document = json.loads(invoke("models", "card", "2", "--json", **env).stdout)
    assert (document["version"], document["created_at"]) == ("2", "2026-03-01T12:00:00Z")
    assert invoke("models", "card", "2", "--html", **env).stdout.startswith("<!doctype html>")


def test_models_promote_moves_an_alias(registry: Registry, env: dict[str, str]) -> None:
    """By number, or the version of the other alias; the reason is kept."""
    told = [
        invoke("models", "promote", *arguments, "--reason", "better", **env).stdout
        for arguments in (("2", "--alias", "shadow"), ("1",), ("shadow",), ("2",))
    ]
    assert told == [
        "shadow: version none -> 2 (promote)\n",
        "champion: version none -> 1 (promote)\n",
        "champion: version 1 -> 2 (promote)\n",
        "champion: version 2 already, nothing was moved\n",
    ]
    assert [line.reason for line in registry.history()] == ["better"] * 3


def test_models_demote_takes_the_shadow_away(registry: Registry, env: dict[str, str]) -> None:
    """As text and as JSON; where there is none, nothing happens."""
    registry.promote("2", alias="shadow", now=NOW)
    told = [invoke("models", "demote", "shadow", "--reason", "worse", **env).stdout for _ in range(2)]
    assert told == ["shadow: version 2 -> none (demote)\n", "shadow: no version has it, nothing was moved\n"]
    registry.promote("3", alias="shadow", now=NOW)
    found = json.loads(invoke("models", "demote", "shadow", "--json", **env).stdout)
    assert (found["version"], found["rollout"]["former"], found["rollout"]["version"]) == (None, "3", None)
    assert invoke("models", "card", "2", **env).stdout.endswith("\tshadow: version 2 -> none (demote)\tworse\n")


def test_models_demote_refuses_the_champion(registry: Registry, env: dict[str, str]) -> None:
    """Exit code 1 with what to do instead, and the alias stays."""
    registry.promote("2", now=NOW)
    error = invoke("models", "demote", "champion", **env).exception
    assert isinstance(error, ModelError) and "promote another version, or roll back" in str(error)
    assert dict(registry.aliases()) == {"champion": "2"}


def test_models_say_that_a_shadow_gets_no_traffic(registry: Registry, env: dict[str, str]) -> None:
    """Where a shadow is made or listed, beside what programs read; a champion alone needs no such word."""
    assert invoke("models", "promote", "1", "--reason", "x", **env).stderr == ""
    assert invoke("models", "list", **env).stderr == ""
    promoted = invoke("models", "promote", "2", "--alias", "shadow", "--reason", "x", **env)
    listed = invoke("models", "list", **env)
    note = "shadow: kept ready for a promotion; no worker loads or checks it, and it gets no traffic\n"
    assert (promoted.stderr, listed.stderr) == (note, note)
    assert invoke("models", "list", "--json", **env).stderr == ""


def test_models_promote_prints_json(env: dict[str, str]) -> None:
    """The move, or null when the alias was there."""
    first, again = (
        json.loads(invoke("models", "promote", "2", "--reason", "x", "--json", **env).stdout) for _ in range(2)
    )
    assert (first["alias"], first["version"], first["rollout"]["action"]) == ("champion", "2", "promote")
    assert again == {"alias": "champion", "version": "2", "rollout": None}


def test_models_promote_refuses_what_no_worker_could_load(registry: Registry, env: dict[str, str]) -> None:
    """A version whose feature this application does not declare is whole, and would be refused by every worker."""
    inputs = (*INPUTS[:2], attrs.evolve(INPUTS[2], name="tip_smell"))
    described = card(artifact(), inputs=inputs, feature_hash=feature_hash([one.name for one in inputs]))
    error = invoke("models", "promote", registry.publish(artifact(), described), "--reason", "x", **env).exception
    assert isinstance(error, ModelError) and str(error).startswith("model 4: card: inputs: 'tip_smell' is not declared")
    assert dict(registry.aliases()) == {}


def test_models_promote_refuses_what_can_not_be_served(registry: Registry, env: dict[str, str]) -> None:
    """Exit code 1 with the reason, and the alias stays."""
    (registry.folder / "versions" / "3" / "model.ubj").write_bytes(b"")
    error = invoke("models", "promote", "3", "--reason", "x", **env).exception
    assert isinstance(error, ModelError) and str(error) == "model 3: model.ubj: it is empty"
    assert dict(registry.aliases()) == {}


def test_models_rollback_goes_back(registry: Registry, env: dict[str, str]) -> None:
    """One promotion at a time, as text and as JSON, until there is nothing before."""
    for version in ("1", "2", "3"):
        registry.promote(version, now=NOW)
    assert invoke("models", "rollback", "--reason", "worse", **env).stdout == "champion: version 3 -> 2 (rollback)\n"
    found = json.loads(invoke("models", "rollback", "--json", **env).stdout)
    assert (found["version"], found["rollout"]["former"]) == ("1", "2")
    error = invoke("models", "rollback", **env).exception
    assert isinstance(error, ModelError) and "no version before 1" in str(error)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("card", "9"), "VERSION: model '9': no such version; there is 1, 2, 3"),
        (("card", "../x"), "VERSION: model '../x': no such version"),
        (("card", "shadow"), "VERSION: model shadow: no version has this alias yet"),
        (("card", "1", "--json", "--html"), "give --json or --html, not both"),
        (("promote", "9", "--reason", "x"), "VERSION: model '9': no such version"),
        (("promote", "1"), "Missing option '--reason'"),
        (("promote", "1", "--reason", " "), "--reason: expected a text, got nothing"),
        (("promote", "1", "--reason", "x", "--alias", "canary"), "'canary' is not one of 'champion', 'shadow'"),
        (("rollback", "--alias", "canary"), "'canary' is not one of 'champion', 'shadow'"),
        (("demote", "canary"), "'canary' is not one of 'champion', 'shadow'"),
        (("demote",), "Missing argument '{champion|shadow}'"),
    ],
    ids=["version", "path", "alias", "both", "promote", "no reason", "blank", "canary", "back", "down", "down nothing"],
)
def test_models_refuse_bad_usage(env: dict[str, str], arguments: tuple[str, ...], problem: str) -> None:
    """What can't be meant is exit code 2 and names the argument."""
    result = invoke("models", *arguments, **env)
    assert result.exit_code == 2 and problem in result.stderr


@pytest.mark.parametrize(
    "command", [("list",), ("card", "1"), ("promote", "1", "--reason", "x"), ("rollback",), ("demote", "shadow")]
)
def test_models_need_a_registry(command: tuple[str, ...]) -> None:
    """With MODEL_REGISTRY=none each command says so."""
    error = invoke("models", *command, MODEL_REGISTRY="none").exception
    assert isinstance(error, SettingsError)
    assert str(error).startswith("MODEL_REGISTRY: this command needs a registry: unset it, or name a folder")
