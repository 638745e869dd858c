"""``replay`` in a shell, beside a worker: production goes on and stays as it is, whatever the handlers do."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import HOST, NatsServer, wait_until
from process_kit import PATIENCE_S, Json, Worker, publish, run_app
from service_kit import api, client
from store_kit import dump

DURABLE, SUBJECT = "tipstream-steps", "signals.step"

PLUGIN = """
import asyncio, socket
import aiohttp, attrs
from streams import Context, Policy, Reject, SubjectTable, Table

@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int

@attrs.frozen(kw_only=True)
class Row:
    seen: tuple[int, ...] = ()

ROWS = Table("steps", Row)
subjects = SubjectTable("steps", tables=[ROWS])

@subjects.on("signals.step", policy=Policy(max_deliver=1, timeout_s={timeout_s}))
async def step(event: Step, ctx: Context) -> None:
    {first}
    row = ctx.get(ROWS, event.user_id) or Row()
    other = ctx.peek(ROWS, "bo") or Row()
    ctx.put(ROWS, event.user_id, Row(seen=(*row.seen, event.n)))
    facts = {{"id": ctx.new_id(), "dice": ctx.random.random(), "now": ctx.now.isoformat(), "bo": len(other.seen)}}
    ctx.publish("signals.told", facts)
"""
REFUSE = 'if event.n == 3: raise Reject("three")'


def write_plugin(folder: Path, first: str = "pass", *, timeout_s: float = 600) -> None:
    """Writes the handler whose first line this is; its time is short only where that is the matter."""
    (folder / "stories.py").write_text(PLUGIN.format(first=first, timeout_s=timeout_s), encoding="utf-8")


@pytest.fixture
async def worker(tmp_path: Path, nats_server: NatsServer) -> AsyncIterator[Worker]:
    """A worker that runs and has handled steps 1 to 4 of ana, and one of bo behind them; ana's 3 is a dead letter."""
    write_plugin(tmp_path, REFUSE)
    with Worker(tmp_path, NATS_URL=nats_server.url, PLUGINS="stories") as found:
        await found.consume()
        await publish(found.nats, SUBJECT, [step("ana", n) for n in (1, 2, 3, 4)] + [step("bo", 5)])
        await found.wait_counts(DURABLE, processed=4, dead_lettered=1)
        await found.wait_idle()
        yield found


def step(user: str, n: int) -> Json:
    """One step of a user."""
    return {"user_id": user, "n": n}


async def replayed(worker: Worker, *arguments: str) -> list[Any]:
    """What replay --json prints of steps."""
    result = await run_app("replay", SUBJECT, "--json", *arguments, worker=worker)
    assert (result.code, "Traceback" in result.err) == (0, False), result.err
    return [json.loads(line) for line in result.out.splitlines()]


async def test_replay_of_the_same_code_is_what_happened(worker: Worker) -> None:
    """Verdicts, peeks, time, chance and ids are those of the worker: what it published is what replay shows."""
    found = await replayed(worker)
    assert [(one["verdict"], one["live"]) for one in found] == [
        *(("applied", "applied"), ("applied", "applied"), ("dead", "dead"), ("applied", "applied"), ("applied",) * 2),
    ]
    shown = {tuple(event["event"].items()) for one in found for event in one["publishes"]}
    async with client(worker.nats) as nc:
        subscription = await nc.jetstream().subscribe("signals.told", ordered_consumer=True)
        told = [json.loads((await subscription.next_msg(PATIENCE_S)).data) for _ in range(4)]
    assert shown == {tuple(event.items()) for event in told}
    assert found[3]["writes"][0]["after"] == {"seen": [1, 2, 4]}


async def test_replay_recalls_peeks_after_the_row_has_changed(worker: Worker) -> None:
    """A row that was peeked at is given as it was then, not as it is today."""
    await publish(worker.nats, SUBJECT, [step("bo", n) for n in (6, 7)])
    await worker.wait_counts(DURABLE, processed=6)
    found = await replayed(worker, "--user", "ana")
    assert [one["peeks"] for one in found if one["verdict"] == "applied"] == [
        [{"table": "steps", "key": "bo", "row": None}]
    ] * 3
    assert [one["guessed_peeks"] for one in found if one["verdict"] == "applied"] == [0, 0, 0]


async def test_two_replays_are_the_same_bytes_while_a_worker_goes_on(worker: Worker) -> None:
    """What is asked for by sequence is answered with the same bytes, however much comes in meanwhile."""
    arguments = ("replay", SUBJECT, "--json", "--from", "2", "--to", "5")
    first = await run_app(*arguments, worker=worker)
    going = asyncio.create_task(publish(worker.nats, SUBJECT, [step("ana", n) for n in range(10, 210)]))
    second = await run_app(*arguments, worker=worker)
    await going
    await worker.wait_counts(DURABLE, processed=204, dead_lettered=1)
    assert first.out and first.out == second.out


async def everything(worker: Worker) -> Json:
    """What production is: the store's rows, all streams, and the durable's position."""
    async with client(worker.nats) as nc:
        streams = (await api(nc, "STREAM.LIST"))["streams"]
        durable = await api(nc, f"CONSUMER.INFO.SIGNALS.{DURABLE}")
    places = {name: durable[name] for name in ("delivered", "ack_floor", "num_pending", "num_ack_pending", "config")}
    return {
        "store": dump(worker.state_dir / "state.db"),
        "streams": [(one["config"]["name"], one["state"]) for one in streams],
        "durable": places,
    }


