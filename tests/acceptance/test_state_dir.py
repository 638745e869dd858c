"""STATE_DIR: who owns it, whose durables it reads, and what is said when it can't be used."""

import os
import resource
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from process_kit import (
    DURABLES,
    PATIENCE_S,
    Json,
    Worker,
    connect,
    publish,
    rewarded,
    run_app,
    server_pid,
    synced,
    without_root,
)

REWARDED = "feedback.tip.rewarded"


def roles(health: Json) -> set[str]:
    """What the process is to its durables."""
    return {consumer["role"] for consumer in health["nats"]["consumers"].values()}


async def made_store(worker: Worker) -> Path:
    """Has the worker make a store with some rewards in it, and returns its path."""
    await worker.consume()
    await publish(worker.nats, REWARDED, map(rewarded, range(20)))
    await worker.wait_rewards(20)
    assert await worker.stop() == 0
    return worker.state_dir / "state.db"


async def refused(worker: Worker, preexec: Callable[[], None] | None = None) -> str:
    """Starts a worker that can't start, and returns the one line that it said besides its log."""
    code = await worker.spawn(preexec=preexec).ended()
    assert code == 1, (code, worker.logs, worker.noise)
    assert len(worker.noise) == 1 and worker.noise[0].startswith("error: "), worker.noise
    return worker.noise[0]


@pytest.mark.parametrize("mode", ["embedded", "external"])
@pytest.mark.parametrize("is_used", [False, True], ids=["empty", "used"])
async def test_state_dir_that_is_read_only_stops_the_start(
    tmp_path: Path, nats_server: NatsServer, mode: str, is_used: bool
) -> None:
    """A STATE_DIR without the right to write is one clear line that names it, and exit code 1."""
    settings = {"NATS_URL": nats_server.url} if mode == "external" else {}
    with Worker(tmp_path, **settings) as worker:
        worker.state_dir.mkdir()
        if is_used:
            await made_store(worker)
        for path in (*worker.state_dir.glob("*"), worker.state_dir):
            path.chmod(0o555 if path.is_dir() else 0o444)
        line = await refused(worker, without_root)
        assert str(worker.state_dir) in line
        assert "Permission denied" in line or "readonly" in line
        assert server_pid(worker.state_dir) is None


async def test_state_dir_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """A file where the folder should be is named, and nothing is started."""
    (tmp_path / "file").write_text("")
    with Worker(tmp_path, STATE_DIR=str(tmp_path / "file" / "var")) as worker:
        assert f"{tmp_path / 'file' / 'var'}: STATE_DIR can't be made" in await refused(worker)


def cut_in_half(path: Path) -> None:
    """Damages a database as a torn copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    """Puts something else in its place."""
    path.write_bytes(b"no database at all" * 100)


def make_newer(path: Path) -> None:
    """Makes it look like a later version's."""
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.execute("pragma journal_mode = delete")
    connection.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(cut_in_half, "damaged"), (overwrite, "state.db: is"), (make_newer, "schema version 99")],
    ids=["torn", "foreign", "newer"],
)
async def test_store_that_cannot_be_used_is_named_and_left(
    tmp_path: Path, nats_server: NatsServer, damage: Callable[[Path], None], words: str
) -> None:
    """A damaged or newer store stops the start with its name; not a byte of it, nor any file beside it, changes."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        path = await made_store(worker)
        damage(path)
        before, names = path.read_bytes(), sorted(os.listdir(worker.state_dir))
        line = await refused(worker)
        assert str(path) in line and words in line and "left as it" in line
        assert (path.read_bytes(), sorted(os.listdir(worker.state_dir))) == (before, names)
        shown = await run_app("state", "get", "user_sync", "anna", worker=worker)
        assert (shown.code, shown.err) == (1, line)
        assert path.read_bytes() == before


async def test_store_that_takes_no_writes_is_said_and_nothing_is_acked(tmp_path: Path, nats_server: NatsServer) -> None:
    """On a full disk /health says that the store is down and no message is acked; with room again it goes on."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(nats_server.url, REWARDED, map(rewarded, range(10)))
        await worker.wait_rewards(10)
        hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, hard))
        await publish(nats_server.url, REWARDED, map(rewarded, range(10, 300)))
        health = await worker.wait_health(lambda health: health["state"]["status"] == "down", what="state down")
        assert health["status"] == "down" and str(worker.state_dir / "state.db") in health["state"]["reason"]
        assert (await worker.get("/health/ready")).status == 503
        assert await worker.reward_count() == 10
        client = await connect(nats_server.url)
        info = await client.jetstream().consumer_info("FEEDBACK", "tipstream-feedback")
        await client.close()
        assert info.ack_floor is not None and info.ack_floor.stream_seq == 10
        assert info.num_ack_pending + info.num_pending == 290
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await worker.wait_rewards(300)
        await worker.wait_idle()
        assert await worker.reward_count() == 300


