"""``models train``: what is learned from, what is said of it, and when the starter is made."""

import asyncio
import datetime as dt
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click.testing
import numpy as np
import pytest
from harness import NatsServer, wait_until
from nats.aio.client import Client
from process_kit import invoke
from service_kit import client

from models.card import feature_hash
from models.codec import encode_json
from models.decisions import SCORE_SUBJECT, ScoreDecided, encode_decision, encode_matrix
from models.errors import StoreUnwritable, TrainingError
from models.features import FEATURES, Assembler, Feature
from models.files import locked
from models.registry import Registry
from models.training.dataset import Dataset
from models.training.fit import Parameters, train
from models.training.simulation import STARTER_NAMES, simulate

SMALL = ("--rows", "1500")
REWARD_SUBJECT = "feedback.tip.rewarded"
DAY_S = 86_400.0


def registry_in(folder: Path) -> Registry:
    """The registry of a STATE_DIR."""
    return Registry(folder / "models", "tip-scorer")


def run(folder: Path, *arguments: str, **settings: str) -> click.testing.Result:
    """The command with a STATE_DIR, without NATS unless it is given."""
    return invoke("models", "train", *arguments, **{"STATE_DIR": str(folder), "NATS_URL": ""} | settings)


Logged = tuple[list[ScoreDecided], list[dict[str, Any]]]