async def test_replay_changes_nothing_of_production(worker: Worker) -> None:
    """After replays of good and of failing handlers the store's bytes, every stream and the durable are as before."""
    assert await worker.stop() == 0
    before, database = await everything(worker), (worker.state_dir / "state.db").read_bytes()
    await replayed(worker)
    write_plugin(worker.folder, 'raise ValueError("broken today")')
    found = await replayed(worker)
    assert {one["verdict"] for one in found} == {"dead"}
    assert await everything(worker) == before
    assert (worker.state_dir / "state.db").read_bytes() == database


async def test_replay_shows_what_a_fix_would_have_changed(worker: Worker) -> None:
    """With today's code the dead letter is applied, the lane goes on from it, and the summary counts it."""
    write_plugin(worker.folder)
    result = await run_app("replay", SUBJECT, worker=worker)
    assert result.code == 0
    assert "ana  applied  (live: dead)" in result.out
    assert "seen: [1,2,3] -> [1,2,3,4]" in result.out
    assert "1 end otherwise than they did in the worker" in result.out


async def test_replay_says_which_earlier_messages_fail_today(worker: Worker) -> None:
    """Messages before the first one that today's code refuses are a remark, with the first of them."""
    write_plugin(worker.folder, 'if event.n < 3: raise Reject("small")')
    result = await run_app("replay", SUBJECT, "--from", "6", "--json", worker=worker)
    assert result.code == 0
    assert "steps: 2 earlier messages were applied once and fail today, the first at SIGNALS:1: " in result.err


async def test_replay_runs_a_redriven_dead_letter_where_it_was_applied(worker: Worker) -> None:
    """A dead letter that was redriven comes in after what was applied before that, as in the row of today."""
    write_plugin(worker.folder)
    assert await worker.stop() == 0
    await worker.consume()
    redrive = ("deadletters", "redrive", "--handler", "steps.step", "--wait", "30")
    assert (await run_app(*redrive, worker=worker)).code == 0
    await worker.wait_counts(DURABLE, processed=1)
    await publish(worker.nats, SUBJECT, [step("ana", 6)])
    await worker.wait_counts(DURABLE, processed=2)
    found = await replayed(worker, "--where", "event.n == 6", "--from", "6")
    assert found[0]["writes"][0]["after"] == {"seen": [1, 2, 4, 3, 6]}
    row = await worker.get("/state/steps/ana")
    assert row.json["row"] == found[0]["writes"][0]["after"]


SOCKET = 'socket.create_connection(("{host}", {port}))'
AIOHTTP = 'await aiohttp.ClientSession().get("http://{host}:{port}/")'
DATAGRAM = 'socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("{host}", {port}))'


@pytest.mark.parametrize("line", [SOCKET, AIOHTTP, DATAGRAM], ids=["socket", "aiohttp", "datagram"])
async def test_replay_refuses_a_handler_that_connects(worker: Worker, line: str) -> None:
    """A handler that wants to reach somebody fails with an error that says so, and nobody is reached."""
    kind = socket.SOCK_DGRAM if line == DATAGRAM else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind((HOST, 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        server.setblocking(False)
        port = server.getsockname()[1]
        write_plugin(worker.folder, line.format(host=HOST, port=port))
        found = await replayed(worker, "--limit", "1", "--empty")
        with pytest.raises(BlockingIOError):
            server.recv(1) if kind == socket.SOCK_DGRAM else server.accept()
    assert found[0]["verdict"] != "applied"
    assert found[0]["error"].startswith(f"NetworkRefused: a replay makes no outgoing connections (to {HOST}:{port})")


async def test_replay_ends_a_handler_past_its_time(worker: Worker) -> None:
    """A handler that hangs fails after its policy's time, and the next message plays."""
    write_plugin(worker.folder, "if event.n == 1: await asyncio.sleep(1000)", timeout_s=0.3)
    found = await replayed(worker, "--limit", "2")
    assert (found[0]["error"], found[1]["verdict"]) == ("TimeoutError: ran longer than 0.3 s", "applied")


async def test_replay_ends_at_once_on_ctrl_c(worker: Worker) -> None:
    """An interrupt in the midst of a handler ends the command without a traceback; the worker does not notice."""
    mark = worker.folder / "begun"
    write_plugin(worker.folder, f"open({str(mark)!r}, 'w').close(); await asyncio.sleep(1000)")
    command = [sys.executable, "-m", "app", "replay", SUBJECT, "--json"]
    with subprocess.Popen(
        command, cwd=worker.folder, env=worker.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        await wait_until(mark.exists, PATIENCE_S, what="the handler runs")
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert process.returncode in (1, 130)
    assert (out, "Traceback" in err) == ("", False)
    await worker.wait_ok()


async def test_replay_passes_a_removed_handler_over(worker: Worker) -> None:
    """When nobody takes the subject any more, the command names the subjects that are taken."""
    text = (worker.folder / "stories.py").read_text(encoding="utf-8").replace('"signals.step"', '"signals.other"')
    (worker.folder / "stories.py").write_text(text, encoding="utf-8")
    result = await run_app("replay", SUBJECT, worker=worker)
    assert (result.code, result.out) == (2, "")
    assert f"no handler takes '{SUBJECT}'; there is " in result.err
    assert (await run_app("replay", worker=worker)).code == 0


async def test_replay_needs_no_worker(tmp_path: Path) -> None:
    """On an empty folder it says in one line that there is no stream yet; after a worker it runs a server itself."""
    with Worker(tmp_path) as worker:
        result = await run_app("replay", worker=worker)
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: there is no stream yet: a worker makes them\n"
        await worker.consume()
        assert await worker.stop() == 0
        played = await run_app("replay", worker=worker)
        assert (played.code, played.out) == (0, "0 messages; 0 writes, 0 publishes\n")