async def test_store_that_takes_no_writes_delays_no_stop(tmp_path: Path, nats_server: NatsServer) -> None:
    """With a full disk the worker still stops in order; with room again the next start applies the rest once."""
    with Worker(tmp_path, NATS_URL=nats_server.url, SHUTDOWN_S="600") as worker:
        await worker.consume()
        big = [synced(f"u{number}", cursor="x" * 10_000) for number in range(60)]
        await publish(nats_server.url, "signals.task.synced", big)
        await worker.wait_counts("tipstream-signals", processed=60)
        hard = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (500_000, hard))  # the log has 600 kB of rows already
        await publish(nats_server.url, REWARDED, map(rewarded, range(40)))
        await worker.wait_health(lambda health: health["state"]["status"] == "down", what="state down")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        await worker.consume()
        await worker.wait_rewards(40)
        await worker.wait_idle()
        assert await worker.reward_count() == 40
        counted = await run_app("state", "list", "--json", worker=worker)
        counts = [("reward_days", 1), ("rewards", 40), ("user_sync", 60)]
        assert counted.json == [{"table": table, "rows": rows} for table, rows in counts]


async def test_store_of_another_identity_does_not_consume(tmp_path: Path, nats_server: NatsServer) -> None:
    """Beside durables of another store a worker is down, names both, and answers; the other one goes on."""
    for name in "ab":
        (tmp_path / name).mkdir()
    first = Worker(tmp_path / "a", NATS_URL=nats_server.url)
    second = Worker(tmp_path / "b", NATS_URL=nats_server.url)
    with first, second:
        await first.consume()
        store = first.said("owner of the store")[0]["store"]
        await second.start()
        health = await second.wait_health(
            lambda health: all(store in str(one["reason"]) for one in health["nats"]["consumers"].values()), what="down"
        )
        assert health["status"] == "down"
        other = second.said("owner of the store")[0]["store"]
        assert other != store
        for durable in DURABLES:
            reason = health["nats"]["consumers"][durable]["reason"]
            assert store in reason and other in reason and "NATS_DURABLE_PREFIX" in reason
            assert f"consumer {durable}: {reason}" in health["reasons"]
        assert (await second.get("/health/live")).status == 200
        await publish(nats_server.url, REWARDED, map(rewarded, range(50)))
        await first.wait_rewards(50)
        await first.wait_idle()
        assert await second.reward_count() == 0
        assert await second.stop() == 0


async def test_store_of_another_identity_is_refused_by_streams_apply(tmp_path: Path, nats_server: NatsServer) -> None:
    """A plan shows the durables of another store as refused, exit code 3; apply leaves them alone, exit code 1."""
    for name in "ab":
        (tmp_path / name).mkdir()
    first = Worker(tmp_path / "a", NATS_URL=nats_server.url)
    with first, Worker(tmp_path / "b", NATS_URL=nats_server.url) as second:
        await first.consume()
        for command, code in (("apply", 1), ("plan", 3)):
            result = await run_app("streams", command, "--json", worker=second)
            assert result.code == code
            actions = {step["name"]: step["action"] for step in result.json if step["kind"] == "consumer"}
            assert actions == {f"{durable}{end}": "refused" for durable in DURABLES for end in ("", "-redrive")}
        await publish(nats_server.url, REWARDED, map(rewarded, range(10)))
        await first.wait_rewards(10)


async def test_two_workers_on_an_empty_state_dir_share_it(tmp_path: Path) -> None:
    """Started at once one owns, one stands by, both answer the same rows; after kill -9 the other goes on."""
    with Worker(tmp_path) as one, Worker(tmp_path) as two:
        one.spawn()
        two.spawn()
        await one.ready()
        await two.ready()
        await wait_until(lambda: one.attached() | two.attached() == {*DURABLES}, PATIENCE_S, what="one is attached")
        owner, standby = (one, two) if one.attached() else (two, one)
        await publish(owner.nats, REWARDED, map(rewarded, range(1_000)))
        for worker in (owner, standby):
            await worker.wait_rewards(1_000)
            await worker.wait_ok()
        assert (roles(await owner.health()), roles(await standby.health())) == ({"owner"}, {"standby"})
        await publish(owner.nats, REWARDED, map(rewarded, range(1_000, 3_000)))
        owner.signal(signal.SIGKILL)
        await standby.wait_health(lambda health: roles(health) == {"owner"}, what="the standby owns")
        await standby.wait_rewards(3_000)
        await standby.wait_idle()
        assert await standby.reward_count() == 3_000
        assert await standby.stop() == 0
        assert server_pid(tmp_path / "var") is None
