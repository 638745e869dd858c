"""``send``, in this process, to a real server."""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from consume_kit import FakeBroker
from harness import NatsServer
from process_kit import connect, invoke

from app.cli.send import IN_FLIGHT, _publish_all
from models.errors import BrokerError, BrokerUnavailable
from streams.broker import PubAck

SUBJECT = "signals.task.synced"
GOOD = b'{"user_id": "anna", "provider": "todo", "synced_at": "2026-03-01T08:00:00Z"}'


@pytest.fixture
def env(nats_server: NatsServer, tmp_path: Path) -> dict[str, str]:
    """The settings for a server on which the streams are."""
    settings = {"NATS_URL": nats_server.url, "STATE_DIR": str(tmp_path / "var")}
    assert invoke("streams", "apply", **settings).exit_code == 0
    return settings


def stored(env: dict[str, str], stream: str = "SIGNALS") -> list[bytes]:
    """The payloads of a stream, in order."""

    async def read() -> list[bytes]:
        client = await connect(env["NATS_URL"])
        count = (await client.jetstream().stream_info(stream)).state.messages
        messages = [await client.jetstream().get_msg(stream, seq) for seq in range(1, count + 1)]
        await client.close()
        return [message.data or b"" for message in messages]

    return asyncio.run(read())


def test_send_stores_a_payload_as_it_is(env: dict[str, str]) -> None:
    """One payload is checked, stored byte by byte, and confirmed."""
    result = invoke("send", SUBJECT, GOOD.decode(), **env)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"1 sent on {SUBJECT}\n", "")
    assert stored(env) == [GOOD]


def test_send_names_bad_lines_and_sends_the_others(env: dict[str, str]) -> None:
    """Of a file the good lines are stored in order; each bad one is named by its line, and the exit code is 1."""
    lines = [GOOD, b"", b'{"user_id": "anna"}', GOOD.replace(b"anna", b"bert"), b"not json", GOOD]
    result = invoke("send", SUBJECT, "--file", "-", stdin=b"\n".join(lines), **env)
    assert (result.exit_code, result.stdout) == (1, f"3 sent on {SUBJECT}, 2 refused\n")
    named = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in named] == ["line 3", "line 5"]
    assert "provider: missing" in named[0] and "not valid JSON" in named[1]
    assert stored(env) == [lines[0], lines[3], lines[5]]


