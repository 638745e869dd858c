"""The commands in a shell, with a worker and without: what they print, and how they end."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from process_kit import DURABLES, PATIENCE_S, Worker, connect, publish, run_app, server_pid

from streams.presence import Presence

pytestmark = pytest.mark.timeout(120)  # up to eight commands a test, each of which starts anew

SUBJECT = "signals.task.synced"
GOOD = '{"user_id": "anna", "provider": "todo", "synced_at": "2026-03-01T08:00:00Z"}'


async def test_commands_work_without_a_worker(tmp_path: Path) -> None:
    """On an empty folder plan, apply, plan and send each run a server for their time; a worker then finds the event."""
    worker = Worker(tmp_path)
    with worker:
        for arguments, code in (
            (("streams", "plan"), 3),
            (("streams", "apply"), 0),
            (("streams", "plan"), 0),
            (("send", SUBJECT, GOOD), 0),
        ):
            result = await run_app(*arguments, worker=worker)
            assert (result.code, result.err) == (code, ""), arguments
            assert server_pid(worker.state_dir) is None, arguments
        await worker.consume()
        await worker.wait_counts("tipstream-signals", processed=1, pending=0, ack_pending=0)
        assert await worker.stop() == 0
        got = await run_app("state", "get", "user_sync", "anna", worker=worker)
        assert (got.code, got.json["stream_seq"]) == (0, 1)


async def test_commands_work_beside_a_worker(tmp_path: Path) -> None:
    """Commands use the worker's server and leave it running; what they send is handled at once."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        pid = server_pid(worker.state_dir)
        (tmp_path / "events").write_text(f"{GOOD}\n\n{{}}\n{GOOD.replace('anna', 'bert')}\n")
        sent = await run_app("send", SUBJECT, "--file", "events", worker=worker)
        assert (sent.code, sent.out) == (1, f"2 sent on {SUBJECT}, 1 refused\n")
        assert sent.err == "line 3: user_id: missing\n"
        await worker.wait_counts("tipstream-signals", processed=2, dead_lettered=0)
        plan = await run_app("streams", "plan", "--json", worker=worker)
        assert plan.code == 0 and {step["action"] for step in plan.json} == {"none"}
        listed = await run_app("state", "list", "--json", worker=worker)
        assert (listed.code, listed.json) == (0, [{"table": "user_sync", "rows": 2}])
        assert server_pid(worker.state_dir) == pid
        await worker.wait_ok()


async def test_commands_share_one_server(tmp_path: Path) -> None:
    """Commands that run at the same time on an empty folder share a server, which the last one ends."""
    with Worker(tmp_path) as worker:
        assert (await run_app("streams", "apply", worker=worker)).code == 0
        tasks = [asyncio.create_task(run_app("send", SUBJECT, GOOD, worker=worker)) for _ in range(3)]
        assert [(await task).code for task in tasks] == [0, 0, 0]
        assert server_pid(worker.state_dir) is None
        counted = await run_app("streams", "plan", worker=worker)
        assert counted.code == 0


async def test_send_raw_leaves_the_verdict_to_the_worker(tmp_path: Path, nats_server: NatsServer) -> None:
    """An invalid payload sent with --raw becomes a dead letter, which /health counts."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        sent = await run_app("send", SUBJECT, "{}", "--raw", "--json", worker=worker)
        assert (sent.code, sent.json["sent"], sent.json["refused"]) == (0, 1, [])
        await worker.wait_counts("tipstream-signals", dead_lettered=1)


async def test_plan_shows_what_an_administrator_changed(tmp_path: Path, nats_server: NatsServer) -> None:
    """A changed durable is named by plan and /health, applied by apply, and the worker goes on without a restart."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        client = await connect(nats_server.url)
        config = (await client.jetstream().consumer_info("SIGNALS", DURABLES[-1])).config
        config.ack_wait = 99
        await client.jetstream().add_consumer("SIGNALS", config)
        await client.close()
        health = await worker.wait_health(lambda health: "ack_wait" in str(health["reasons"]), what="the drift is said")
        assert health["status"] == "degraded"
        assert any("ack_wait" in reason and "streams plan" in reason for reason in health["reasons"])
        plan = await run_app("streams", "plan", worker=worker)
        assert plan.code == 3 and f"consumer\t{DURABLES[-1]}\tupdate\tack_wait: 99" in plan.out
        assert (await run_app("streams", "apply", worker=worker)).code == 0
        await worker.wait_ok()
        assert (await run_app("send", SUBJECT, GOOD, worker=worker)).code == 0
        await worker.wait_counts("tipstream-signals", processed=1)


async def test_commands_end_with_2_on_a_slip_in_a_setting(tmp_path: Path) -> None:
    """A name that is nearly one of ours stops worker and commands with one line that says which was meant."""
    expected = "error: NATS_URI: unknown setting, did you mean NATS_URL?\n"
    with Worker(tmp_path, NATS_URI="nats://localhost") as worker:
        assert await worker.spawn().ended() == 2
        assert (worker.noise, worker.logs, worker.output) == ([expected], [], "")
        result = await run_app("handlers", worker=worker)
        assert (result.code, result.out, result.err) == (2, "", expected)
        assert list(tmp_path.iterdir()) == []


