"""Crashes of the worker and of its server, cut connections, and what an administrator can break: each event once."""

import os
import signal
from pathlib import Path

from harness import NatsServer, TcpProxy, wait_until
from process_kit import DURABLES, PATIENCE_S, Json, Worker, connect, publish, rewarded, server_pid

REWARDED = "feedback.tip.rewarded"
ROUND_COUNT = 1_000


def said_in_reasons(health: Json, text: str) -> bool:
    """Whether one of /health's reasons has this text."""
    return any(text in reason for reason in health["reasons"])


async def is_ready(worker: Worker) -> bool:
    """Whether it takes requests, as an orchestrator asks."""
    return (await worker.get("/health/ready")).status == 200


async def test_worker_killed_in_mid_batch_applies_each_event_once(tmp_path: Path) -> None:
    """Three kill -9 amid work change no count, and the embedded server outlives all of them."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        server = server_pid(worker.state_dir)
        for number in range(3):
            handled = len(worker.said("tip rewarded"))
            rewards = map(rewarded, range(number * ROUND_COUNT, (number + 1) * ROUND_COUNT))
            await publish(worker.nats, REWARDED, rewards)
            await wait_until(lambda seen=handled: len(worker.said("tip rewarded")) > seen, PATIENCE_S, poll_s=0.001)
            await worker.kill9()
            worker.spawn()
        await worker.ready()
        await worker.wait_rewards(3 * ROUND_COUNT)
        await worker.wait_idle()
        assert await worker.reward_count() == 3 * ROUND_COUNT
        assert server_pid(worker.state_dir) == server


async def test_server_that_is_killed_comes_back_by_itself(tmp_path: Path) -> None:
    """After kill -9 of the embedded server the worker starts it again at the same URL and goes on; nothing is lost."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        url, pid = worker.nats, server_pid(worker.state_dir)
        await publish(url, REWARDED, map(rewarded, range(500)))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: server_pid(worker.state_dir) not in (None, pid), what="another server runs")
        await wait_until(lambda: len(worker.said("NATS connected")) > 1, what="the worker is connected again")
        assert worker.nats == url
        await publish(url, REWARDED, map(rewarded, range(500, 700)))
        await worker.wait_rewards(700)
        await worker.wait_idle()
        assert await worker.reward_count() == 700


async def freeze_server(worker: Worker) -> int:
    """Stops the nats-server of a worker that consumes; the server's process id."""
    await worker.consume()
    await worker.wait_ok()
    pid = server_pid(worker.state_dir)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


async def test_frozen_server_is_seen(tmp_path: Path) -> None:
    """A stopped nats-server makes /health down and ready 503 while live stays 200; all recovers when it goes on."""
    with Worker(tmp_path) as worker:
        pid = await freeze_server(worker)
        health = await worker.wait_health(lambda health: said_in_reasons(health, "NATS does not"), what="down")
        assert (health["status"], health["nats"]["connected"], health["nats"]["rtt_ms"]) == ("down", False, None)
        assert (await worker.get("/health/live")).status == 200
        assert (await worker.get("/health/ready")).status == 503
        os.kill(pid, signal.SIGCONT)
        await worker.wait_ok()
        await wait_until(lambda: is_ready(worker), what="ready again")
        await publish(worker.nats, REWARDED, map(rewarded, range(10)))
        await worker.wait_rewards(10)


async def test_server_that_answers_late_costs_no_connection(tmp_path: Path) -> None:
    """A freeze that ends as soon as it is seen leaves the connection as it was."""
    with Worker(tmp_path) as worker:
        pid = await freeze_server(worker)
        await worker.wait_health(lambda health: not health["nats"]["connected"], what="seen")
        os.kill(pid, signal.SIGCONT)
        await worker.wait_ok()
        assert not worker.said("NATS disconnected")


