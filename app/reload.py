"""Runs a worker and starts it anew when its code changes, for development.

This process watches files and owns one child; it imports no handler, so that a file with an error in it ends the child
alone. It decides nothing about the worker, which is stopped in order and answers with its own exit code.
"""

import asyncio
import importlib.util
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

import attrs

from models.errors import DeclarationError

log = logging.getLogger(__name__)

OURS = ("app", "streams", "state", "prompts", "models")
ENDINGS = (".py", ".j2")
PLUGIN_GROUP = "tipstream.plugins"
Watch = Callable[..., AsyncIterator[Set[tuple[object, str]]]]
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.frozen(kw_only=True)
class Watched:
    """What is watched: whole ``folders``, and single ``files``."""

    folders: frozenset[Path] = frozenset()
    files: frozenset[Path] = frozenset()

    def has(self, path: str) -> bool:
        """Whether a change of this file matters."""
        file = Path(path)
        is_inside = any(file.is_relative_to(folder) for folder in self.folders)
        return file in self.files or (is_inside and file.suffix in ENDINGS and not file.name.startswith("."))


def watched_for(plugins: Iterable[str]) -> Watched:
    """The code of the application and of its plugins: those installed, and these modules.

    Nothing is imported; of a module in a package the whole package is watched. A plugin that is not found is left to
    the worker to report.
    """
    installed = [point.module for point in entry_points(group=PLUGIN_GROUP)]
    folders, files = set(), set()
    for name in {module.partition(".")[0] for module in (*OURS, *installed, *plugins)} - {""}:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations is not None:
            folders |= {Path(location).resolve() for location in spec.submodule_search_locations}
        elif spec and spec.has_location and spec.origin:
            files.add(Path(spec.origin).resolve())
    return Watched(folders=frozenset(folders), files=frozenset(files))


async def run_reloading(command: Sequence[str], env: Mapping[str, str], watched: Watched) -> int:
    """Runs a command until SIGINT or SIGTERM, and anew at each change of a watched file.

    A command that ends by itself is started again at the next change only. A second Ctrl-C is passed on, and makes a
    worker leave at once.

    Returns:
        The exit code of the last run, 128 and the signal's number if a signal ended it.

    Raises:
        DeclarationError: the library that watches is not installed.
    """
    changed, stop = asyncio.Event(), asyncio.Event()
    child = _Child(command, env)
    async with _watching(watched, changed):
        _on_stop_signals(stop, child)
        try:
            while not stop.is_set():
                changed.clear()  # before the start, which takes in what has changed until now
                await child.start()
                await _first_of(child.ended, changed, stop)
                if not (changed.is_set() or stop.is_set()):
                    fields = {"code": child.code}
                    log.warning("the worker ended by itself; it starts when a file changes", extra={"fields": fields})
                    await _first_of(changed, stop)
                await child.stop()
        finally:
            await child.stop()
            for number in STOP_SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
    return child.code


class _Child:
    """One process after another."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._command = command
        self._env = dict(env)
        self._process: asyncio.subprocess.Process | None = None
        self.ended = asyncio.Event()
        self.code = 0
        self._waiting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts a process in a group of its own: of Ctrl-C on a terminal it is told by us, and once."""
        self.ended.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._env, stdin=asyncio.subprocess.DEVNULL, process_group=0
        )
        self._waiting = asyncio.create_task(self._wait(self._process))

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self.code = 128 - code if code < 0 else code
        self.ended.set()

    async def stop(self) -> None:
        """Asks it to stop and waits for its end."""
        self.signal(signal.SIGTERM)
        if self._waiting is not None:
            await self._waiting

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        if self._process is not None and not self.ended.is_set():
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                pass  # it has ended in this moment


def _on_stop_signals(stop: asyncio.Event, child: _Child) -> None:
    """The first signal asks for a stop, each further one is the child's second Ctrl-C."""

    def ask() -> None:
        if stop.is_set():
            child.signal(signal.SIGINT)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, ask)


async def _first_of(*events: asyncio.Event) -> None:
    """Waits until one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


@asynccontextmanager
async def _watching(watched: Watched, changed: asyncio.Event) -> AsyncIterator[None]:
    """Sets ``changed`` whenever a watched file changes."""
    watch = _watcher()
    groups = [(watched.folders, True), ({file.parent for file in watched.files}, False)]
    tasks = [
        asyncio.create_task(_watch(watch, sorted(paths), watched, changed, recursive=recursive))
        for paths, recursive in groups
        if paths
    ]
    await asyncio.sleep(0)  # each task has begun to watch once it waits
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _watcher() -> Watch:
    try:
        import watchfiles  # an extra, for development alone
    except ImportError as error:
        problem = "needs the package watchfiles: install it with pip install 'tipstream[reload]'"
        raise DeclarationError("worker --reload", problem) from error
    return watchfiles.awatch


async def _watch(
    watch: Watch,
    paths: Sequence[Path],
    watched: Watched,
    changed: asyncio.Event,
    *,
    recursive: bool,
) -> None:
    def matters(_: object, path: str) -> bool:
        return watched.has(path)

    try:
        async for changes in watch(*paths, watch_filter=matters, recursive=recursive):
            names = sorted({Path(path).name for _, path in changes})
            log.info("code has changed: the worker starts anew", extra={"fields": {"files": names}})
            changed.set()
    except (OSError, RuntimeError) as error:  # a folder is gone, or the system has no watch left
        log.error("code can't be watched: the worker runs on as it is", extra={"fields": {"reason": str(error)}})


def worker_command() -> tuple[str, ...]:
    """The worker, as this Python runs it."""
    return (sys.executable, "-m", "app", "worker")
