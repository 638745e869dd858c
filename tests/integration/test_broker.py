"""The connection on a real server: requests, publishing, pulls, faults, TLS and logins."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from creds_kit import Operator
from harness import NatsServer, TcpProxy, free_port, wait_until
from nats.aio.msg import Msg
from service_kit import client, payloads, publish, rows_become, running_service, step_table, stream_is_there

from models.errors import ApiError, BrokerError, BrokerUnavailable
from streams.access import Access
from streams.broker import WRONG_LAST_SEQUENCE, Broker
from streams.deliveries import PullStatus
from streams.message import Message
from streams.provision import apply, ensure_streams, plan
from streams.topology import STREAMS, ConsumerSpec

SPEC = ConsumerSpec(durable="test-a", table="a", stream="SIGNALS", subjects=("signals.a",), ack_wait_s=30)


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A broker with the application's streams."""
    async with Broker([nats_server.url], name="test") as made:
        await made.connected.wait()
        await ensure_streams(made, STREAMS, replicas=1, known=())
        yield made


async def test_publish_is_confirmed_and_stored_once_per_id(broker: Broker) -> None:
    """The same id again is a duplicate; the message is read back with its headers and its place."""
    first = await broker.publish("signals.a", b"{}", {"Nats-Msg-Id": "one", "Other": "x"})
    again = await broker.publish("signals.a", b"{}", {"Nats-Msg-Id": "one", "Other": "x"})
    assert (first.stream, first.seq, first.is_duplicate) == ("SIGNALS", 1, False)
    assert (again.seq, again.is_duplicate) == (1, True)
    stored = await broker.message_at("SIGNALS", 1)
    assert stored is not None
    assert (stored.subject, stored.payload, stored.headers["Other"]) == ("signals.a", b"{}", "x")
    assert stored == await broker.last_message("SIGNALS", "signals.a")
    assert await broker.message_at("SIGNALS", 2) is None


async def test_refusals_of_the_server_carry_its_code(broker: Broker) -> None:
    """An error of JetStream is an ApiError with its err_code, for requests and for publishing."""
    with pytest.raises(ApiError) as missing:
        await broker.message_at("NOPE", 1)
    assert missing.value.code == 10059
    await broker.publish("deadletters.a", b"", {})
    with pytest.raises(ApiError) as refused:
        await broker.publish("deadletters.a", b"", {"Nats-Expected-Last-Subject-Sequence": "0"})
    assert refused.value.code == WRONG_LAST_SEQUENCE


async def test_message_above_the_limit_is_refused_here_and_the_connection_stays(broker: Broker) -> None:
    """Sizes are checked with their headers before nats-py sees them, for the server would end the connection."""
    largest = broker.max_payload_bytes
    with pytest.raises(BrokerError, match=f"above the server's {largest}"):
        await broker.publish("deadletters.a", b"x" * (largest - 20), {"A": "b" * 20})
    await broker.publish("deadletters.a", b"x" * (largest - 100), {"A": "b" * 20})
    assert broker.is_connected


async def test_subject_without_a_stream_is_unavailable(broker: Broker) -> None:
    """A publish that no stream takes says so at once."""
    with pytest.raises(BrokerUnavailable, match="nobody answers there"):
        await broker.publish("nowhere.at.all", b"", {})


@pytest.mark.parametrize(
    "reply",
    [
        b"hello",
        b"",
        b"7",
        b"[]",
        b"{}",
        b'{"stream": "S"}',
        b'{"stream": 1, "seq": null}',
        b'{"error": 5}',
        b"[" * 9999,
    ],
    ids=["text", "empty", "number", "list", "nothing", "no-seq", "other-types", "other-error", "deep"],
)
async def test_answer_of_somebody_else_is_no_acknowledgement(
    broker: Broker, nats_server: NatsServer, reply: bytes
) -> None:
    """Whatever another client replies to a publish, it is one without an answer, to be repeated."""
    async with client(nats_server.url) as nc:

        async def meddle(message: Msg) -> None:
            await nc.publish(message.reply, reply)

        async def is_heard() -> bool:
            """A subscription may be there a moment later for other connections."""
            try:
                await broker.publish("foreign.a", b"", {})
            except BrokerUnavailable as error:
                return "nobody answers" not in str(error)
            return True

        await nc.subscribe("foreign.a", cb=meddle)
        await nc.flush()
        await wait_until(is_heard)
        with pytest.raises(BrokerUnavailable, match="somebody else answers there"):
            await broker.publish("foreign.a", b"", {})