async def test_settings_and_handlers_print_for_people_and_programs(tmp_path: Path) -> None:
    """Both need neither NATS nor a STATE_DIR, and hide what is secret."""
    with Worker(tmp_path, API_TOKENS="ui:0123456789abcdef", NATS_URL="nats://me:hidden@127.0.0.1:1") as worker:
        settings = await run_app("settings", worker=worker)
        assert settings.code == 0 and "STATE_DIR\t" in settings.out
        assert "0123456789abcdef" not in settings.out and "hidden" not in settings.out
        handlers = await run_app("handlers", "--json", worker=worker)
        assert handlers.code == 0
        assert [one["handler"] for one in handlers.json] == [
            *("feedback.tip_rewarded", "generations.generate_decided"),
            *("signals.task_synced", "signals.tip_feedback"),
        ]
        assert list(tmp_path.iterdir()) == []


async def test_worker_in_text_says_on_its_output_where_everything_is(tmp_path: Path) -> None:
    """For people the start is a few lines on standard output: addresses, the store, and each handler's subject."""
    with Worker(tmp_path, NATS_URL="", LOG_FORMAT="text") as worker:
        worker.spawn()
        await wait_until(lambda: "feedback.tip.rewarded" in worker.output, PATIENCE_S)
        lines = worker.output.splitlines()
        assert lines[0].startswith("tipstream ")
        assert lines[1].startswith("  http     http://127.0.0.1:")
        assert lines[2:4] == ["  nats     disabled (NATS_URL is empty)", f"  state    {tmp_path}/var/state.db"]
        assert lines[4] == "  handler  feedback.tip_rewarded  <-  feedback.tip.rewarded"
        assert await worker.stop() == 0
        assert worker.noise[-1].endswith("INFO  app.main  stopped\n")


async def test_positions_are_changed_only_when_no_worker_shares_the_folder(tmp_path: Path) -> None:
    """A worker that stands by serves shared tables: it has to be stopped as well. Adopting nothing says so."""
    with Worker(tmp_path) as worker:
        empty = await run_app("streams", "adopt", "--at", "start", "--yes", worker=worker)
        assert (empty.code, empty.out) == (0, "")
        named = await run_app("streams", "adopt", "tipstream-signals", "--at", "start", "--yes", worker=worker)
        assert (named.code, "durable tipstream-signals is not there" in named.err) == (1, True)
        unknown = await run_app("streams", "adopt", "other", "--at", "start", worker=worker)
        assert (unknown.code, "no durable 'other'" in unknown.err) == (2, True)
        presence = Presence(worker.state_dir)
        with presence.held():
            refused = await run_app("streams", "accept-loss", worker=worker)
        assert (refused.code, refused.err) == (1, "Error: 1 workers of STATE_DIR stand by: stop them first\n")


async def given_up(worker: Worker, *bad: bytes) -> None:
    """Starts the worker, and has it apply one event and make dead letters of these payloads."""
    await worker.consume()
    await publish(worker.nats, SUBJECT, [GOOD.encode(), *bad])
    await worker.wait_counts("tipstream-signals", processed=1, dead_lettered=len(bad))
    await worker.wait_idle()


async def test_audit_agrees_beside_a_worker(tmp_path: Path) -> None:
    """Each sequence has its class; a table or a range that there is not is named, and the ways out want a stop."""
    with Worker(tmp_path) as worker:
        await given_up(worker, b"{}")
        audit = await run_app("audit", "signals", worker=worker)
        assert (audit.code, audit.out) == (0, "tipstream-signals\t1 to 2\t2\t1\t1\t0\t0\t0\t0\n")
        unknown = await run_app("audit", "nothing", worker=worker)
        assert unknown.code == 2
        assert "no subject table 'nothing'; there is feedback, generations, signals" in unknown.err
        upside_down = await run_app("audit", "--from", "3", "--to", "2", worker=worker)
        assert (upside_down.code, "--to 2 is below --from 3" in upside_down.err) == (2, True)
        busy = await run_app("streams", "accept-loss", "--yes", worker=worker)
        assert (busy.code, busy.err) == (1, "Error: a worker owns STATE_DIR: stop it first\n")


