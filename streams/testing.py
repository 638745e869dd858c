"""What the tests of a plugin import: ``run_handler`` without a broker, and ``live_app`` on a real nats-server.

A live app is the application itself with HTTP, in the test's own event loop, on a nats-server and in a folder of its
own; it touches neither the environment nor anything outside that folder. The worker speaks to the server through a
proxy that can lose acks and cut connections, the test beside it, so that what a test sends and reads is never disturbed
by the fault that it makes. Nothing of the application imports this module.
"""

import asyncio
import contextlib
import tempfile
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import attrs
from aiohttp import web

from app.main import App, bind, build, check_state_dir
from app.plugins import plugin_of
from app.settings import Settings, load_settings
from models.codec import encode_json
from models.errors import ApiError, BrokerUnavailable, DeclarationError
from state.sqlite import SqliteReader
from state.store import store_path
from state.tables import Table
from streams.broker import ACK_PREFIX, MESSAGE_NOT_FOUND, Broker
from streams.changes import DEAD_LETTER_HEADER
from streams.provision import consumer_info, stream_info
from streams.reading import read_messages
from streams.redrive import REDRIVE_PREFIX, redrive_spec
from streams.testing_outcome import Outcome, encode_event, read_json, run_handler
from streams.testing_scale import scaled_table
from streams.testing_server import CommandFilter, NatsServer, TcpProxy
from streams.topology import DEAD_LETTERS, STREAMS, ConsumerSpec, stream_of

__all__ = ["DeadLetter", "LiveApp", "Outcome", "live_app", "run_handler"]

RowT = TypeVar("RowT")