async def test_cut_connections_change_no_count(tmp_path: Path, nats_server: NatsServer) -> None:
    """Connections that are cut amid work, six times, lead to the same counts as an undisturbed run."""
    async with TcpProxy(nats_server.port) as proxy:
        with Worker(tmp_path, NATS_URL=proxy.url) as worker:
            await worker.consume()
            for number in range(6):
                await publish(nats_server.url, REWARDED, map(rewarded, range(number * 300, (number + 1) * 300)))
                proxy.cut()
            await worker.wait_rewards(1_800)
            await worker.wait_idle()
            assert await worker.reward_count() == 1_800
            assert len(worker.said("NATS connected")) > 1
            assert await worker.stop() == 0  # while the proxy runs


async def test_silent_connection_is_seen_and_made_anew(tmp_path: Path, nats_server: NatsServer) -> None:
    """A connection that stays open and carries nothing makes /health down; the worker recovers when the path does."""
    async with TcpProxy(nats_server.port) as proxy:
        with Worker(tmp_path, NATS_URL=proxy.url) as worker:
            await worker.consume()
            await worker.wait_ok()
            proxy.blackhole()
            await worker.wait_health(lambda health: health["status"] == "down", what="down")
            await publish(nats_server.url, REWARDED, map(rewarded, range(100)))
            proxy.heal()
            await worker.wait_rewards(100)
            await worker.wait_idle()
            assert await worker.reward_count() == 100
            assert await worker.stop() == 0  # while the proxy runs


async def test_deleted_durable_is_made_again_where_the_store_stands(tmp_path: Path, nats_server: NatsServer) -> None:
    """An administrator's deletion of the durable neither loses an event nor applies one again."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(nats_server.url, REWARDED, map(rewarded, range(50)))
        await worker.wait_rewards(50)
        client = await connect(nats_server.url)
        await client.jetstream().delete_consumer("FEEDBACK", "tipstream-feedback")
        await publish(nats_server.url, REWARDED, map(rewarded, range(50, 80)))
        await worker.wait_rewards(80)
        await worker.wait_idle()
        assert await worker.reward_count() == 80
        info = await client.jetstream().consumer_info("FEEDBACK", "tipstream-feedback")
        assert (info.num_ack_pending, info.num_pending) == (0, 0)
        attaches = [line["from_seq"] for line in worker.said("attached") if line["durable"] == "tipstream-feedback"]
        assert 51 in attaches
        await client.close()


async def test_deleted_stream_is_reported_and_not_made_again(tmp_path: Path, nats_server: NatsServer) -> None:
    """A stream that was read before and is gone makes its consumer down, by name; a restart does not hide the loss."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(nats_server.url, REWARDED, map(rewarded, range(5)))
        await worker.wait_rewards(5)
        client = await connect(nats_server.url)
        await client.jetstream().delete_stream("FEEDBACK")
        for _ in range(2):
            await worker.wait_health(lambda health: said_in_reasons(health, "stream FEEDBACK is gone"), what="said")
            assert await worker.stop() == 0
            await worker.start()
        names = {info.config.name for info in await client.jetstream().streams_info()}
        assert names == {"SIGNALS", "TIMERS", "DEAD_LETTERS", "DECISIONS"}
        await client.close()


async def test_server_that_comes_late_is_waited_for(tmp_path: Path, nats_server: NatsServer) -> None:
    """With its server away a worker answers HTTP and says down with a reason; it recovers when the server is there."""
    nats_server.stop()
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.start()
        health = await worker.health()
        assert health["status"] == "down" and said_in_reasons(health, "NATS does not answer")
        assert (await worker.get("/health/live")).status == 200
        assert (await worker.get("/health/ready")).status == 503
        nats_server.start()
        await wait_until(lambda: worker.attached().issuperset(DURABLES), PATIENCE_S, what="all durables attached")
        await worker.wait_ok()
        await publish(nats_server.url, REWARDED, map(rewarded, range(5)))
        await worker.wait_rewards(5)