def logged(data: Dataset, *, last_at: float) -> Logged:
    """Decisions on ten rows each as the log holds them, an hour apart, and the rewards that they got."""
    ids = tuple(f"t{n}" for n in range(10))
    made, rewards = [], []
    for n in range(len(data) // 10):
        rows = slice(10 * n, 10 * n + 10)
        at = dt.datetime.fromtimestamp(last_at - 3600 * (len(data) // 10 - 1 - n), dt.UTC)
        facts: dict[str, Any] = {"request_id": f"r{n}", "user_id": str(data.groups[10 * n])}
        scores = {"scores": [0.5] * 10, "matrix": encode_matrix(data.matrix[rows])}
        made.append(
            ScoreDecided(**facts, **scores, now=at, candidates=ids, feature_hash=feature_hash(data.names)),
        )
        event = facts | {"reward": 1, "occurred_at": at}
        rewards += [event | {"tip_id": ids[row]} for row in range(10) if data.labels[rows][row]]
    return made, rewards


def with_champion(folder: Path, names: Sequence[str], declared: Mapping[str, Feature] = FEATURES) -> Dataset:
    """Promotes a model of these features, and returns the simulated rows that it has learned from."""
    registry, now = registry_in(folder), dt.datetime.now(dt.UTC)
    data = simulate(names, row_count=1_500).dataset
    inputs = Assembler(names, declared).inputs
    trained = train(data, name=registry.name, inputs=inputs, parameters=Parameters(), now=now)
    registry.promote(registry.publish(trained.artifact, trained.card), now=now)
    return data


def unfair_rows() -> Dataset:
    """400 users, of whom those active at weekends are rewarded for all, and the others for one tip of ten."""
    data = simulate(STARTER_NAMES, row_count=4_000).dataset
    user = np.arange(4_000) // 10
    matrix = data.matrix.copy()
    matrix[:, STARTER_NAMES.index("is_weekend_active")] = user % 2
    labels = ((user % 2 == 1) | (np.arange(4_000) % 10 == 0)).astype(np.float32)
    return attrs.evolve(data, matrix=matrix, labels=labels, groups=np.array([f"u{n}" for n in user], dtype=object))


@attrs.frozen
class Bench:
    """A server with streams, and an empty STATE_DIR."""

    url: str
    folder: Path
    client: Client

    async def fill(self, count: int, *, last_at: float) -> None:
        """Stores so many decisions of the simulated world with their rewards."""
        if count:
            await self.store(logged(simulate(STARTER_NAMES, row_count=10 * count).dataset, last_at=last_at))
        else:
            await self.store(([], []))

    async def store(self, events: Logged) -> None:
        """Publishes decisions and rewards, and one of each that is damaged; returns once all are stored."""
        for decision in events[0]:
            await self.client.publish(SCORE_SUBJECT, encode_decision(decision))
        for reward in events[1]:
            await self.client.publish(REWARD_SUBJECT, encode_json(reward))
        for subject in (SCORE_SUBJECT, REWARD_SUBJECT):
            await self.client.jetstream().publish(subject, b"{}")

    async def run(self, *arguments: str, **settings: str) -> click.testing.Result:
        """Runs the command in a thread of its own, as it brings its event loop along."""
        return await asyncio.to_thread(lambda: run(self.folder, *arguments, NATS_URL=self.url, **settings))


@pytest.fixture
async def bench(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A server that has both streams."""
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="DECISIONS", subjects=["decisions.>"])
        await nc.jetstream().add_stream(name="FEEDBACK", subjects=["feedback.>"])
        yield Bench(nats_server.url, tmp_path, nc)


def test_simulated_training_says_what_came_out(tmp_path: Path) -> None:
    """Version, rows, figures with their intervals and the next step; nobody is served by it yet."""
    result = run(tmp_path, "--simulated", *SMALL)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0].startswith("version 1: 1500 simulated rows, ")
    assert lines[1].startswith("auc: 0.") and lines[1].endswith(", 95 %)")
    assert lines[-1] == "next: models card 1, then models promote 1 --reason …"
    registry = registry_in(tmp_path)
    assert (registry.fetch("1").card.training.is_simulated, dict(registry.aliases())) == (True, {})


def test_training_tells_programs(tmp_path: Path) -> None:
    """With --json figures and the move of the alias come as one object."""
    facts = json.loads(run(tmp_path, "--simulated", *SMALL, "--promote", "--json").stdout)
    assert (facts["version"], facts["rows"], facts["features"], facts["is_simulated"]) == ("1", 1500, 24, True)
    assert facts["metrics"]["auc"]["low"] < facts["metrics"]["auc"]["value"] < facts["metrics"]["auc"]["high"]
    assert (facts["rollout"]["alias"], facts["rollout"]["version"], facts["left_out"]) == ("champion", "1", {})


def test_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    """Another seed makes another world, and another model."""
    for seed in ("4", "4", "5"):
        run(tmp_path, "--simulated", *SMALL, "--seed", seed)
    hashes = [registry_in(tmp_path).fetch(version).card.artifact_hash for version in ("1", "2", "3")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_starter_is_made_for_an_empty_registry(tmp_path: Path) -> None:
    """It is promoted at once; asked for again, nothing happens and nothing is said."""
    first, second = (run(tmp_path, "--starter", *SMALL) for _ in range(2))
    registry = registry_in(tmp_path)
    assert first.stdout.splitlines()[-1] == "champion: version none -> 1"
    assert (second.exit_code, second.output) == (0, "")
    assert (registry.versions(), dict(registry.aliases())) == (["1"], {"champion": "1"})
    assert registry.history()[0].reason == "the starter model"


def test_starter_finishes_what_another_one_began(tmp_path: Path) -> None:
    """A starter that ended between its version and the promotion is made up for, and nothing is trained again."""
    run(tmp_path, "--simulated", *SMALL)
    result = run(tmp_path, "--starter", *SMALL)
    registry = registry_in(tmp_path)
    assert result.stdout.splitlines()[-1] == "champion: version none -> 1"
    assert (registry.versions(), dict(registry.aliases())) == (["1"], {"champion": "1"})
    assert registry.history()[0].reason == "the starter model"


def test_starter_decides_nothing_that_a_person_has_decided(tmp_path: Path) -> None:
    """Once an alias was moved, a registry without a champion stays as it is."""
    registry = registry_in(tmp_path)
    run(tmp_path, "--simulated", *SMALL)
    registry.promote("1", alias="shadow", now=dt.datetime.now(dt.UTC))
    result = run(tmp_path, "--starter", *SMALL)
    assert (result.exit_code, result.output, dict(registry.aliases())) == (0, "", {"shadow": "1"})


async def test_starter_gives_way_to_a_champion_that_came_meanwhile(tmp_path: Path) -> None:
    """Who promotes a version while the starter is trained is not overruled, in whichever order both get there."""
    registry, ready = registry_in(tmp_path), registry_in(tmp_path / "other")
    run(tmp_path / "other", "--simulated", *SMALL)
    training = asyncio.create_task(asyncio.to_thread(lambda: run(tmp_path, "--starter", *SMALL)))
    await wait_until((registry.folder / "starter.lock").exists, what="the starter is at it")
    chosen = registry.publish(ready.fetch("1").artifact, ready.fetch("1").card)
    registry.promote(chosen, reason="a person's", now=dt.datetime.now(dt.UTC))
    result = await training
    assert (result.exit_code, dict(registry.aliases())) == (0, {"champion": chosen})


def test_starter_leaves_it_to_who_is_at_it(tmp_path: Path) -> None:
    """While another process holds the lock it is silent and done."""
    registry = registry_in(tmp_path)
    registry.folder.mkdir(parents=True)
    with locked(registry.folder / "starter.lock", wait_s=0):
        result = run(tmp_path, "--starter", *SMALL)
    assert (result.exit_code, result.output, registry.versions()) == (0, "", [])


def test_starter_says_that_the_registry_can_not_be_written(tmp_path: Path) -> None:
    """A file where the folder should be is one clear line."""
    (tmp_path / "models").write_text("")
    result = run(tmp_path, "--starter")
    assert isinstance(result.exception, StoreUnwritable)
    assert "the model registry can't be written" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--simulated", "--since", "2026-01-01T00:00:00Z"), "a simulated world has none"),
        (("--starter", "--until", "2026-01-01T00:00:00Z"), "a simulated world has none"),
        (("--starter", "--simulated"), "give it alone"),
        (("--starter", "--promote"), "give it alone"),
        (("--since", "2026-01-02T00:00:00Z", "--until", "2026-01-02T00:00:00Z"), "--since is not before --until"),
        (("--simulated", "--add-feature", "urgency"), "a simulated world has its own features"),
        (("--add-feature", "urgence"), "'urgence' is not declared; there are acceptance_rate_30d, "),
        (("--rows", "499"), "499 is not in the range"),
        (("--seed", "-1"), "-1 is not in the range"),
    ],
    ids=" ".join,
)
def test_contradictions_are_bad_usage(tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    """Nothing is trained, and the line says what can't go together."""
    result = run(tmp_path, *arguments)
    assert result.exit_code == 2
    assert problem in result.output


async def test_training_learns_from_the_log(bench: Bench) -> None:
    """Rows are of decisions with rewards, the card names the streams, and what was left out is counted."""
    await bench.fill(150, last_at=time.time() - 2 * DAY_S)
    result = await bench.run("--json")
    assert result.exit_code == 0, result.output
    facts, card = json.loads(result.stdout), registry_in(bench.folder).read_card("1")
    unrewarded = facts["left_out"].get("unrewarded", 0)
    assert facts["left_out"]["unreadable"] == 1
    assert facts["rows"] == 10 * (150 - unrewarded)
    assert not card.training.is_simulated
    assert card.training.source.startswith("decisions.score with feedback.tip.rewarded")
    assert tuple(one.name for one in card.inputs) == STARTER_NAMES


async def test_training_takes_the_decisions_of_a_time(bench: Bench) -> None:
    """From --since on and before --until; what lies outside is not counted as left out."""
    last_at = float(int(time.time() - 2 * DAY_S))
    await bench.fill(150, last_at=last_at)
    since, until = (dt.datetime.fromtimestamp(last_at - 3600 * n, dt.UTC) for n in (99, 9))
    result = await bench.run("--json", "--since", since.isoformat(), "--until", until.isoformat())
    assert result.exit_code == 0, result.output
    facts, training = json.loads(result.stdout), registry_in(bench.folder).read_card("1").training
    assert facts["rows"] == 10 * (90 - facts["left_out"].get("unrewarded", 0))
    assert since <= training.first_at < training.last_at < until


async def test_first_reward_of_a_tip_counts(bench: Bench) -> None:
    """A second one for the same request and tip changes nothing."""
    made, rewards = logged(simulate(STARTER_NAMES, row_count=1_000).dataset, last_at=time.time() - 2 * DAY_S)
    await bench.store((made, rewards + [reward | {"reward": 0} for reward in rewards]))
    ratio = json.loads((await bench.run("--json")).stdout)["positive_ratio"]
    assert ratio == pytest.approx(len(rewards) / (10 * len({reward["request_id"] for reward in rewards})))


async def test_training_keeps_the_newest_rows(bench: Bench) -> None:
    """With --rows the older decisions are left out, and counted."""
    await bench.fill(150, last_at=time.time() - 2 * DAY_S)
    facts = json.loads((await bench.run("--json", "--rows", "600")).stdout)
    assert (facts["rows"], facts["left_out"]["too_old"] > 0) == (600, True)


async def test_training_learns_the_features_of_the_champion(bench: Bench) -> None:
    """From the decisions of every model in the registry; those of one that nobody knows are left out."""
    former = with_champion(bench.folder, STARTER_NAMES[:4])
    data = with_champion(bench.folder, STARTER_NAMES[:5])
    made, rewards = logged(data, last_at=time.time() - 2 * DAY_S)
    narrow = {"feature_hash": feature_hash(former.names), "matrix": encode_matrix(data.matrix[:10, :4])}
    unknown = {"feature_hash": feature_hash(("a",)), "matrix": encode_matrix(data.matrix[:10, :1])}
    made[:3] = [attrs.evolve(one, **narrow) for one in made[:3]]
    made[3:5] = [attrs.evolve(one, **unknown) for one in made[3:5]]
    await bench.store((made, rewards))
    facts = json.loads((await bench.run("--json")).stdout)
    assert (facts["version"], facts["features"], facts["left_out"]["other_features"]) == ("3", 5, 2)
    assert facts["rows"] == 10 * (len(made) - 2 - facts["left_out"].get("unrewarded", 0))


async def test_training_adds_a_feature_that_no_decision_has_yet(bench: Bench) -> None:
    """Its column is missing everywhere, and the new version's card lists it: the log will have it from then on."""
    data = with_champion(bench.folder, STARTER_NAMES[:5])
    await bench.store(logged(data, last_at=time.time() - 2 * DAY_S))
    result = await bench.run("--json", "--add-feature", "hours_since_sync", "--add-feature", STARTER_NAMES[0])
    assert result.exit_code == 0, result.output
    inputs = registry_in(bench.folder).read_card("2").inputs
    assert [one.name for one in inputs] == [*STARTER_NAMES[:5], "hours_since_sync"]


MOODS = """
from models.features import Feature

def setup(app):
    app.add_feature(Feature(name="mood", source="context", unit="ratio", meaning="how it feels", value=lambda at: 0.5))
"""


async def test_training_knows_the_features_of_plugins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A champion that reads one is followed by a version that does, whose card says what the plugin says of it."""
    (bench.folder / "moods_to_train.py").write_text(MOODS)
    monkeypatch.syspath_prepend(bench.folder)
    mood = Feature(name="mood", source="context", unit="ratio", meaning="how it feels")
    data = with_champion(bench.folder, (*STARTER_NAMES[:5], "mood"), {**FEATURES, "mood": mood})
    await bench.store(logged(data, last_at=time.time() - 2 * DAY_S))
    result = await bench.run("--json", PLUGINS="moods_to_train")
    assert result.exit_code == 0, result.exception
    assert registry_in(bench.folder).read_card("2").inputs[-1] == mood.as_input()


async def test_unfair_model_says_so(bench: Bench) -> None:
    """What did not pass is a line of its own, after the figures."""
    await bench.store(logged(unfair_rows(), last_at=time.time() - 2 * DAY_S))
    result = await bench.run()
    assert result.exit_code == 0, result.exception
    [told] = [line for line in result.stdout.splitlines() if line.startswith("not fair: ")]
    assert told.startswith("not fair: mean score by is_weekend_active: 0.") and told.endswith(" apart, 0.100 allowed")


@pytest.mark.parametrize(
    ("count", "age_days", "problem"),
    [
        pytest.param(0, 2, "no decision can be learned from (0 decisions used, 1 unreadable)", id="empty"),
        pytest.param(20, 2, "expected at least 500 rows, got", id="few"),
        pytest.param(20, 0, "can be learned from (0 decisions used, 1 unreadable, 20 less than a day old)", id="young"),
    ],
)
async def test_too_little_data_is_one_line(bench: Bench, count: int, age_days: float, problem: str) -> None:
    """It says what there is and names the other way, and no version is made."""
    await bench.fill(count, last_at=time.time() - age_days * DAY_S)
    result = await bench.run()
    assert isinstance(result.exception, TrainingError)
    assert problem in str(result.exception)
    assert str(result.exception).endswith("; --simulated trains on a simulated world instead")
    assert registry_in(bench.folder).versions() == []


async def test_training_without_streams_has_no_data(nats_server: NatsServer, tmp_path: Path) -> None:
    """A broker that no worker has used yet has nothing to learn from."""
    result = await asyncio.to_thread(lambda: run(tmp_path, "--since", "2026-01-01T00:00:00Z", NATS_URL=nats_server.url))
    assert "no decision can be learned from (0 decisions used)" in str(result.exception)
