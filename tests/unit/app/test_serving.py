"""Which model serves: it follows the registry's champion, refuses what must not be served, and says so."""

import asyncio
import contextlib
import datetime as dt
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from harness import wait_until
from registry_kit import NAME, NOW, artifact, card, filled_registry

from app.cli.session import new_event_loop
from app.serving import ModelServing, Starter, train_starter
from models.registry import Registry
from models.scorer import Scorer


@contextlib.asynccontextmanager
async def serving(registry: Registry | None, starter: Starter | None = None) -> AsyncIterator[ModelServing]:
    """Follows a registry while the block runs."""
    async with ModelServing(NAME, registry, Scorer(), train_starter=starter) as models:
        yield models


async def until(models: ModelServing, *, version: str | None, reason: str = "") -> None:
    """Waits until this version serves and the health has this reason."""

    def is_so() -> bool:
        health = models.health()
        return bool(health and health.version == version and reason in (health.reason or ""))

    await wait_until(is_so, 20, what=f"version {version} serves, {reason!r}")


def promoted(folder: Path, *versions: str, count: int = 3) -> Registry:
    """A registry whose champion was moved like this."""
    registry = filled_registry(folder, count)
    for version in versions:
        registry.promote(version, now=NOW)
    return registry


async def test_the_champion_serves_and_moves(tmp_path: Path) -> None:
    """What the alias names is loaded, at the start and whenever it moves; the health is ok then."""
    registry = promoted(tmp_path, "1")
    async with serving(registry) as models:
        assert models.health() is not None
        await until(models, version="1")
        registry.promote("2", now=NOW)
        await until(models, version="2")
        registry.rollback(now=NOW + dt.timedelta(hours=1))
        await until(models, version="1")
        health = models.health()
        assert health is not None
        assert (health.status, health.reason, health.is_simulated, health.name) == ("ok", None, True, NAME)
        assert models.served()["champion"].version == "1"


