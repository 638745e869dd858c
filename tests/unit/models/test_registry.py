"""The registry of models: what is kept, what is refused and why; aliases move in test_registry_aliases.py."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_kit import AUC, INPUTS, NAME, NOW, artifact, card, filled_registry, flip, part

from models.card import Card
from models.errors import ModelError, ModelUnknown, StoreUnwritable
from models.registry import Registry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with three versions and no alias."""
    return filled_registry(tmp_path / "models", 3)


def write_card(registry: Registry, content: bytes, version: str = "2") -> None:
    """Puts a card in the place of a version's, and its hash beside it, as if it had been published like that."""
    part(registry, version, "card.json").write_bytes(content)
    part(registry, version, "card.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  card.json\n")


def edit_card(registry: Registry, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the card of version 2, and its hash with it."""
    facts = json.loads(part(registry, "2", "card.json").read_bytes())
    change(facts)
    write_card(registry, json.dumps(facts).encode())


def test_registry_gives_back_what_was_published(registry: Registry) -> None:
    """Artifact and card come back as they were, and a booster can be made of the artifact."""
    import xgboost

    stored = registry.fetch("2")
    assert (stored.version, stored.artifact, stored.card) == ("2", artifact(2), card(artifact(2)))
    booster = xgboost.Booster()
    booster.load_model(bytearray(stored.artifact))
    assert booster.num_features() == len(stored.card.inputs)


def test_registry_lists_versions_by_number(registry: Registry) -> None:
    """Ten comes after nine, and what is no version is left out: a crash's leftovers, files of others."""
    for name in ("10", ".new", "02", "x", "1e1", "0"):
        (registry.folder / "versions" / name).mkdir()
    assert registry.versions() == ["1", "2", "3", "10"]
    assert registry.publish(artifact(), card(artifact())) == "11"
    assert not (registry.folder / "versions" / ".new").exists()


def test_registry_is_empty_before_the_first_version(tmp_path: Path) -> None:
    """Reading makes nothing."""
    registry = Registry(tmp_path / "models", NAME)
    assert (registry.versions(), dict(registry.aliases()), registry.history()) == ([], {}, [])
    with pytest.raises(ModelUnknown, match=r"^model '1': no such version; nothing is published yet$"):
        registry.fetch("1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["../x", "..", "", "4", "01", "1/", "1\n", "١", "champion", "1/../1", "x" * 70])
def test_registry_reads_versions_alone(registry: Registry, version: str) -> None:
    """A name that is no version leads nowhere, least of all out of the folder."""
    for function in (registry.fetch, registry.read_card):
        with pytest.raises(ModelUnknown, match="no such version; there is 1, 2, 3$"):
            function(version)
    with pytest.raises(ModelUnknown):
        registry.promote(version, now=NOW)


def test_registry_names_the_newest_of_many_versions(registry: Registry) -> None:
    """An error stays short."""
    for number in range(4, 14):
        (registry.folder / "versions" / str(number)).mkdir()
    with pytest.raises(ModelUnknown, match="there is … 4, 5, 6, 7, 8, 9, 10, 11, 12, 13$"):
        registry.fetch("14")


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "a/b", ".a", "a" * 65])
def test_registry_refuses_a_name_that_is_no_folder(tmp_path: Path, name: str) -> None:
    """The name of a model is a folder's, and stays inside of the registry."""
    with pytest.raises(ModelError, match="expected a name like"):
        Registry(tmp_path, name)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(flip, r"its SHA-256 is \w{64} \(\d+ bytes\), .* changed or cut off", id="tampered"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), "changed or cut off", id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), "it is empty", id="empty"),
        pytest.param(lambda path: path.write_bytes(artifact(1)), "is that of another card", id="another's"),
        pytest.param(lambda path: path.unlink(), "it is missing", id="missing"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), "can't be read (Is a directory)", id="folder"),
    ],
)
def test_registry_refuses_an_artifact_that_is_not_its_cards(
    registry: Registry, spoil: Callable[[Path], object], problem: str
) -> None:
    """It is neither handed on nor promoted, and the other versions are."""
    spoil(part(registry, "2", "model.ubj"))
    problem = problem if "\\" in problem or "*" in problem else problem.replace("(", r"\(").replace(")", r"\)")
    for function in (lambda: registry.fetch("2"), lambda: registry.promote("2", now=NOW)):
        with pytest.raises(ModelError, match=f"^model 2: model.ubj: .*{problem}"):
            function()
    assert dict(registry.aliases()) == {}
    assert registry.fetch("3").version == "3"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda facts: facts.clear(), "name: missing", id="empty"),
        pytest.param(lambda facts: facts["metrics"][1].pop("low"), "metrics[1].low: missing", id="missing"),
        pytest.param(
            lambda facts: facts["inputs"][2].update(source="moon"), "inputs[2].source: invalid enum value", id="enum"
        ),
        pytest.param(
            lambda facts: facts["training"].update(first_at="2026-03-01T00:00:00"),
            "training.first_at: expected an instant with a zone",
            id="zone",
        ),
        pytest.param(lambda facts: facts.update(artifact_hash="abc"), "artifact_hash: expected a SHA-256", id="hash"),
        pytest.param(lambda facts: facts.update(card_schema=2), "card_schema: expected 1, got 2", id="newer"),
        pytest.param(lambda facts: facts.update(name="other"), "name: expected 'tip-scorer', got 'other'", id="name"),
        pytest.param(lambda facts: facts["inputs"].reverse(), "feature_hash: expected ", id="order"),
        pytest.param(lambda facts: facts.update(feature_hash="x"), "feature_hash: expected ", id="feature hash"),
        pytest.param(lambda facts: facts.update(inputs=[]), "inputs: expected at least one", id="no inputs"),
        pytest.param(
            lambda facts: facts["inputs"].append(facts["inputs"][0]), "inputs: expected each name once", id="twice"
        ),
    ],
)
def test_registry_refuses_a_card_by_the_path_of_its_field(
    registry: Registry, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    """Whatever is wrong with a card, its version is not served, and the error says where."""
    edit_card(registry, change)
    with pytest.raises(ModelError) as caught:
        registry.fetch("2")
    assert str(caught.value).startswith(f"model 2: card.json: {problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "card.json: it is missing"), (b"{", "card.json: payload: not valid JSON"), (b"\xff", "card.json: payload")],
    ids=["missing", "json", "bytes"],
)
def test_registry_serves_nothing_without_a_card(registry: Registry, content: bytes | None, problem: str) -> None:
    """An artifact alone is not enough."""
    part(registry, "2", "card.json").unlink()
    if content is not None:
        part(registry, "2", "card.json").write_bytes(content)
    with pytest.raises(ModelError, match=f"^model 2: {problem}"):
        registry.fetch("2")


def test_registry_refuses_the_card_of_another_artifact(registry: Registry) -> None:
    """Cards can't be exchanged."""
    write_card(registry, part(registry, "1", "card.json").read_bytes())
    with pytest.raises(ModelError, match="is that of another card"):
        registry.fetch("2")


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        pytest.param(
            "card.json",
            lambda content: content.replace(b"It has seen no", b"It has seen one"),
            r"card.json: its SHA-256 is \w{64}, card.sha256 has another one: it was changed after",
            id="edited",
        ),
        pytest.param("card.json", lambda content: content + b"\n", "card.json: its SHA-256 is", id="a byte more"),
        pytest.param("card.sha256", lambda content: content[:20], "card.json: its SHA-256 is", id="hash cut off"),
        pytest.param("card.sha256", lambda _: None, "card.sha256: it is missing", id="no hash"),
    ],
)
def test_registry_refuses_a_card_that_is_not_as_it_was_published(
    registry: Registry, name: str, change: Callable[[bytes], bytes | None], problem: str
) -> None:
    """What a person may rely on is what was published: such a card is neither shown nor served nor promoted."""
    content = change(part(registry, "2", name).read_bytes())
    part(registry, "2", name).unlink()
    if content is not None:
        part(registry, "2", name).write_bytes(content)
    for function in (registry.read_card, registry.fetch, lambda version: registry.promote(version, now=NOW)):
        with pytest.raises(ModelError, match=f"^model 2: {problem}"):
            function("2")
    assert (dict(registry.aliases()), registry.fetch("3").version) == ({}, "3")