def test_send_waits_for_a_server_that_comes_back(env: dict[str, str], nats_server: NatsServer, tmp_path: Path) -> None:
    """Lines that are read while NATS is away are stored once it is back, each once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed_around_a_restart() -> None:
        with pipe.open("wb", buffering=0) as lines:
            lines.write(b"\n" * 300_000)  # more than a pipe holds: once it is taken, reading has begun
            nats_server.kill9()
            lines.write(GOOD + b"\n" + GOOD.replace(b"anna", b"bert") + b"\n")
        nats_server.start()

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed_around_a_restart)
        result = invoke("send", SUBJECT, "--file", str(pipe), **env)
        feeding.result()
    assert (result.exit_code, result.stdout) == (0, f"2 sent on {SUBJECT}\n")
    assert sorted(stored(env)) == [GOOD, GOOD.replace(b"anna", b"bert")]


def test_send_raw_sends_what_does_not_fit(env: dict[str, str]) -> None:
    """With --raw nothing is checked."""
    result = invoke("send", SUBJECT, "--raw", "--file", "-", stdin=b"not json\r\n\xff\n", **env)
    assert (result.exit_code, result.stdout) == (0, f"2 sent on {SUBJECT}\n")
    assert stored(env) == [b"not json", b"\xff"]


def test_send_raw_sends_an_empty_payload(env: dict[str, str]) -> None:
    """An empty payload can be sent on purpose, to see it become a dead letter."""
    assert invoke("send", SUBJECT, "", "--raw", **env).stdout == f"1 sent on {SUBJECT}\n"
    assert stored(env) == [b""]


def test_send_prints_json(env: dict[str, str]) -> None:
    """The result for programs has the counts, the handler and every refused line."""
    result = invoke("send", SUBJECT, "--json", "--file", "-", stdin=GOOD + b"\n{}\n", **env)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "subject": SUBJECT,
        "sent": 1,
        "handler": "signals.task_synced",
        "refused": [{"line": 2, "reason": "user_id: missing"}],
    }


def test_send_says_when_no_handler_matches(env: dict[str, str]) -> None:
    """A subject that a stream takes and no handler wants is sent, with a note."""
    result = invoke("send", "signals.of.nobody", "anything", **env)
    assert (result.exit_code, result.stdout) == (
        0,
        "1 sent on signals.of.nobody (no handler matches: it stays in its stream)\n",
    )


def test_send_keeps_the_order_of_a_long_file(env: dict[str, str]) -> None:
    """More lines than are in flight at once are all stored, in order."""
    lines = [json.dumps({"n": number}).encode() for number in range(600)]
    result = invoke("send", "feedback.other", "--file", "-", stdin=b"\n".join(lines), **env)
    assert (result.exit_code, result.stdout.split()[0]) == (0, "600")
    assert stored(env, "FEEDBACK") == lines


def test_send_names_a_line_that_the_server_refuses(env: dict[str, str]) -> None:
    """A payload above the server's or the stream's limit is named by its line; the others are stored."""
    lines = [GOOD, b"x" * 1_100_000, b"y" * 1_040_000, GOOD]
    result = invoke("send", SUBJECT, "--raw", "--file", "-", stdin=b"\n".join(lines), **env)
    assert result.exit_code == 1
    named = result.stderr.splitlines()
    assert [line.partition(": not stored: ")[0] for line in named] == ["line 2", "line 3"]
    assert stored(env) == [GOOD, GOOD]


async def test_send_ends_at_a_line_that_gets_no_answer() -> None:
    """When NATS stays away the first line without an answer is named, and nothing after it is tried one by one."""
    broker = FakeBroker()

    async def answer(subject: str, headers: dict[str, str]) -> PubAck:
        if headers["Nats-Msg-Id"].endswith(":1"):
            return PubAck(stream="SIGNALS", seq=1, is_duplicate=False)
        raise BrokerUnavailable("no answer")

    broker.publish_answer = answer
    lines = [b"%d" % number for number in range(600)]
    tally = await _publish_all(broker, SUBJECT, lines, handler=None, retry_for_s=0)  # type: ignore[arg-type]
    words = "not stored: no answer within 0 s; no line after it is confirmed"
    assert (tally.sent, tally.refused) == (1, [(2, words)])
    assert len(broker.log) <= IN_FLIGHT + 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("orders.new", "{}"), "no stream takes 'orders.new'; there is signals.>"),
        (("timers.nights.nightly", "{}"), "are published by the worker that owns STATE_DIR"),
        (("signals.*", "{}"), "SUBJECT: expected tokens"),
        (("signals.a b", "{}"), "SUBJECT: expected tokens"),
        ((SUBJECT,), "give either PAYLOAD or --file"),
        ((SUBJECT, "{}", "--file", "-"), "give either PAYLOAD or --file"),
        ((SUBJECT, "--file", "/nowhere/at/all"), "No such file"),
        ((SUBJECT, " "), "PAYLOAD: expected JSON, got nothing"),
    ],
    ids=["no stream", "timer", "wildcard", "blank", "nothing", "both", "no file", "empty"],
)
def test_send_refuses_bad_usage(arguments: tuple[str, ...], words: str) -> None:
    """What can't be meant is exit code 2, before any connection is made."""
    result = invoke("send", *arguments, NATS_URL="nats://127.0.0.1:1")
    assert result.exit_code == 2 and words in result.stderr


def test_send_says_that_there_is_no_stream_yet(nats_server: NatsServer) -> None:
    """On a server without the streams it says who makes them, soon."""
    error = invoke("send", SUBJECT, GOOD.decode(), NATS_URL=nats_server.url).exception
    assert isinstance(error, BrokerError) and "stream SIGNALS is not there yet: start a worker" in str(error)


def test_send_shows_progress_on_a_terminal(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar moves on standard error; the result stays alone on standard output."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = invoke("send", SUBJECT, GOOD.decode(), **env)
    assert result.stdout == f"1 sent on {SUBJECT}\n" and SUBJECT in result.stderr
