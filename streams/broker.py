"""The connection to NATS, and the one module that speaks nats-py.

It owns reconnecting (for ever, with jitter), the watchdog that notices a dead connection, requests to JetStream's API,
publishing with an acknowledgement, and inboxes. It refuses nats-py's own consumers: ``fetch``, ``add_consumer`` and
``pull_subscribe`` hide errors and change configurations; streams/consumer.py pulls through the raw API instead.
Callbacks given to nats-py never raise and never block, for an error in one would kill its read loop.
"""

import asyncio
import collections
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import nats.errors
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from models.errors import ApiError, BrokerError, BrokerUnavailable
from streams.access import Access
from streams.deliveries import (
    PubAck,
    PullStatus,
    StoredMessage,
    parse_delivery,
    parse_pub_ack,
    parse_status,
    parse_stored,
)
from streams.message import Message

log = logging.getLogger(__name__)

API_PREFIX = "$JS.API."
ACK_PREFIX = "$JS.ACK."
WRONG_LAST_SEQUENCE = 10071
CONSUMER_NOT_FOUND = 10014
CONSUMER_EXISTS = 10148
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
MIN_SERVER = (2, 14)

RTT_LIMIT_S = 0.5
PING_GIVEN_UP_S = 60
WATCH_INTERVAL_S = 1.0
FAILURES_BEFORE_RECONNECT = 2
DRAIN_S = 2.0
READ_BATCH_COUNT = 500
NO_HEADERS: Mapping[str, str] = {}


class Inbox:
    """A subscription of our own on a subject nobody else knows."""

    def __init__(self, subject: str, subscription: Subscription) -> None:
        self.subject = subject
        self._subscription = subscription

    async def close(self) -> None:
        """Stops receiving at once; what is queued is dropped."""
        try:
            await self._subscription.unsubscribe()
        except (nats.errors.Error, OSError):
            log.debug("inbox was closed already", exc_info=True)

    async def drain(self) -> None:
        """Tells the server to send nothing more, then waits until what it has sent is received and handled."""
        try:
            draining = self._subscription.drain()  # type: ignore[no-untyped-call]  # nats-py lacks it
            await asyncio.wait_for(draining, DRAIN_S)
        except (TimeoutError, nats.errors.Error, OSError):
            log.debug("inbox could not be drained", exc_info=True)


class _Client(Client):
    """nats-py's client, without the flaw that a subject of other bytes than UTF-8 ends its read loop."""

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        text = subject.decode("utf-8", "backslashreplace")
        return self.msg_class(subject=text, reply=reply.decode(), data=data, headers=headers, _client=self, _sid=sid)

    async def send_commands(self, commands: bytes) -> None:
        """Does what publishing does, once the command is encoded."""
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