POLL_S = 0.002
START_S = 10.0
SHUTDOWN_S = 2.0
ROWS_LIMIT = 100_000


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message that was given up: by which handler, why, and what it was."""

    handler: str
    subject: str
    seq: int
    error: str
    event: Any


def live_app(*things: object, time_scale: float = 1.0, env: Mapping[str, str] | None = None) -> "LiveApp":
    """The application with these plugins and no others, on a nats-server of its own; enter it with ``async with``.

    Args:
        things: subject tables, route tables, plugin modules or ``setup`` functions; the tables that ship are
            ``streams.handlers.signals`` and ``streams.handlers.feedback``.
        time_scale: multiplies the waits of every policy, and those of ``Retry(delay_s=…)``; isolated handlers then run
            in the test's process.
        env: further settings, as in the environment.

    Raises:
        PluginError: on entering: a thing declares nothing, or clashes with another one.
        SettingsError: on entering: a setting is refused.
    """
    return LiveApp(things, time_scale=time_scale, env=env or {})


class LiveApp:
    """A running application and what a test does to it; see ``live_app``.

    Args:
        things: what it consists of.
    """

    def __init__(self, things: tuple[object, ...], *, time_scale: float, env: Mapping[str, str]) -> None:
        self._things, self._scale, self._env = things, time_scale, env
        self._stack = contextlib.AsyncExitStack()
        self._loses_acks = False
        self._lost_acks: dict[bytes, None] = {}
        self._app: App | None = None
        self._runner: web.AppRunner | None = None
        self._reader: SqliteReader | None = None
        self._url = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tipstream-")))
            self._server = NatsServer(self._folder, jetstream="")
            stack.callback(self._server.kill9)
            await asyncio.to_thread(self._server.start)
            outgoing = lambda: CommandFilter(self._is_lost)  # noqa: E731
            self._proxy = await stack.enter_async_context(TcpProxy(self._server.port, outgoing=outgoing))
            self._broker = await stack.enter_async_context(Broker([self._server.url], name="test"))
            self.session = await stack.enter_async_context(aiohttp.ClientSession())
            stack.callback(self._close_reader)
            stack.push_async_callback(self._stop)
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # The worker.

    @property
    def app(self) -> App:
        """The application inside."""
        assert self._app is not None, "it has been entered"
        return self._app

    @property
    def settings(self) -> Settings:
        """What it was started with."""
        return self.app.settings

    @property
    def server_url(self) -> str:
        """The URL of the nats-server for a client of the test's own, beside the proxy."""
        return self._server.url

    async def _start(self) -> None:
        given = {"NATS_URL": self._proxy.url, "STATE_DIR": str(self._folder / "state"), "HTTP_PORT": "0"}
        settings = load_settings({"SHUTDOWN_S": str(SHUTDOWN_S), "MODEL_REGISTRY": "none", **self._env, **given})
        check_state_dir(settings.state_dir)
        self._app = build_app(settings, self._things, time_scale=self._scale)
        self._runner = web.AppRunner(self._app.http, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        listening = bind(settings)
        await web.SockSite(self._runner, listening).start()
        self._url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await self._becomes(self._not_started, START_S, "the application has not started")

    async def _stop(self) -> None:
        """Stops the worker in order, as SIGTERM does."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        try:
            if self._server.is_running:  # without one there is nobody to hand anything back to
                await self.app.finish()
        finally:
            await runner.cleanup()

    async def restart(self) -> None:
        """Stops the worker in order and starts it anew on the same data and the same server."""
        await self._stop()
        await self._start()

    async def _not_started(self) -> list[str]:
        found = [what for what in self._unfinished(parked=True) if "attached" in what or "started" in what]
        if found or not self._broker.connected.is_set():
            return found or ["not connected"]
        there = (await self._broker.api("STREAM.NAMES"))["streams"] or []
        return [f"stream {stream.name} is missing" for stream in STREAMS if stream.name not in there]

    def _unfinished(self, *, parked: bool) -> list[str]:
        service = self.app.service
        return service.unfinished(with_parked=not parked) if service else ["not started yet"]

    async def _becomes(self, look: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Waits until a look at things finds nothing; says what the last one found otherwise."""
        found: list[str] = ["the server does not answer"]
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self.app.ended.is_set():
                        await self.app.finish()  # raises why
                    try:
                        found = await look()
                    except (BrokerUnavailable, ApiError) as error:
                        found = [f"the server does not answer ({error})"]
                    if not found:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"{what} within {timeout_s:g} s: {'; '.join(found)}") from None

    # What a test sends and waits for.

    async def publish(self, subject: str, event: object) -> int:
        """Publishes a record, a dict or bytes as they are, and returns the sequence once it is stored."""
        payload = encode_event(event, "publish")
        await self._connected()
        return (await self._broker.publish(subject, payload, {})).seq

    async def _connected(self) -> None:
        if not self._server.is_running:
            raise BrokerUnavailable("the nats-server does not run: restart_server() starts it")
        await self._broker.connected.wait()

    async def quiet(self, timeout_s: float = 10.0, *, parked: bool = False) -> None:
        """Waits until nothing is under way: no message pending, in hand, unacked or parked, no event unpublished.

        While acks are dropped, messages that only lack theirs don't count.

        Args:
            parked: let messages wait for a later run, as long as none is due.

        Raises:
            AssertionError: something was still under way after ``timeout_s``; says what.
            AppError: the worker has ended by itself.
        """
        seen: Any = None

        async def look() -> list[str]:
            nonlocal seen
            if found := self._unfinished(parked=parked):
                return found
            now_seen, found = await self._look_at_durables(parked=parked)
            found += self._unfinished(parked=parked)
            before, seen = seen, now_seen  # one look may miss what moves from one durable to another
            return found or ([] if before == now_seen else ["something was moving just now"])

        await self._becomes(look, timeout_s, "not quiet")

    async def _look_at_durables(self, *, parked: bool) -> tuple[list[Any], list[str]]:
        """What each durable has delivered so far, and what still waits there."""
        specs = list(self.app.service.specs) if self.app.service else []
        specs += [redrive_spec(spec) for spec in specs]
        infos = await asyncio.gather(*(consumer_info(self._broker, spec.stream, spec.durable) for spec in specs))
        delivered, found = [], []
        for spec, info in zip(specs, infos, strict=True):
            if info is None:
                continue
            delivered.append(info["delivered"]["consumer_seq"])
            if info["num_pending"] or info["delivered"]["stream_seq"] < await self._last_seq(spec):
                found.append(f"{spec.durable}: {max(1, info['num_pending'])} messages pending")
            if info["num_ack_pending"] and not (self._loses_acks or (parked and spec.is_shared)):
                found.append(f"{spec.durable}: {info['num_ack_pending']} messages unacked")
        return delivered, found

    async def _last_seq(self, spec: ConsumerSpec) -> int:
        """The last message that a durable has to deliver; the server counts it as pending a moment after its PubAck."""
        last_seq = 0
        for subject in spec.subjects:
            try:
                last_seq = max(last_seq, (await self._broker.last_message(spec.stream, subject)).seq)
            except ApiError as error:
                if error.code != MESSAGE_NOT_FOUND:
                    raise
        return last_seq

    # Faults.

    def _is_lost(self, words: list[bytes]) -> bool:
        is_ack = words[:1] == [b"PUB"] and words[1].startswith(ACK_PREFIX.encode())
        if self._loses_acks and is_ack:
            self._lost_acks[words[1]] = None
            return True
        return False

    @contextlib.contextmanager
    def drop_acks(self) -> Iterator[None]:
        """Within the block no ack of the worker reaches the server; ``redeliver`` has those messages come again."""
        self._loses_acks = True
        try:
            yield
        finally:
            self._loses_acks = False

    async def redeliver(self) -> None:
        """Has the server deliver again at once every message whose ack was dropped; without any, all that is stored.

        A message that is unacked comes a second time in its turn. All that is stored comes by a reset of the durables,
        as after a restored backup: an ordered table notices that and goes on where it was.
        """
        await self._connected()
        lost, self._lost_acks = self._lost_acks, {}
        for reply in lost:
            await self._broker.send(reply.decode(), b"-NAK")
        if not lost and self.app.service:
            for spec in self.app.service.specs:
                await self._broker.api(f"CONSUMER.RESET.{spec.stream}.{spec.durable}", {"seq": 1})
        await self._broker.flush()

    def cut(self) -> None:
        """Cuts the worker's connection to the server; it connects anew by itself."""
        self._proxy.cut()

    async def kill_server(self) -> None:
        """Kills the server as a crash does; the worker goes on without it."""
        await self._proxy.refuse()
        await asyncio.to_thread(self._server.kill9)

    async def restart_server(self) -> None:
        """Kills the server, if it runs, and starts it anew on the same port and data."""
        await self.kill_server()
        await asyncio.to_thread(self._server.start)
        await self._proxy.accept()
        await self._broker.connected.wait()

    # What a test looks at.

    def row(self, table: Table[RowT], key: str) -> RowT | None:
        """A committed row."""
        found = self._rows().fetch_row(table.name, key)
        return None if found is None else typing.cast(RowT, table.decode(encode_json(found.row)))

    def rows(self, table: Table[RowT]) -> dict[str, RowT]:
        """The committed rows of a table, by key."""
        found = self._rows().list_rows(table.name, limit=ROWS_LIMIT)
        return {row.key: typing.cast(RowT, table.decode(encode_json(row.row))) for row in found}

    def _rows(self) -> SqliteReader:
        if self._reader is None:
            self._reader = SqliteReader(store_path(self.settings.state_dir))
        return self._reader

    def _close_reader(self) -> None:
        if self._reader:
            self._reader.close()

    async def published(self, subject: str) -> list[Any]:
        """The events on a subject or pattern, in order, those that the test published included."""
        stream = stream_of([subject], STREAMS, "published").name
        return [read_json(message.payload) async for message in self._messages(stream, subject)]

    async def _messages(self, stream: str, subject: str) -> AsyncIterator[Any]:
        info = await stream_info(self._broker, stream)
        last_seq = info["state"]["last_seq"] if info else 0
        async with contextlib.aclosing(read_messages(self._broker, stream, [subject], 1, last_seq)) as messages:
            async for message in messages:
                yield message

    async def dead_letters(self) -> list[DeadLetter]:
        """The messages that were given up, in the order in which their letters were stored."""
        letters = []
        async for message in self._messages(DEAD_LETTERS, "deadletters.>"):
            if not message.subject.startswith(REDRIVE_PREFIX):
                letters.append(await self._letter(message.seq))
        return letters

    async def _letter(self, seq: int) -> DeadLetter:
        stored = await self._broker.message_at(DEAD_LETTERS, seq)
        assert stored is not None, "dead letters are never removed"
        said = {name.removeprefix(DEAD_LETTER_HEADER): value for name, value in stored.headers.items()}
        return DeadLetter(
            handler=said["Handler"],
            subject=said["Subject"],
            seq=int(said["Sequence"]),
            error=said["Error"],
            event=read_json(stored.payload),
        )

    async def get(self, path: str, **options: Any) -> aiohttp.ClientResponse:
        """Asks over HTTP; the answer is read whole."""
        async with self.session.get(self.url(path), **options) as answer:
            await answer.read()
        return answer

    def url(self, path: str) -> str:
        """The address of a path, for ``session``."""
        return self._url + path

    async def health(self) -> dict[str, Any]:
        """What ``/health`` says; what the server says in it is up to a second old."""
        return dict(await (await self.get("/health")).json())


def build_app(settings: Settings, things: tuple[object, ...], *, time_scale: float) -> App:
    """The application with these plugins and no others."""
    if not (isinstance(time_scale, int | float) and time_scale > 0):
        raise DeclarationError("live_app", f"time_scale: expected a number above 0, got {time_scale!r}")
    plugins = [plugin_of(thing) for thing in things]
    for plugin in plugins:
        plugin.subject_tables = [scaled_table(table, time_scale) for table in plugin.subject_tables]
    return build(settings, plugins=plugins)
