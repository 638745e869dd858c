"""The thinnest path, from an event in to a row out, in the process that an operator starts."""

from pathlib import Path

from harness import NatsServer, wait_until
from process_kit import DAY, Worker, connect, publish, rewarded, run_app, server_pid, synced


async def test_worker_turns_an_event_into_a_row(tmp_path: Path) -> None:
    """A sent event becomes a committed row, the same over HTTP and in the command, and /health counts it."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        sent = await run_app("send", "signals.task.synced", '{"user_id": "anna", "provider": "todo", '
                             '"synced_at": "2026-03-01T08:00:00Z", "task_count": 7}', worker=worker)  # fmt: skip
        assert (sent.code, sent.out, sent.err) == (0, "1 sent on signals.task.synced\n", "")
        health = await worker.wait_idle()
        assert health["nats"]["consumers"]["tipstream-signals"]["processed"] == 1
        shown = (await worker.get("/state/user_sync/anna")).json
        todo = {"synced_at": "2026-03-01T08:00:00Z", "task_count": 7, "cursor": None}
        assert shown["row"]["providers"] == {"todo": todo}
        assert (shown["stream"], shown["stream_seq"], shown["row"]["stream_seq"]) == ("SIGNALS", 1, 1)
        assert (await run_app("state", "get", "user_sync", "anna", worker=worker)).json == shown


async def test_worker_ends_in_order_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """SIGTERM ends it with 0 and ends its server; the next start has the rows and applies nothing again."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        await publish(worker.nats, "feedback.tip.rewarded", map(rewarded, range(30)))
        await worker.wait_rewards(30)
        server = worker.server
        assert await worker.stop() == 0
        assert server_pid(worker.state_dir) is None
        assert [line["message"] for line in worker.logs][-2:] == ["stopping", "stopped"]
        await worker.consume()
        from_seq = {line["durable"]: line["from_seq"] for line in worker.said("attached")}
        assert from_seq == {
            "tipstream-feedback": 31,
            "tipstream-generations": 1,
            "tipstream-signals": 1,
        }  # 30 are done, the next is 31
        await publish(worker.nats, "feedback.tip.rewarded", [rewarded(30)])
        await worker.wait_rewards(31)
        health = await worker.wait_idle()
        assert await worker.reward_count() == 31
        assert health["nats"]["consumers"]["tipstream-feedback"]["processed"] == 1
        assert worker.server["url"] == server["url"]


async def test_worker_says_where_everything_is(tmp_path: Path) -> None:
    """The ready line names HTTP, NATS, the store and the handlers; a warning says that the broker is its own."""
    with Worker(tmp_path) as worker:
        await worker.start()
        ready = worker.said("ready")[0]
        assert ready["http"].startswith("http://127.0.0.1:") and not ready["http"].endswith((":0", ":8080"))
        assert ready["nats"] == f"{worker.nats} (embedded)"
        assert ready["state"] == str(tmp_path / "var" / "state.db")
        assert ready["handlers"] == [
            *("feedback.tip_rewarded", "generations.generate_decided"),
            *("signals.task_synced", "signals.tip_feedback"),
        ]
        await wait_until(
            lambda: any("NATS_URL is unset" in line["message"] for line in worker.logs), what="a warning follows"
        )


async def test_worker_logs_no_payload(tmp_path: Path) -> None:
    """At the default level no line has anything of an event in it, be it applied or dead-lettered."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.task.synced", [synced("secret-user"), b'{"user_id": "secret-user"'])
        await wait_until(lambda: worker.said("handler failed"))
        await worker.wait_idle()
        await worker.stop()
        assert "secret" not in str(worker.logs) + str(worker.noise)


async def test_worker_makes_what_it_cannot_decode_a_dead_letter(tmp_path: Path, nats_server: NatsServer) -> None:
    """Bad payloads of several kinds end in the dead-letter stream, each once and as it came; good ones pass."""
    bad = [b"{", b'{"provider": "todo"}', b"\xff", b"[]", b'{"user_id": 1, "provider": "a", "synced_at": "2026"}']
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.task.synced", [*bad, synced("anna")])
        await worker.wait_counts("tipstream-signals", dead_lettered=len(bad), processed=1, status="ok")
        await worker.wait_idle()
        client = await connect(nats_server.url)
        stream = client.jetstream()
        assert (await stream.stream_info("DEAD_LETTERS")).state.messages == len(bad)
        letters = [
            await stream.get_last_msg("DEAD_LETTERS", f"deadletters.SIGNALS.signals.task_synced.{number}")
            for number in range(1, len(bad) + 1)
        ]
        await client.close()
        assert [letter.data for letter in letters] == bad
        assert (letters[1].headers or {})["Tipstream-Error"] == "PayloadError: user_id: missing"
        assert await worker.stop() == 0


async def test_worker_applies_rewards_of_both_tables_side_by_side(tmp_path: Path, nats_server: NatsServer) -> None:
    """Each durable has its own position and counts; a subject without a handler is counted as unhandled."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(worker.nats, "feedback.tip.rewarded", map(rewarded, range(20)))
        await publish(worker.nats, "signals.task.synced", [synced(f"u{number}") for number in range(10)])
        await publish(worker.nats, "signals.of.nobody", [b"?"] * 3)
        await worker.wait_health(lambda health: health["nats"]["unhandled"] == 3, what="3 unhandled")
        await worker.wait_counts("tipstream-feedback", processed=20, errors=0)
        await worker.wait_counts("tipstream-signals", processed=10, errors=0)
        row = (await worker.get(f"/state/reward_days/{DAY}")).json["row"]
        assert row == {"count": 20, "reward_millionths": 10_000_000, "accepted": 20}  # 20 rewards of 0.5


async def test_worker_keeps_the_newest_of_duplicates_and_late_events(tmp_path: Path, nats_server: NatsServer) -> None:
    """An event that comes twice changes nothing but the place it came from; an older one never replaces a newer."""
    newest = synced("anna", day=9, task_count=9, event_id="e9")
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.task.synced", [newest, newest, synced("anna", day=3, task_count=3)])
        await worker.wait_counts("tipstream-signals", processed=3)
        shown = (await worker.get("/state/user_sync/anna")).json
        todo = {"synced_at": "2026-03-09T08:00:00Z", "task_count": 9, "cursor": None}
        assert shown["row"]["providers"] == {"todo": todo}
        assert (shown["row"]["last_event_id"], shown["stream_seq"]) == ("e9", 3)