@pytest.mark.parametrize("damage", ["a-byte", "half", "other", "card"])
async def test_a_damaged_version_is_refused_and_the_old_one_goes_on(tmp_path: Path, damage: str) -> None:
    """An artifact that is not its card's, or an edited card, is never loaded, whoever moved the alias; mended it is."""
    registry = promoted(tmp_path, "1")
    file = registry.folder / "versions" / "2" / ("card.json" if damage == "card" else "model.ubj")
    good = file.read_bytes()
    bad = {
        "a-byte": good[:99] + bytes([good[99] ^ 1]) + good[100:],
        "half": good[: len(good) // 2],
        "other": artifact(9),
        "card": good.replace(b"It has seen no", b"It has seen one"),
    }
    async with serving(registry) as models:
        await until(models, version="1")
        registry.promote("2", now=NOW)  # it was sound at that moment
        await until(models, version="2")
        registry.promote("1", now=NOW)
        await until(models, version="1")
        file.write_bytes(bad[damage])
        (registry.folder / "aliases.json").write_text('{"champion": "2"}')
        await until(models, version="1", reason="; version 1 goes on")
        assert models.health() and models.health().status == "degraded"  # type: ignore[union-attr]  # just looked at
        file.write_bytes(good)
        registry.promote("3", now=NOW)
        await until(models, version="3")
        assert models.problem is None


async def test_a_version_that_this_application_can_not_read_is_refused(tmp_path: Path) -> None:
    """A model of features that are not declared here stays unloaded; the reason names the feature."""
    registry = Registry(tmp_path, NAME)
    registry.publish(artifact(), card(artifact()))
    registry.promote("1", now=NOW)
    async with ModelServing(NAME, registry, Scorer(), features={}) as models:
        await until(models, version=None, reason="'tip_length_chars' is not declared in this version")


async def test_after_the_first_look_the_champion_serves(tmp_path: Path) -> None:
    """Whoever waits for it finds the model in its place."""
    async with serving(promoted(tmp_path, "1")) as models:
        await models.first_look()
        assert models.scorer.model is not None and models.scorer.model.version == "1"


async def test_the_first_look_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """A registry that does not answer is waited for no longer than that; its model serves once it does."""
    registry = filled_registry(tmp_path, 1)
    pipe = registry.folder / "aliases.json"
    os.mkfifo(pipe)  # who reads it waits until somebody writes
    async with serving(registry) as models:
        await models.first_look(within_s=0.01)
        assert models.problem == "the model is being loaded"
        writer = await asyncio.to_thread(pipe.open, "wb")
        pipe.rename(tmp_path / "pipe")
        registry.promote("1", now=NOW)
        writer.close()
        await until(models, version="1")


async def test_without_a_registry_there_is_no_first_look() -> None:
    """Nothing is waited for."""
    async with serving(None) as models:
        await models.first_look()
        assert models.health() is None


async def test_without_a_champion_the_health_says_what_to_do(tmp_path: Path) -> None:
    """Versions that nobody promoted serve nobody."""
    async with serving(filled_registry(tmp_path, 1)) as models:
        await until(models, version=None, reason="no version is the champion: see 'models promote'")


async def test_a_champion_that_is_taken_away_goes_on_and_the_health_says_so(tmp_path: Path) -> None:
    """Without an alias there is nothing to move to: what serves is named beside what a person has to do."""
    registry = promoted(tmp_path, "1")
    async with serving(registry) as models:
        await until(models, version="1")
        (registry.folder / "aliases.json").unlink()
        await until(models, version="1", reason="no version is the champion: see 'models promote'; version 1 goes on")


async def test_an_empty_registry_has_its_starter_trained_once(tmp_path: Path) -> None:
    """The starter is asked for once, the health says so meanwhile, and what it promotes serves."""
    registry, asked = Registry(tmp_path, NAME), []

    async def train() -> None:
        asked.append(models.problem)
        registry.publish(artifact(), card(artifact()))
        registry.promote("1", now=NOW)

    async with serving(registry, train) as models:
        await until(models, version="1")
    assert asked == ["there is no model yet: the starter model is being trained"]


async def test_a_starter_that_fails_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong stands in the log, and in the health with what a person can do."""

    async def train() -> str:
        return "disk full"

    async with serving(Registry(tmp_path, NAME), train) as models:
        told = "the starter model could not be trained (disk full): see 'models train --simulated --promote'"
        await until(models, version=None, reason=told)
    assert [record.fields for record in caplog.records if record.levelname == "ERROR"] == [{"error": "disk full"}]


async def test_no_starter_where_a_version_is_refused(tmp_path: Path) -> None:
    """A registry with something in it is a person's business: nothing is trained over it."""
    registry = promoted(tmp_path, "1", count=1)
    (registry.folder / "versions" / "1" / "model.ubj").write_bytes(b"")
    asked = []

    async def train() -> None:
        asked.append(1)

    async with serving(registry, train) as models:
        await until(models, version=None, reason="it is empty")
    assert asked == []


async def test_no_starter_over_versions_that_nobody_promoted(tmp_path: Path) -> None:
    """What has learned from users is a person's to promote; the health says what they have to do."""
    asked = []

    async def train() -> None:
        asked.append(1)

    registry = Registry(tmp_path, NAME)
    training = attrs.evolve(card(artifact()).training, is_simulated=False)
    registry.publish(artifact(), card(artifact(), training=training))
    async with serving(registry, train) as models:
        await until(models, version=None, reason="no version is the champion: see 'models promote'")
        registry.promote("1", now=NOW)
        await until(models, version="1")
    assert asked == []


async def test_a_starter_that_ended_before_its_promotion_is_asked_for_again(tmp_path: Path) -> None:
    """A version of a simulated world that never had an alias is what such a one leaves."""
    registry = filled_registry(tmp_path, 1)

    async def train() -> None:
        registry.promote("1", now=NOW)

    async with serving(registry, train) as models:
        await until(models, version="1")
        assert models.problem is None


async def test_a_starter_that_can_not_begin_is_told(tmp_path: Path) -> None:
    """A system that starts no further process is named, rather than a training that nobody carries out."""

    async def train() -> None:
        raise OSError("no more processes")

    async with serving(Registry(tmp_path, NAME), train) as models:
        await until(models, version=None, reason="the starter model could not be trained (no more processes)")


async def test_a_stop_ends_the_training_of_the_starter(tmp_path: Path) -> None:
    """Whoever trains is cancelled and waited for; no task is left."""
    ended = []

    async def train() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    before = asyncio.all_tasks()
    async with serving(Registry(tmp_path, NAME), train) as models:
        await until(models, version=None, reason="the starter model is being trained")
        assert asyncio.all_tasks() > before
    assert (ended, asyncio.all_tasks()) == ([1], before)


async def test_a_mended_version_serves_without_another_move(tmp_path: Path) -> None:
    """A version that was refused is looked at again though its alias has stayed, and its reason goes."""
    registry = promoted(tmp_path, "1", count=1)
    file = registry.folder / "versions" / "1" / "model.ubj"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    async with ModelServing(NAME, registry, Scorer(), try_again_s=0) as models:
        await until(models, version=None, reason="it was changed or cut off")
        file.write_bytes(good)
        await until(models, version="1")
        await wait_until(lambda: models.problem is None, what="the reason is gone")


async def test_an_alias_that_goes_back_to_what_serves_ends_the_degradation(tmp_path: Path) -> None:
    """Once the alias names the serving version again, nothing is wrong any more, and nothing is loaded anew."""
    registry = promoted(tmp_path, "1")
    async with serving(registry) as models:
        await until(models, version="1")
        loaded = models.scorer.model
        (registry.folder / "aliases.json").write_text('{"champion": "9"}')
        await until(models, version="1", reason="; version 1 goes on")
        (registry.folder / "aliases.json").write_text('{"champion": "1"}')
        await wait_until(lambda: models.problem is None, what="the reason is gone")
        assert models.scorer.model is loaded


async def test_the_starters_process_tells_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real training process says of its failure is what an operator reads."""
    (tmp_path / "models").write_text("a file where the registry should be")
    monkeypatch.setenv("MODEL_REGISTRY", str(tmp_path / "models"))
    assert (await train_starter() or "").startswith("MODEL_REGISTRY: expected a folder")


async def test_a_cancelled_starter_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training process ends with whoever has asked for it."""
    monkeypatch.setenv("MODEL_REGISTRY", str(tmp_path / "models"))
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    before = children.read_text().split()
    training = asyncio.create_task(train_starter())
    await wait_until(lambda: len(children.read_text().split()) > len(before), what="the training process runs")
    training.cancel()
    assert isinstance((await asyncio.gather(training, return_exceptions=True))[0], asyncio.CancelledError)
    assert children.read_text().split() == before
    assert not list((tmp_path / "models").glob("*/versions/*"))


ENDED = """
import os, pathlib, subprocess
left = subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL)
pathlib.Path("pids.new").write_text(f"{os.getpid()} {left.pid}")
pathlib.Path("pids.new").rename("pids")
"""


def test_a_starter_that_has_just_ended_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the worker's own loop, too, a stop stays one when the process is gone and its output is still open."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(ENDED)
    monkeypatch.chdir(tmp_path)

    async def cancel() -> object:
        training = asyncio.create_task(train_starter())
        await wait_until((tmp_path / "pids").exists, what="the process has written")
        ended, left = (tmp_path / "pids").read_text().split()
        await wait_until(lambda: not Path("/proc", ended).exists(), what="the process is gone")
        training.cancel()
        [end] = await asyncio.gather(training, return_exceptions=True)
        open_count = len(os.listdir("/proc/self/fd"))
        os.kill(int(left), signal.SIGKILL)
        await wait_until(lambda: len(os.listdir("/proc/self/fd")) < open_count, what="its output is closed")
        return end

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert isinstance(runner.run(cancel()), asyncio.CancelledError)


async def test_without_a_registry_nothing_is_followed() -> None:
    """MODEL_REGISTRY=none: no model is no fault, and none is on its way."""
    async with serving(None) as models:
        assert models.health() is None and models.served() == {}


async def test_an_error_that_nobody_foresaw_is_told() -> None:
    """Should following end, the health does not stay as it was for ever."""

    class Broken(Registry):
        def stamp(self) -> tuple[object, ...]:
            raise LookupError("a mistake")

    async with serving(Broken(Path("nowhere"), NAME)) as models:
        await until(models, version=None, reason="the registry is no longer followed (LookupError)")


async def test_a_version_that_is_promoted_meanwhile_serves_in_spite_of_a_failed_starter(tmp_path: Path) -> None:
    """What serves is ok, whatever became of the training."""
    looks = []

    class Watched(Registry):
        def stamp(self) -> tuple[object, ...]:
            looks.append(1)
            return super().stamp()

    registry, gate = Watched(tmp_path, NAME), asyncio.Event()

    async def train() -> str:
        await gate.wait()
        return "disk full"

    async with serving(registry, train) as models:
        await until(models, version=None, reason="is being trained")
        registry.publish(artifact(), card(artifact()))
        registry.promote("1", now=NOW)
        await until(models, version="1")
        looks.clear()
        gate.set()
        await wait_until(lambda: len(looks) >= 3, what="the registry was looked at after the training")
        assert (models.served()["champion"].version, models.problem) == ("1", None)