@pytest.mark.parametrize(
    ("content", "made", "problem"),
    [
        pytest.param(b"", card(b""), "it is empty", id="empty"),
        pytest.param(b"{", card(b"[]"), "its SHA-256 is", id="hash"),
        pytest.param(b"\x80\x04N.", card(b"\x80\x04N."), "expected a whole model in XGBoost's UBJ", id="pickle"),
        pytest.param(b'{"learner":{}}', card(b'{"learner":{}}'), "XGBoost's UBJ", id="json"),
        pytest.param(
            b"{L}", card(b"{L}", parameters={"eta": float("nan")}), "card.json: parameters", id="not a number"
        ),
        pytest.param(b"{L}", card(b"{L}", limits=("\udcff",)), "expected text that UTF-8 can hold", id="surrogate"),
    ],
)
def test_publish_refuses_what_could_never_be_served(
    registry: Registry, content: bytes, made: Card, problem: str
) -> None:
    """Nothing of it is kept."""
    with pytest.raises(ModelError, match=f"^model \\(new\\): .*{problem}"):
        registry.publish(content, made)
    assert registry.versions() == ["1", "2", "3"]


def test_publish_says_that_the_registry_can_not_be_written(tmp_path: Path) -> None:
    """A file in the way, as a full or read-only disk, is one error with the folder; readers learn it too."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "versions").touch()
    registry = Registry(tmp_path, NAME)
    with pytest.raises(StoreUnwritable, match="the model registry can't be written") as caught:
        registry.publish(artifact(), card(artifact()))
    assert caught.value.path == registry.folder
    with pytest.raises(ModelError, match=r"^model tip-scorer: versions: can't be read \(Not a directory\)$"):
        registry.versions()


PUBLISH = """
import sys
from pathlib import Path
from registry_kit import AUC, INPUTS, NAME, NOW, artifact, card, filled_registry, flip, part
from models.registry import STARTER_REASON, Registry
content = Path(sys.argv[2]).read_bytes()
for _ in range(5):
    print(Registry(Path(sys.argv[1]), NAME).publish(content, card(content)))
