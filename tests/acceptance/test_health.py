"""What /health says of a worker: the shape that others rely on, and the truth when nothing happens."""

from pathlib import Path

from harness import NatsServer, wait_until
from process_kit import DURABLES, PATIENCE_S, Json, Worker, publish, run_app, synced

CONSUMER_FIELDS = (
    *("last_msg_ts", "processed", "errors", "dead_lettered", "parked", "pending", "ack_pending", "redelivered"),
    *("lag_s", "role", "status", "reason", "handlers"),
)


def consumer_of(health: Json, durable: str) -> Json:
    """One durable's part of /health."""
    return dict(health["nats"]["consumers"][durable])


async def test_health_has_the_documented_shape(tmp_path: Path, nats_server: NatsServer) -> None:
    """Fields and their order are those of the contract, for the process, NATS and each durable."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        health = await worker.wait_ok()
        assert list(health) == ["status", "reasons", "nats", "model", "prompts", "state", "decisions"]
        assert list(health["nats"]) == ["enabled", "mode", "connected", "rtt_ms", "unhandled", "consumers"]
        assert sorted(health["nats"]["consumers"]) == list(DURABLES)
        assert tuple(consumer_of(health, DURABLES[0])) == CONSUMER_FIELDS
        counts = {"processed": 0, "errors": 0, "dead_lettered": 0}
        assert consumer_of(health, "tipstream-signals")["handlers"] == {
            "signals.task_synced": counts,
            "signals.tip_feedback": counts,
        }
        assert health["state"] == {"status": "ok", "reason": None}
        assert list(health["decisions"])[:3] == ["status", "reason", "rate"]


async def test_health_of_an_idle_worker_stays_ok(tmp_path: Path) -> None:
    """From its attach on a worker with nothing to do is never said to be detached, gone or stalled."""
    durables = {f"{durable}{end}" for durable in DURABLES for end in ("", "-redrive")}
    with Worker(tmp_path, LOG_LEVEL="debug") as worker:
        await worker.start()
        await wait_until(lambda: worker.attached() == durables, PATIENCE_S, what="all attached, those of redrives too")
        reasons = set()
        for _ in range(200):
            health = await worker.health()
            reasons.update(health["reasons"])
        wrong = {reason for reason in reasons if "does not answer" not in reason}  # a busy machine may be late
        assert wrong == set(), wrong
        assert consumer_of(health, DURABLES[0])["lag_s"] == 0
        health = await worker.wait_health(lambda health: health["nats"]["rtt_ms"] is not None, what="a round trip")
        assert (health["nats"]["mode"], health["nats"]["connected"]) == ("embedded", True)
        assert 0 < health["nats"]["rtt_ms"] < 500


async def test_health_counts_by_handler(tmp_path: Path, nats_server: NatsServer) -> None:
    """Applied messages, failed attempts and dead letters are counted at their handler and summed at its durable."""
    feedback = {"user_id": "u", "tip_id": "t", "reaction": "accepted", "occurred_at": "2026-03-01T10:00:00Z"}
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(nats_server.url, "signals.task.synced", [synced("a"), synced("b"), b"broken"])
        await publish(nats_server.url, "signals.tip.feedback", [feedback, feedback | {"reaction": "eaten"}])
        health = await worker.wait_counts(
            "tipstream-signals", processed=3, errors=2, dead_lettered=2, pending=0, ack_pending=0, parked=0
        )
        found = consumer_of(health, "tipstream-signals")
        assert found["handlers"] == {
            "signals.task_synced": {"processed": 2, "errors": 1, "dead_lettered": 1},
            "signals.tip_feedback": {"processed": 1, "errors": 1, "dead_lettered": 1},
        }
        assert found["last_msg_ts"].endswith("Z") and found["role"] == "owner"


async def test_worker_without_nats_answers_and_is_ok(tmp_path: Path) -> None:
    """With an empty NATS_URL HTTP works, nothing is started beside it, and a command that needs NATS says so."""
    with Worker(tmp_path, NATS_URL="") as worker:
        await worker.start()
        health = await worker.health()
        assert (health["status"], health["reasons"]) == ("ok", [])
        assert health["nats"] == {
            **{"enabled": False, "mode": "disabled", "connected": False},
            **{"rtt_ms": None, "unhandled": 0, "consumers": {}},
        }
        assert (await worker.get("/health/ready")).status == 200
        assert (await worker.get("/state/user_sync/anna")).status == 404
        sent = await run_app("send", "signals.task.synced", "{}", "--raw", worker=worker)
        assert (sent.code, sent.out) == (2, "")
        assert sent.err.splitlines() == ["error: NATS_URL: this command needs NATS: unset it, or name a server, got ''"]
        assert not (worker.state_dir / "server.json").exists()
        assert await worker.stop() == 0