async def test_loss_is_shown_before_it_is_accepted(tmp_path: Path) -> None:
    """Without a worker: where nothing was lost that is said; of a loss the sequences are, and the audit keeps them."""
    with Worker(tmp_path) as worker:
        await given_up(worker, b"{}")
        await worker.stop()
        result = await run_app("audit", "--json", worker=worker)
        assert (result.code, [table["matched"] for table in result.json]) == (0, [0, 0, 2])
        assert (await run_app("streams", "accept-loss", worker=worker)).out == "nothing was lost\n"
        adopted = await run_app("streams", "adopt", "--at", "floor", "--yes", worker=worker)
        assert (adopted.code, adopted.out.splitlines()[2]) == (0, "tipstream-signals: was ours already, after 2")
        with sqlite3.connect(worker.state_dir / "state.db") as store:
            store.execute("update floors set created = '2020-01-01T00:00:00Z' where durable = 'tipstream-signals'")
        refused = await run_app("streams", "accept-loss", worker=worker, stdin="n\n")
        assert (refused.code, "kept up to sequence 0, goes on after sequence 0" in refused.out) == (1, True)
        assert "lost sequences 1 to 2 (1 applied, 1 dead-lettered, 0 parked)" in refused.out
        accepted = await run_app("streams", "accept-loss", "--yes", worker=worker)
        assert (accepted.code, accepted.out.splitlines()[-1]) == (0, "accepted; start the worker")
        lost = await run_app("audit", "signals", worker=worker)
        assert (lost.code, "lost with the end of the stream: 1 to 2" in lost.out) == (3, True)


async def test_dead_letters_are_listed_and_shown(tmp_path: Path) -> None:
    """What was given up and why, with its payload as it came; one that there is not is named."""
    with Worker(tmp_path) as worker:
        await given_up(worker, b"{}", b"nonsense")
        listed = await run_app("deadletters", "list", "--json", worker=worker)
        assert [(letter["id"], letter["error"], letter["state"]) for letter in listed.json] == [
            ("signals.task_synced:2", "PayloadError: user_id: missing", "dead"),
            ("signals.task_synced:3", listed.json[1]["error"], "dead"),
        ]
        shown = await run_app("deadletters", "show", "signals.task_synced:2", "--json", worker=worker)
        assert (shown.json["payload"], shown.json["stream"], shown.json["failures"]) == ("{}", "SIGNALS", "1")
        assert shown.json["schema"].startswith("TaskSynced:")
        text = await run_app("deadletters", "show", "signals.task_synced:3", worker=worker)
        assert (text.code, text.out.splitlines()[-2:]) == (0, ["payload:", "    nonsense"])
        missing = await run_app("deadletters", "show", "signals.task_synced:1", worker=worker)
        assert (missing.code, "there is no dead letter 'signals.task_synced:1'" in missing.err) == (1, True)
        bad = await run_app("deadletters", "redrive", worker=worker)
        assert (bad.code, "give ids, or --handler, or --all" in bad.err) == (2, True)


async def test_dead_letters_are_redriven_and_dropped(tmp_path: Path) -> None:
    """Beside a worker another try fails again, and what was dropped is tried no more; the audit agrees."""
    with Worker(tmp_path) as worker:
        await given_up(worker, b"{}", b"nonsense")
        redriven = await run_app("deadletters", "redrive", "--all", "--wait", "30", worker=worker)
        assert redriven.code == 1
        assert redriven.out.splitlines()[0] == "signals.task_synced:2: still dead: PayloadError: user_id: missing"
        drop = ("deadletters", "drop", "signals.task_synced:3", "--reason", "no JSON", "--wait", "30")
        dropped = await run_app(*drop, worker=worker)
        assert (dropped.code, dropped.out) == (0, "signals.task_synced:3: dropped\n")
        again = await run_app("deadletters", "redrive", "signals.task_synced:3", worker=worker)
        assert (again.code, again.err) == (1, "Error: signals.task_synced:3 is dropped, not dead\n")
        everything = await run_app("deadletters", "list", "--state", "all", worker=worker)
        assert [line.split("\t")[4] for line in everything.out.splitlines()] == ["dead", "dropped"]
        audit = await run_app("audit", "signals", worker=worker)
        assert (audit.code, audit.out.split("\t")[2:5]) == (0, ["3", "1", "2"])


async def test_requests_of_dead_letters_wait_until_a_worker_runs(tmp_path: Path) -> None:
    """Without a worker they are kept, and the next one carries them out in order."""
    with Worker(tmp_path) as worker:
        await given_up(worker, b"{}")
        await worker.stop()
        waiting = await run_app(
            "deadletters", "redrive", "--handler", "signals.task_synced", "--wait", "0", worker=worker
        )
        assert (waiting.code, waiting.out) == (0, "signals.task_synced:2: waits until a worker runs\n")
        drop = ("deadletters", "drop", "signals.task_synced:2", "--reason", "no fields")
        waiting = await run_app(*drop, "--wait", "0.1", worker=worker)
        assert (waiting.code, waiting.out) == (1, "signals.task_synced:2: waits until a worker runs\n")
        await worker.consume()

        async def is_dropped() -> bool:
            found = await run_app("deadletters", "list", "--state", "dropped", "--json", worker=worker)
            facts = [(one["id"], one["redrives"], one["note"]) for one in found.json]
            return facts == [("signals.task_synced:2", 1, "no fields")]

        await wait_until(is_dropped, PATIENCE_S, what="both requests are carried out, in order")