"""


def test_publish_gives_each_process_numbers_of_its_own(tmp_path: Path) -> None:
    """Two processes that publish at once keep ten whole versions."""
    (tmp_path / "artifact").write_bytes(artifact())
    command = [sys.executable, "-c", PUBLISH, str(tmp_path), str(tmp_path / "artifact")]
    paths = f"{ROOT}:{ROOT / 'tests'}"
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(subprocess.run, command, env={"PYTHONPATH": paths}, capture_output=True, check=True, text=True)
            for _ in range(2)
        ]
        numbers = [number for call in calls for number in call.result().stdout.split()]
    registry = Registry(tmp_path, NAME)
    assert sorted(numbers, key=int) == registry.versions() == [str(number) for number in range(1, 11)]
    assert {registry.fetch(version).artifact for version in numbers} == {artifact()}


def test_promote_from_many_threads_leaves_a_history_without_gaps(registry: Registry) -> None:
    """Each line found what the one before it had left."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: registry.promote(str(number % 3 + 1), now=NOW), range(40)))
    history = registry.history()
    assert [line.former for line in history] == [None, *(line.version for line in history[:-1])]
    assert registry.aliases()["champion"] == history[-1].version


def test_stored_shows_no_bytes(registry: Registry) -> None:
    """What ends in a log by accident is short."""
    assert "artifact=" not in repr(registry.fetch("1"))


def test_kit_is_a_whole_card() -> None:
    """The card of these tests has something in every part."""
    made = card(artifact())
    assert (made.inputs, made.metrics[0]) == (INPUTS, AUC)
    assert all((made.slices, made.fairness, made.limits, made.parameters))
