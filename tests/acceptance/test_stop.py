"""Stopping: in order nothing is delivered twice, at once nothing is lost."""

import signal
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from process_kit import PATIENCE_S, Worker, connect, publish, rewarded, server_pid

EVENT_COUNT = 1_000
DURABLE = "tipstream-feedback"
START = ("ready", "NATS connected", "owner of the store", "stream created", "attached")


async def with_backlog(worker: Worker, count: int = EVENT_COUNT) -> None:
    """Starts the worker on waiting rewards, and returns when it has handled the first of them."""
    await worker.consume()
    assert await worker.stop() == 0
    await publish(worker.nats, "feedback.tip.rewarded", map(rewarded, range(count)))
    worker.spawn()
    await wait_until(lambda: worker.said("tip rewarded"), PATIENCE_S, what="the first event is handled", poll_s=0.001)


def from_seq(worker: Worker) -> int:
    """From where the worker has gone on at its last start."""
    return next(int(line["from_seq"]) for line in worker.said("attached") if line["durable"] == DURABLE)


async def test_stop_in_mid_work_leaves_no_delivery_open(tmp_path: Path, nats_server: NatsServer) -> None:
    """After SIGTERM amid 5,000 events the server waits for no ack and has sent nothing twice; the rest comes later."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await with_backlog(worker, 5_000)
        assert await worker.stop() == 0
        client = await connect(nats_server.url)
        info = await client.jetstream().consumer_info("FEEDBACK", DURABLE)
        await client.close()
        assert (info.num_ack_pending, info.num_redelivered) == (0, 0)
        await worker.consume()
        assert 1 < from_seq(worker) <= 5_000, "the stop was to come in mid-work"
        health = await worker.wait_idle()
        assert await worker.reward_count() == 5_000
        assert health["nats"]["consumers"][DURABLE]["processed"] == 5_001 - from_seq(worker)


async def test_second_ctrl_c_leaves_at_once_and_loses_nothing(tmp_path: Path, nats_server: NatsServer) -> None:
    """While a stop hangs on a frozen server a second Ctrl-C ends the process with 130; each event counts once."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await with_backlog(worker)
        nats_server.pause()
        worker.signal(signal.SIGINT)
        await wait_until(lambda: worker.said("stopping"))
        assert not worker.has_ended
        worker.signal(signal.SIGINT)
        assert await worker.ended() == 130
        assert not worker.said("stopped")
        nats_server.resume()
        await worker.consume()
        await worker.wait_rewards(EVENT_COUNT)
        await worker.wait_idle()
        assert await worker.reward_count() == EVENT_COUNT


async def test_stop_does_not_need_nats(tmp_path: Path, nats_server: NatsServer) -> None:
    """With a frozen server SIGTERM still ends the worker with 0, in mid-work too, and nothing is applied twice."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await with_backlog(worker)
        nats_server.pause()
        assert await worker.stop() == 0
        nats_server.resume()
        await worker.consume()
        await worker.wait_rewards(EVENT_COUNT)
        await worker.wait_idle()
        assert await worker.reward_count() == EVENT_COUNT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
async def test_stop_of_an_idle_worker_ends_its_server(tmp_path: Path, number: signal.Signals) -> None:
    """Either signal ends worker and embedded server with exit code 0 and nothing but log lines said."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        assert server_pid(worker.state_dir) is not None
        worker.signal(number)
        assert await worker.ended() == 0
        assert server_pid(worker.state_dir) is None
        assert worker.noise == []


async def test_stop_while_still_connecting_ends_in_order(tmp_path: Path, nats_server: NatsServer) -> None:
    """A worker whose server was never there stops with 0 as well."""
    nats_server.kill9()
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.start()
        assert await worker.stop() == 0


@pytest.mark.parametrize("moment", START)
async def test_stop_amid_the_start_ends_in_order(tmp_path: Path, moment: str) -> None:
    """SIGTERM at any moment of the start ends worker and server with 0."""
    with Worker(tmp_path) as worker:
        worker.spawn()
        await wait_until(lambda: worker.said(moment), PATIENCE_S, poll_s=0.001)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert worker.noise == [] and server_pid(worker.state_dir) is None