class Broker:
    """A connection that comes back by itself.

    Entering starts connecting in the background, so that HTTP answers while NATS is away; leaving flushes and closes.

    Args:
        urls: servers of one cluster.
        name: shown in the server's monitoring.
    """

    def __init__(self, urls: Iterable[str], *, name: str, access: Access | None = None) -> None:
        self._urls = list(urls)
        self._name = name
        self._access = access or Access()
        self._client = _Client()
        self._tasks: list[asyncio.Task[None]] = []
        self._pings: set[asyncio.Task[float | None]] = set()
        self._in_flight: set[asyncio.Timeout] = set()
        self._reconnect_listeners: list[Callable[[], None]] = []
        self._has_begun = False
        self._is_stopping = False
        self.connected = asyncio.Event()
        self.closed: asyncio.Event = asyncio.Event()
        self._is_silent = False
        self.rtt_s: float | None = None
        self.error: str | None = None
        self.permission_error: str | None = None

    async def __aenter__(self) -> "Broker":
        context = self._access.tls_context()
        self._access.check_creds()
        self._tasks = [
            asyncio.create_task(self._connect(context), name="broker-connect"),
            asyncio.create_task(self._watch(), name="broker-watch"),
        ]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client.is_connected:
            await self.flush()
        self.connected.clear()
        if not self._has_begun:
            return
        try:
            await asyncio.wait_for(self._client.close(), 2)
        except (TimeoutError, nats.errors.Error, OSError):
            log.debug("closing the connection failed", exc_info=True)
        except asyncio.CancelledError:  # nats-py cancels a future that it then waits for, when it was reconnecting
            _pass_cancellation_on()
        finally:
            self.closed.set()
        pings = list(self._pings)
        for ping in pings:
            ping.cancel()
        await asyncio.gather(*pings, return_exceptions=True)

    async def _connect(self, context: ssl.SSLContext | None) -> None:
        options: dict[str, Any] = {
            "servers": self._urls,
            "name": self._name,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.2,
            "connect_timeout": 2,
            "ping_interval": 20,
            "max_outstanding_pings": 2,
            "pending_size": 8 * 1024 * 1024,
            "reconnect_to_server_handler": _next_server,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }
        if context:
            options["tls"] = context
        if self._access.creds:
            options["user_credentials"] = str(self._access.creds)
        self._has_begun = True
        try:
            await self._client.connect(**options)
        except (nats.errors.Error, OSError, ValueError) as error:
            self.error = _one_line(error)
            log.error("NATS connection is not possible", extra={"fields": {"error": self.error}})
            self.closed.set()
            return
        await self._on_reconnected()

    async def _watch(self) -> None:
        """Asks for a round trip every second; a connection that fails two in a row is made anew."""
        failures = 0
        while True:
            if self.connected.is_set():
                failures = 0 if await self._is_answering() else failures + 1
                if failures and failures % FAILURES_BEFORE_RECONNECT == 0:
                    log.warning("NATS does not answer, connecting anew")
                    await self._client.force_reconnect()
            _pass_cancellation_on()
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _is_answering(self) -> bool:
        """Asks for a round trip and waits a moment for it.

        A late one is no longer waited for but not given up: nats-py's read loop dies of an answer to a cancelled ping.
        """
        ping = asyncio.create_task(self._ping(), name="broker-ping")
        self._pings.add(ping)
        ping.add_done_callback(self._pings.discard)
        await asyncio.wait({ping}, timeout=RTT_LIMIT_S)
        self.rtt_s = ping.result() if ping.done() else None
        self._is_silent = self.rtt_s is None
        return not self._is_silent

    async def _ping(self) -> float | None:
        started = time.perf_counter()  # nats-py's own figure is in whole milliseconds on uvloop
        try:
            await self._client.rtt(PING_GIVEN_UP_S)
        except (nats.errors.Error, OSError):
            return None
        return time.perf_counter() - started

    async def _on_error(self, error: Exception) -> None:
        text = _one_line(error)
        if "permissions violation" in text.lower():
            self.permission_error = text
        if text != self.error:
            self.error = text
            log.warning("NATS error", extra={"fields": {"error": text}})

    async def _on_disconnected(self) -> None:
        self.connected.clear()
        self.rtt_s = None
        lost, self._in_flight = self._in_flight, set()
        for request in lost:  # an answer would have come on this connection
            request.reschedule(asyncio.get_running_loop().time())
        if not self._is_stopping:
            log.warning("NATS disconnected")

    async def _on_reconnected(self) -> None:
        self.error = None
        self.permission_error = None
        self._is_silent = False
        self.connected.set()
        log.info("NATS connected", extra={"fields": {"server": self._client.connected_url.netloc.rpartition("@")[2]}}
                 if self._client.connected_url else None)  # fmt: skip
        for listener in self._reconnect_listeners:
            listener()

    async def _on_closed(self) -> None:
        self.connected.clear()
        if not self._is_stopping:
            log.error("NATS connection closed for good", extra={"fields": {"error": self.error}})
        self.closed.set()

    def on_reconnect(self, listener: Callable[[], None]) -> None:
        """Has ``listener`` called, without arguments, after every connect; it must not raise."""
        self._reconnect_listeners.append(listener)

    @property
    def is_connected(self) -> bool:
        """Whether the server answered the last round trip; nats-py's own flag does not see a dead connection."""
        return self.connected.is_set() and not self._is_silent

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers that it connects to, as they were given."""
        return tuple(self._urls)

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The connected server's version."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def max_payload_bytes(self) -> int:
        """The largest message, headers included, that the connected server takes."""
        return self._client.max_payload

    async def api(self, subject: str, body: Mapping[str, object] | None = None, *, timeout_s: float = 5) -> Any:
        """Asks JetStream's API.

        Args:
            subject: without its prefix, as ``STREAM.INFO.SIGNALS``.

        Raises:
            ApiError: JetStream answered with an error.
            BrokerUnavailable: no answer in time.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        answer = json.loads(await self._request(API_PREFIX + subject, payload, None, timeout_s))
        if error := answer.get("error"):
            raise ApiError(subject, error.get("err_code") or error.get("code", 0), error.get("description", ""))
        return answer

    async def message_at(self, stream: str, seq: int) -> StoredMessage | None:
        """Reads one message of a stream, or None when the stream no longer keeps it."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
        except ApiError as error:
            if error.code == MESSAGE_NOT_FOUND:
                return None
            raise
        return parse_stored(answer["message"])

    async def last_message(self, stream: str, subject: str) -> StoredMessage:
        """Reads the last message on a subject.

        Raises:
            ApiError: there is none.
        """
        return parse_stored((await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))["message"])

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], *, timeout_s: float = 5) -> PubAck:
        """Publishes and waits until JetStream has stored the message.

        Raises:
            ApiError: the stream refused it.
            BrokerUnavailable: no answer in time, which says nothing of whether it is stored: repeat it with the same
                ``Nats-Msg-Id``.
            BrokerError: it is larger than the server takes.
        """
        size = len(payload) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12
        if size > self.max_payload_bytes:
            raise BrokerError(f"{subject}: {size} bytes with headers are above the server's {self.max_payload_bytes}")
        return parse_pub_ack(subject, await self._request(subject, payload, headers, timeout_s))

    def _refuse_once_closed(self, what: str) -> None:
        """Refuses work after the end; nats-py's own flag is lost when a close meets a reconnect."""
        if self.closed.is_set():
            raise BrokerUnavailable(f"{what} (the connection is closed)")

    async def _request(self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float) -> bytes:
        self._refuse_once_closed(subject)
        try:
            async with asyncio.timeout(None) as until_disconnected:
                self._in_flight.add(until_disconnected)
                answer = await self._client.request(subject, payload, timeout_s, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise BrokerUnavailable(f"{subject}: nobody answers there (no stream, or JetStream is off)") from error
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BrokerUnavailable(f"{subject}: no answer within {timeout_s:g} s ({_one_line(error)})") from error
        finally:
            self._in_flight.discard(until_disconnected)
        _pass_cancellation_on()
        return answer.data

    def new_inbox(self) -> str:
        """A subject that nobody else knows."""
        return str(self._client.new_inbox())

    async def subscribe_deliveries(
        self, subject: str, on_message: Callable[[Message], None], on_status: Callable[[PullStatus], None]
    ) -> Inbox:
        """Listens on an inbox for what a consumer delivers; neither function may raise or block."""

        async def receive(message: Msg) -> None:
            if message.reply.startswith(ACK_PREFIX):
                on_message(parse_delivery(message.subject, message.data, message.reply))
            else:
                on_status(parse_status(message.headers or {}))

        return await self._listen(subject, receive)

    async def subscribe_replies(self, subject: str, on_reply: Callable[[str, bytes], None]) -> Inbox:
        """Listens for answers; the function is told subject and payload (empty: nobody listens), and may not raise.

        Raises:
            BrokerUnavailable: there is no connection yet, or no more.
        """

        async def receive(message: Msg) -> None:
            on_reply(message.subject, message.data)

        if not self.connected.is_set():
            raise BrokerUnavailable("can't subscribe (not connected)")
        return await self._listen(subject, receive)

    async def _listen(self, subject: str, receive: Callable[[Msg], Awaitable[None]]) -> Inbox:
        self._refuse_once_closed("can't subscribe")
        try:
            subscription = await self._client.subscribe(
                subject, cb=receive, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except (nats.errors.Error, OSError) as error:
            raise BrokerUnavailable(f"can't subscribe ({_one_line(error)})") from error
        return Inbox(subject, subscription)

    async def read(
        self, stream: str, consumer: str, count: int, *, silent_s: float
    ) -> AsyncGenerator[tuple[Message, Mapping[str, str]], None]:
        """Reads the next ``count`` messages of a consumer that needs no acks, each with its headers.

        Raises:
            BrokerUnavailable: nothing came for ``silent_s`` seconds.
        """
        found: collections.deque[tuple[Message, Mapping[str, str]] | None] = collections.deque()
        arrived = asyncio.Event()

        async def receive(message: Msg) -> None:
            is_delivery = message.reply.startswith(ACK_PREFIX)
            delivery = parse_delivery(message.subject, message.data, message.reply) if is_delivery else None
            found.append((delivery, message.headers or NO_HEADERS) if delivery else None)
            arrived.set()

        self._refuse_once_closed("can't read")
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=receive, pending_bytes_limit=-1)
        given = asked = 0
        try:
            while given < count:
                if asked < count and asked - given <= READ_BATCH_COUNT // 2:
                    batch = min(count - asked, READ_BATCH_COUNT)
                    request = json.dumps({"batch": batch, "expires": int(silent_s * 1e9)}).encode()
                    await self.send(f"{API_PREFIX}CONSUMER.MSG.NEXT.{stream}.{consumer}", request, reply=inbox)
                    asked += batch
                if not found:
                    arrived.clear()
                    async with asyncio.timeout(silent_s):
                        await arrived.wait()
                answer = found.popleft()
                if answer is None:
                    raise BrokerUnavailable(f"stream {stream} could not be read to its end")
                given += 1
                yield answer
        except TimeoutError as error:
            raise BrokerUnavailable(f"stream {stream} could not be read within {silent_s:g} s") from error
        finally:
            await Inbox(inbox, subscription).close()

    async def send(self, subject: str, payload: bytes = b"", *, reply: str = "") -> bool:
        """Sends without waiting for anything; False when the connection can't take it now."""
        if self.closed.is_set():
            return False
        try:
            await self._client.publish(subject, payload, reply=reply)
        except (nats.errors.Error, OSError):
            return False
        _pass_cancellation_on()
        return True

    async def send_commands(self, commands: bytes) -> bool:
        """Sends commands of the protocol that are encoded already; False when there is no connection to take them."""
        if self.closed.is_set() or not self.connected.is_set():
            return False
        try:
            await self._client.send_commands(commands)
        except (nats.errors.Error, OSError):
            return False
        _pass_cancellation_on()
        return True

    async def ack(self, replies: Iterable[str], word: bytes = b"+ACK") -> None:
        """Answers deliveries; one that gets lost comes again and is recognised by its sequence."""
        publish: Callable[[str, bytes], Awaitable[None]] = self._client.publish
        try:
            for reply in replies:
                await publish(reply, word)
        except (nats.errors.Error, OSError):
            log.debug("acks could not be sent", exc_info=True)
        _pass_cancellation_on()

    async def flush(self) -> None:
        """Waits until the server has read everything sent so far, for at most two seconds."""
        if not self._has_begun:
            return
        try:
            await self._client.flush(2)
        except (TimeoutError, nats.errors.Error, OSError):
            log.debug("flush failed", exc_info=True)
        _pass_cancellation_on()


def _pass_cancellation_on() -> None:
    """Raises a cancellation of this task that nats-py has swallowed.

    Its flushing ignores one, and so does ``asyncio.wait_for`` of Python 3.11 when the result comes in the same turn of
    the loop; the task would then run on for ever, since nobody cancels it twice.
    """
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """Chooses where to connect next, and a wait with jitter that grows with that server's failures."""
    server = min(servers, key=lambda candidate: candidate.reconnects)
    ceiling_s = min(2.0, 0.05 * 2 ** min(server.reconnects, 8))
    return server, random.uniform(0, ceiling_s)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
