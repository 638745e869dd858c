"""Keeps the scorer on the model that the registry's champion alias names.

This module looks at the registry five times a second, loads what the alias names in a thread, and gives it to the
scorer when it is whole; a version that can't be served is told in /health, and the model before it goes on. For a
registry that awaits its starter model, one process has it trained and promoted, in a process of its own. What a
version, a card and an alias are is models/registry.py's business; scoring is models/scorer.py's.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Protocol

from app.cards import ServedModel, ServedModels
from models.card import Card
from models.errors import AppError
from models.features import FEATURES, Feature
from models.scorer import Model, Scorer, load_model
from streams.health import ModelHealth

log = logging.getLogger(__name__)

CHAMPION = "champion"
LOOK_S = 0.2
FIRST_LOOK_S = 5.0

Starter = Callable[[], Awaitable[str | None]]
"""Trains and promotes the first version of a registry; returns what went wrong, if anything did; may raise OSError."""
END_S = 2.0
"""Seconds in which a starter's process has to end when it is asked to."""
TRY_AGAIN_S = 10.0


class Stored(Protocol):
    """A version as the registry keeps it."""

    @property
    def version(self) -> str:
        """Its number."""

    @property
    def artifact(self) -> bytes:
        """XGBoost's own format."""

    @property
    def card(self) -> Card:
        """What must be known of it."""


class ModelSource(Protocol):
    """The registry; every call reads files, so it is made in a thread."""

    def stamp(self) -> object:
        """Changes whenever an alias does."""

    def awaits_starter(self) -> bool:
        """Whether the first version is still to be made or promoted; raises ModelError when that can't be read."""

    def aliases(self) -> Mapping[str, str]:
        """Versions by alias."""

    def fetch(self, version: str) -> Stored:
        """Reads a version, and raises ModelError unless it may be served."""