async def test_pulled_messages_and_statuses_reach_their_functions(broker: Broker) -> None:
    """Deliveries come with their place in the stream, the end of the request as a status with what was left."""
    messages: list[Message] = []
    statuses: list[PullStatus] = []
    inbox = await broker.subscribe_deliveries(broker.new_inbox(), messages.append, statuses.append)
    steps = await plan(broker, STREAMS, [SPEC], replicas=1, store_id="mine")
    assert [step.action for step in steps] == ["none"] * len(STREAMS) + ["create"]
    await apply(broker, steps, STREAMS, [SPEC], replicas=1, store_id="mine")
    await broker.publish("signals.a", b"one", {})
    request = json.dumps({"batch": 3, "expires": 200_000_000}).encode()
    assert await broker.send("$JS.API.CONSUMER.MSG.NEXT.SIGNALS.test-a", request, reply=inbox.subject)
    await wait_until(lambda: statuses)
    [message] = messages
    assert (message.subject, message.payload, message.seq, message.consumer_seq) == ("signals.a", b"one", 1, 1)
    assert (statuses[0].code, statuses[0].pending_messages) == (408, 2)
    stored = await broker.message_at("SIGNALS", 1)
    assert stored is not None
    assert stored.ts == message.ts
    await broker.ack([message.reply or ""])

    async def is_acked() -> bool:
        """The server works acks off beside the answers to a flush."""
        return bool((await broker.api("CONSUMER.INFO.SIGNALS.test-a"))["num_ack_pending"] == 0)

    await wait_until(is_acked)
    await inbox.drain()
    await inbox.close()


async def test_commands_are_sent_as_they_are_and_their_answers_heard(broker: Broker) -> None:
    """Encoded commands reach the server; an answer comes with its subject, an empty one when nobody listens."""
    answers: list[tuple[str, bytes]] = []
    base = broker.new_inbox()
    inbox = await broker.subscribe_replies(f"{base}.*", lambda subject, payload: answers.append((subject, payload)))
    assert await broker.send_commands(f"PUB signals.a {base}.1 2\r\n{{}}\r\nPUB nowhere {base}.2 0\r\n\r\n".encode())
    await wait_until(lambda: len(answers) == 2)
    found = dict(answers)
    assert json.loads(found[f"{base}.1"])["stream"] == "SIGNALS"
    assert found[f"{base}.2"] == b""
    await inbox.close()


async def test_callback_that_raises_does_not_kill_the_connection(broker: Broker) -> None:
    """Even an error in a function that must not raise leaves the connection working."""

    def fail(message: object) -> None:
        raise ValueError("on purpose")

    inbox = await broker.subscribe_deliveries(broker.new_inbox(), fail, fail)
    await broker.send(inbox.subject, b"")
    await wait_until(lambda: broker.error == "on purpose")
    await broker.publish("signals.a", b"{}", {})


async def test_broker_waits_for_a_server_that_starts_later(tmp_path: Path) -> None:
    """Entering does not wait; requests fail in time, and the connection comes with the server."""
    server = NatsServer(tmp_path)
    server.port = free_port()
    async with Broker([server.url], name="test") as broker:
        assert not broker.is_connected
        await wait_until(lambda: broker.error)
        with server:
            await asyncio.wait_for(broker.connected.wait(), 5)
            assert broker.server_version >= (2, 14, 0)
            await broker.api("INFO")
            assert not broker.closed.is_set()


async def test_request_while_the_server_is_away_is_unavailable(broker: Broker, nats_server: NatsServer) -> None:
    """Requests, publishes and pulls fail with a sentence, not with nats-py's errors; acks are dropped in silence."""
    nats_server.stop()
    await wait_until(lambda: not broker.is_connected)
    with pytest.raises(BrokerUnavailable, match=r"no answer within 0\.1 s"):
        await broker.api("INFO", timeout_s=0.1)
    await broker.ack(["$JS.ACK.x"])
    await broker.flush()
    nats_server.start()
    await wait_until(broker.connected.is_set)
    await broker.api("INFO")


async def test_request_whose_connection_is_lost_does_not_wait_for_its_answer(nats_server: NatsServer) -> None:
    """A request that is under way when the connection goes fails then, not when its time is over."""
    async with TcpProxy(nats_server.port) as proxy, Broker([proxy.url], name="test") as broker:
        await broker.connected.wait()
        proxy.blackhole()
        requests = [asyncio.create_task(broker.api("INFO", timeout_s=600)) for _ in range(2)]
        await wait_until(lambda: not broker.is_connected)
        proxy.cut()
        proxy.heal()
        for request in requests:
            with pytest.raises(BrokerUnavailable):
                await asyncio.wait_for(request, 5)
        await wait_until(broker.connected.is_set)
        await broker.api("INFO")


