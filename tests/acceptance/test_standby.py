"""Two workers on one STATE_DIR: the second stands by, tells when the first has stopped moving, and takes over."""

import signal
import sqlite3
from pathlib import Path

from harness import NatsServer, wait_until
from process_kit import DURABLES, Worker, publish, rewarded

from state.sqlite import SqliteReader, SqliteStore
from state.store import store_path

FEEDBACK = DURABLES[0]
FROZEN = "the owner of STATE_DIR has not moved for"


def pair(folder: Path, url: str) -> tuple[Worker, Worker]:
    """Two workers that share a state folder and a NATS server."""
    folders = folder / "one", folder / "two"
    for made in folders:
        made.mkdir()
    settings = {"NATS_URL": url, "STATE_DIR": str(folder / "state"), "HTTP_PORT": "0"}
    return Worker(folders[0], **settings), Worker(folders[1], **settings)


async def test_standby_takes_over_when_the_owner_is_killed(tmp_path: Path, nats_server: NatsServer) -> None:
    """The standby answers while it waits, and consumes once the owner is gone: nothing lost, nothing twice."""
    one, two = pair(tmp_path, nats_server.url)
    with one, two:
        await one.consume()
        await two.start()
        await two.wait_counts(FEEDBACK, role="standby", status="ok")
        await publish(one.nats, "feedback.tip.rewarded", [rewarded(n) for n in range(100)])
        await one.wait_rewards(100)
        await one.kill9()
        await publish(two.nats, "feedback.tip.rewarded", [rewarded(n) for n in range(100, 200)])
        await two.wait_counts(FEEDBACK, role="owner", status="ok")
        await two.wait_rewards(200)
        await two.wait_idle()
        assert await two.reward_count() == 200


async def test_frozen_owner_is_told_by_the_standby_until_somebody_ends_it(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """A stopped owner keeps its lock: the standby is down and says for how long; ended, it is taken over from."""
    one, two = pair(tmp_path, nats_server.url)
    with one, two:
        await one.consume()
        await two.start()
        await two.wait_counts(FEEDBACK, role="standby", status="ok")
        one.signal(signal.SIGSTOP)
        health = await two.wait_health(lambda health: FROZEN in str(health["reasons"]), what="the frozen owner is seen")
        assert health["status"] == "down"
        assert (await two.get("/health/ready")).status == 503
        await publish(two.nats, "feedback.tip.rewarded", [rewarded(n) for n in range(50)])
        await one.kill9()  # what a supervisor does when the probe of that process is not answered
        await two.wait_counts(FEEDBACK, role="owner", status="ok")
        await two.wait_rewards(50)
        assert await two.reward_count() == 50


def freezes_between_commits(worker: Worker, state: Path) -> bool:
    """Freezes a worker; lets it go on when that was in the middle of a commit, which keeps the database locked."""
    worker.signal(signal.SIGSTOP)
    connection = sqlite3.connect(store_path(state), isolation_level=None, timeout=0.1)
    try:
        connection.execute("begin immediate")
        connection.execute("rollback")
    except sqlite3.OperationalError:
        worker.signal(signal.SIGCONT)
        return False
    finally:
        connection.close()
    return True


async def test_owner_that_was_taken_over_in_its_sleep_commits_nothing(tmp_path: Path, nats_server: NatsServer) -> None:
    """Whatever has opened the store meanwhile, an owner that wakes up writes nothing more, says why, and ends."""
    with Worker(tmp_path, NATS_URL=nats_server.url, STATE_DIR=str(tmp_path / "state"), HTTP_PORT="0") as one:
        await one.consume()
        await wait_until(lambda: freezes_between_commits(one, tmp_path / "state"), what="frozen outside a commit")
        SqliteStore(store_path(tmp_path / "state")).close()  # the next owner's epoch
        await publish(one.nats, "feedback.tip.rewarded", [rewarded(n) for n in range(50)])
        one.signal(signal.SIGCONT)
        assert await one.ended() == 1
        assert any("another process has taken this store over" in line for line in one.noise)
        one.process = None
    reader = SqliteReader(store_path(tmp_path / "state"))
    assert reader.count_rows() == {}
    reader.close()