class ModelServing:
    """The models of one process.

    Args:
        source: the registry; None: no models are looked for.
        features: all that are declared, once the first model is loaded.
        train_starter: makes the first version of a registry that awaits it; None: nobody does.
        try_again_s: seconds after which a version that was refused is looked at again, though its alias has not moved.
    """

    def __init__(
        self,
        name: str,
        source: ModelSource | None,
        scorer: Scorer,
        *,
        features: Mapping[str, Feature] = FEATURES,
        train_starter: Starter | None = None,
        try_again_s: float = TRY_AGAIN_S,
    ) -> None:
        self._name = name
        self._source = source
        self.scorer = scorer
        self._features = features
        self._train_starter = train_starter
        self._try_again_s = try_again_s
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: object = None
        self._refused_at: float | None = None
        self._is_training = False
        self._failure: str | None = None
        self._has_looked = asyncio.Event()
        self.problem: str | None = "the model is being loaded"

    def health(self) -> ModelHealth | None:
        """What serves, and what is wrong with what should serve."""
        if self._source is None:
            return None
        model = self.scorer.model
        return ModelHealth(
            name=self._name,
            version=model.version if model else None,
            is_simulated=model.is_simulated if model else None,
            status="ok" if model and not self.problem else "degraded",
            reason=self.problem,
        )

    def served(self) -> ServedModels:
        """What answers in the place of the champion; nothing does where no models are looked for."""
        if self._source is None:
            return {}
        model = self.scorer.model
        return {CHAMPION: ServedModel(version=model.version if model else None, reason=self.problem)}

    async def __aenter__(self) -> "ModelServing":
        """Begins to follow the registry, without waiting for a model."""
        if self._source:
            task = asyncio.create_task(self._follow(self._source), name="models")
            task.add_done_callback(self._note_end)
            self._tasks.append(task)
        return self

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """An error that nobody foresaw ends the following: what serves goes on, and the health says so."""
        if not task.cancelled() and (error := task.exception()):
            self.problem = f"the registry is no longer followed ({type(error).__name__})"
            log.error("models are no longer followed", exc_info=error)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def first_look(self, within_s: float = FIRST_LOOK_S) -> None:
        """Waits until a champion that is there serves or is refused, so that none of the first requests lacks it.

        Returns at once where no models are looked for, and after ``within_s`` seconds in any case: a registry on a disk
        that does not answer must not keep a worker from starting.
        """
        if self._source:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_looked.wait(), within_s)

    async def _follow(self, source: ModelSource) -> None:
        try:
            await self._look(source)
        finally:
            self._has_looked.set()
        if self._train_starter and await self._awaits_starter(source):
            task = asyncio.create_task(self._start(self._train_starter), name="starter-model")
            task.add_done_callback(self._note_end)
            self._tasks.append(task)
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look(source)

    async def _awaits_starter(self, source: ModelSource) -> bool:
        """Whether the starter model is still to be made; other versions are a person's to promote or to mend."""
        if self.scorer.model or self._refused_at is not None:
            return False
        try:
            return await asyncio.to_thread(source.awaits_starter)
        except (AppError, OSError) as error:
            self._refuse(error)
            return False

    async def _start(self, train: Starter) -> None:
        """Has the starter model trained; the registry is looked at meanwhile, so it serves once it is promoted."""
        self._is_training = True
        self.problem = "there is no model yet: the starter model is being trained"
        try:
            failure = await train()
        except OSError as error:  # the system starts no further process
            failure = str(error)
        finally:
            self._is_training = False
            self._seen = None  # the next look says how it is without the training
        if failure and self.scorer.model is None:
            self._failure = failure
            what = f"the starter model could not be trained ({failure})"
            self.problem = f"there is no model: {what}: see 'models train --simulated --promote'"
            log.error("the starter model could not be trained", extra={"fields": {"error": failure}})

    async def _look(self, source: ModelSource) -> None:
        try:
            stamp = await asyncio.to_thread(source.stamp)
            is_due = self._refused_at is not None and time.monotonic() - self._refused_at > self._try_again_s
            if stamp == self._seen and not is_due:
                return
            self._seen = stamp
            version = (await asyncio.to_thread(source.aliases)).get(CHAMPION)
            if version is None:
                self._refused_at = None
                if not self._is_training and self._failure is None:
                    self.problem = f"no version is the champion: see 'models promote'{self._goes_on()}"
                return
            if self.scorer.model and self.scorer.model.version == version:
                self._accept(None)
                return
            self._accept(await asyncio.to_thread(self._load, source, version))
        except (AppError, OSError) as error:
            self._refuse(error)

    def _load(self, source: ModelSource, version: str) -> Model:
        stored = source.fetch(version)
        return load_model(stored.version, stored.artifact, stored.card, self._features)

    def _accept(self, model: Model | None) -> None:
        self._refused_at = None
        self.problem = None
        if model:
            if self.scorer.model is None:
                _prepare_process()
            self.scorer.model = model
            log.info("model serves", extra={"fields": {"model": self._name, "version": model.version}})

    def _goes_on(self) -> str:
        """What answers in spite of a problem, for the end of its sentence."""
        return f"; version {self.scorer.model.version} goes on" if self.scorer.model else ""

    def _refuse(self, error: Exception) -> None:
        self._refused_at = time.monotonic()
        problem = f"{error}{self._goes_on()}"
        if problem != self.problem:
            log.error("model refused", extra={"fields": {"error": problem}})
        self.problem = problem


def _prepare_process() -> None:
    """Shortens what the event loop waits for: the garbage collector, and the interpreter's lock.

    XGBoost brings objects by the hundred thousand, and a full collection, every second under load, held the loop for
    36 ms each time. What there is now stays, and is looked at no more; what requests leave is freed as they end.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    sys.setswitchinterval(0.001)  # the thread that commits gives the lock back after this, instead of after 5 ms


async def train_starter() -> str | None:
    """Trains the starter model in a process of its own, with this process's settings; what went wrong, if anything."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "models", "train", "--starter"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
            await _end(process)
        raise
    if process.returncode == 0:
        return None
    lines = errors.decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
    return last.removeprefix("error: ")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Asks a process to end, and kills it unless it has within ``END_S``; raises ProcessLookupError if it is gone."""
    process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