async def test_closing_while_the_server_is_away_ends(nats_server: NatsServer) -> None:
    """Leaving in the middle of reconnecting returns without an error, and counts as closed."""
    async with Broker([nats_server.url], name="test") as broker:
        await broker.connected.wait()
        nats_server.kill9()
        await wait_until(lambda: not broker.connected.is_set())
    await wait_until(broker.closed.is_set)
    assert not broker.is_connected
    assert not await broker.send("signals.a")
    assert not await broker.send_commands(b"PUB signals.a 0\r\n\r\n")
    with pytest.raises(BrokerUnavailable, match="can't subscribe"):
        await broker.subscribe_replies(broker.new_inbox(), lambda subject, payload: None)
    with pytest.raises(BrokerUnavailable, match="can't subscribe"):
        await broker.subscribe_deliveries(broker.new_inbox(), lambda message: None, lambda status: None)
    with pytest.raises(BrokerUnavailable, match="closed"):
        await broker.api("INFO")


async def test_closing_in_the_moment_in_which_the_server_goes_ends(nats_server: NatsServer) -> None:
    """Leaving before the loss was even noticed raises nothing, though nats-py cancels what it waits for itself."""
    async with Broker([nats_server.url], name="test") as broker:
        await broker.connected.wait()
        nats_server.stop()
    assert not broker.is_connected


async def test_closing_a_silent_connection_ends(nats_server: NatsServer) -> None:
    """Leaving while the connection carries nothing returns in bounded time."""
    async with TcpProxy(nats_server.port) as proxy:
        async with Broker([proxy.url], name="test") as broker:
            await broker.connected.wait()
            proxy.blackhole()
            await broker.send("signals.a", b"x")
        assert not broker.is_connected


async def test_service_that_never_reached_a_server_stops(tmp_path: Path) -> None:
    """A worker without its server says so in /health, and stops in order."""
    async with running_service(f"nats://127.0.0.1:{free_port()}", tmp_path / "state", [step_table()]) as running:
        await running.says("NATS does not answer")
        assert running.service.health().status == "down"
        await running.stop()


async def test_missing_permission_is_said_in_health(tmp_path: Path) -> None:
    """A user who may not create what is missing leads to a reason that names what the server refused."""
    deny = 'permissions: {publish: {deny: ["$JS.API.STREAM.CREATE.>"]}}'
    users = f'authorization {{ users: [{{user: "worker", password: "secret", {deny}}}] }}'
    with NatsServer(tmp_path, extra=users) as server:
        url = server.url.replace("nats://", "nats://worker:secret@")
        async with running_service(url, tmp_path / "state", [step_table()]) as running:
            await running.says("NATS refuses what this worker needs")
            assert "stream.create.signals" in running.reasons.lower()
            assert "secret" not in running.reasons


async def consumes(server: NatsServer, tmp_path: Path, access: Access | None, **options: object) -> None:
    """Checks that a worker with this access applies what a client publishes."""
    state = tmp_path / "state"
    async with (
        running_service(server.url, state, [step_table()], access=access) as running,
        client(server.url, **options) as nc,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(2, 5))
        await rows_become(state, {"user0": [0, 1, 2, 3, 4], "user1": [0, 1, 2, 3, 4]})
        await running.is_ok()


async def test_worker_consumes_over_mutual_tls(tmp_path: Path) -> None:
    """With an authority and a client certificate the worker consumes; without its certificate it is refused."""
    authority = trustme.CA()
    ca, cert, key, own = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem", "own.pem"))
    authority.cert_pem.write_to_path(ca)
    served = authority.issue_cert("127.0.0.1")
    served.cert_chain_pems[0].write_to_path(cert)
    served.private_key_pem.write_to_path(key)
    authority.issue_cert("worker@example.org").private_key_and_cert_chain_pem.write_to_path(own)
    access = Access(tls_ca=ca, tls_cert=own, tls_key=own)
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", verify: true }}'
    with NatsServer(tmp_path, extra=tls) as server:
        await consumes(server, tmp_path, access, tls=access.tls_context())
        async with Broker([server.url], name="test", access=Access(tls_ca=ca)) as broker:
            await wait_until(lambda: broker.error)
            assert not broker.connected.is_set()


async def test_worker_consumes_with_a_credentials_file(tmp_path: Path) -> None:
    """A user's JWT and seed let the worker in; a login that has run out is an error that health can show."""
    operator = Operator()
    creds = operator.write_creds(tmp_path / "worker.creds")
    stale = operator.write_creds(tmp_path / "stale.creds", exp=int(time.time()) - 60)
    with NatsServer(tmp_path, extra=operator.config()) as server:
        await consumes(server, tmp_path, Access(creds=creds), user_credentials=str(creds))
        async with Broker([server.url], name="test", access=Access(creds=stale)) as broker:
            await wait_until(lambda: "authorization" in (broker.error or "").lower())
            assert not broker.connected.is_set()
