"""``state verify`` and ``state rebuild`` on a real worker's store and streams."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_kit import Worker, connect, publish, rewarded, run_app, synced

SYNCED = "signals.task.synced"
REWARDED = "feedback.tip.rewarded"

COUNTS = """
import attrs
from streams import Context, Policy, Reject, SubjectTable, Table

@attrs.frozen(kw_only=True)
class Counted:
    user_id: str
    n: int

@attrs.frozen(kw_only=True)
class Sum:
    total: int = 0
    seen: int = 0

SUMS = Table("sums", Sum)
SEEN = Table("seen", Sum)
subjects = SubjectTable("counts", tables=[SUMS])
others = SubjectTable("others", tables=[SEEN])

@subjects.on("signals.counted", policy=Policy(max_deliver=1))
async def counted(event: Counted, ctx: Context) -> None:
    if event.n < 0 and FAILING:
        raise Reject("below zero")
    row = ctx.get(SUMS, event.user_id) or Sum()
    seen = ctx.peek(SEEN, "all") or Sum()
    ctx.put(SUMS, event.user_id, Sum(total=row.total * 10 + event.n, seen=seen.total))

@others.on("signals.looked")
async def looked(event: Counted, ctx: Context) -> None:
    ctx.put(SEEN, event.user_id, Sum(total=event.n))
"""

STRICT = """
from counts import Counted, Sum
from streams import Context, Reject, SubjectTable, Table

STRICT = Table("strict", Sum)
strict = SubjectTable("strict", tables=[STRICT])

@strict.on("signals.counted")
async def taken(event: Counted, ctx: Context) -> None:
    if event.n < 0:
        raise Reject("below zero")
    ctx.put(STRICT, event.user_id, Sum(total=event.n))
"""


def write(folder: Path, *, failing: bool = False) -> None:
    """Writes the plugin, with a handler that takes numbers below zero or does not."""
    (folder / "counts.py").write_text(COUNTS.replace("FAILING", str(failing)))


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    """A worker with the plugin, after some events of all its tables."""
    write(tmp_path)
    with Worker(tmp_path, PLUGINS="counts") as worker:
        await worker.start()
        await worker.wait_ok()
        await publish(worker.nats, SYNCED, [synced(f"user{n % 3}", day=n + 1) for n in range(9)])
        await publish(worker.nats, REWARDED, [rewarded(n) for n in range(5)])
        await worker.wait_counts("tipstream-signals", processed=9)
        await worker.wait_rewards(5)
        yield worker


def spoil(worker: Worker, table: str, old: str, new: str) -> None:
    """Changes rows behind the worker's back."""
    with sqlite3.connect(worker.state_dir / "state.db") as connection:
        connection.execute("update rows set row = replace(row, ?, ?) where table_name = ?", (old, new, table))
    connection.close()


async def count(worker: Worker, *numbers: int) -> None:
    """Sends numbers of ana one after the other, and waits until all have their outcome."""
    before = (await worker.health())["nats"]["consumers"]["tipstream-counts"]
    done = before["processed"] + before["dead_lettered"]
    await publish(worker.nats, "signals.counted", [{"user_id": "ana", "n": n} for n in numbers])

    def is_done(health: dict[str, object]) -> bool:
        now = health["nats"]["consumers"]["tipstream-counts"]  # type: ignore[index]
        return bool(now["processed"] + now["dead_lettered"] == done + len(numbers))

    await worker.wait_health(is_done, what="all counted")


async def test_rows_of_a_running_worker_are_equal(worker: Worker) -> None:
    """Rows and counters are what the streams make of them; the range that was proved is told."""
    result = await run_app("state", "verify", worker=worker)
    assert (result.code, result.err) == (0, "")
    assert "user_sync\t3\t3\t0\tSIGNALS 1 to 9" in result.out.splitlines()
    assert "reward_days\t1\t1\t0\tFEEDBACK 1 to 5" in result.out.splitlines()


async def test_difference_is_named_and_ends_with_3(worker: Worker) -> None:
    """Each row that differs is told with its fields, as text and in JSON; other tables can be left out."""
    spoil(worker, "user_sync", '"stream_seq":9', '"stream_seq":8')
    result = await run_app("state", "verify", "user_sync", worker=worker)
    assert result.code == 3
    assert result.out.splitlines()[0] == "user_sync/user2  stream_seq: 8 stored, 9 rebuilt"
    [table] = (await run_app("state", "verify", "user_sync", "--json", worker=worker)).json
    assert (table["equal"], table["different"], table["messages"]) == (2, 1, 9)
    assert [
        (row["key"], row["stored"]["stream_seq"], row["rebuilt"]["stream_seq"]) for row in table["differences"]
    ] == [("user2", 8, 9)]
    assert (await run_app("state", "verify", "reward_days", worker=worker)).code == 0


async def test_stream_without_its_start_needs_a_snapshot(worker: Worker) -> None:
    """What the stream no longer has can't be proved; from a snapshot that has what it led to, the rest can."""
    taken = await run_app("state", "snapshot", worker=worker)
    assert taken.code == 0, taken.err
    await publish(worker.nats, SYNCED, [synced("user0", day=20)])
    await worker.wait_counts("tipstream-signals", processed=10)
    client = await connect(worker.nats)
    await client.jetstream().purge_stream("SIGNALS", seq=5)
    await client.close()
    proved = await run_app("state", "verify", "user_sync", worker=worker)
    assert proved.code == 0, proved.out
    assert "SIGNALS 10 to 10, on the snapshot of" in proved.out
    for option in (["--no-snapshot"], ["--before", "2026-01-01T00:00:00Z"]):
        result = await run_app("state", "verify", "user_sync", *option, worker=worker)
        assert result.code == 1
        assert "user_sync: can't be made again: 4 messages that were applied, from sequence 1 on" in result.out
    listed = (await run_app("state", "snapshots", "--json", worker=worker)).json
    assert [(one["reason"], one["positions"]["tipstream-signals"]) for one in listed] == [("asked", 9)]
    assert "asked" in (await run_app("state", "snapshots", worker=worker)).out


async def test_peeks_are_those_of_then(worker: Worker) -> None:
    """A handler that looked at a row which changed since decides as it did then."""
    for n in (1, 2):
        await publish(worker.nats, "signals.looked", [{"user_id": "all", "n": n}])
        await worker.wait_counts("tipstream-others", processed=n)
        await count(worker, n)
    assert (await worker.get("/state/sums/ana")).json["row"] == {"total": 12, "seen": 2}
    result = await run_app("state", "verify", "sums", worker=worker)
    assert (result.code, result.out) == (0, "sums\t1\t1\t0\tSIGNALS 1 to 13\n")


async def test_handler_that_fails_today_is_told(worker: Worker) -> None:
    """A message that was applied once and is refused today is a difference of its own, with its reason."""
    await count(worker, 1, -2)
    write(worker.folder, failing=True)
    result = await run_app("state", "verify", "sums", worker=worker)
    assert result.code == 3
    said = "sums: 1 messages were applied once and fail today, the first at SIGNALS:11 in counts.counted: Reject: below"
    assert said in result.out


async def test_redriven_message_runs_when_it_was_applied(worker: Worker) -> None:
    """A dead letter that was applied later took its effect later, and does so again."""
    await worker.stop()
    write(worker.folder, failing=True)
    await worker.start()
    await worker.wait_ok()
    await count(worker, 1, -2, 3)
    await worker.stop()
    write(worker.folder)
    await worker.start()
    await worker.wait_ok()
    redriven = await run_app("deadletters", "redrive", "--all", "--wait", "30", worker=worker)
    assert redriven.code == 0, redriven.err
    await worker.wait_counts("tipstream-counts", processed=1)
    assert (await worker.get("/state/sums/ana")).json["row"]["total"] == 128  # 1, then 13, then 130 - 2
    result = await run_app("state", "verify", "sums", worker=worker)
    assert (result.code, "1 messages were redriven" in result.out) == (0, True), result.out


async def test_message_without_an_outcome_in_one_table_is_left_out(worker: Worker) -> None:
    """What one table did not apply does not run again, even if a table of the same stream has come farther."""
    await count(worker, 1)
    await publish(worker.nats, "signals.counted", [{"user_id": "ana"}])  # it does not fit, and is a dead letter
    await publish(worker.nats, "signals.looked", [{"user_id": "all", "n": 1}])
    await worker.wait_counts("tipstream-others", processed=1)
    result = await run_app("state", "verify", "sums", "seen", worker=worker)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == ["sums\t1\t1\t0\tSIGNALS 1 to 10", "seen\t1\t1\t0\tSIGNALS 1 to 12"]


async def test_tables_whose_subjects_overlap_are_read_together(worker: Worker) -> None:
    """A pattern of one table may match a subject of another one; the server would refuse both in one filter."""
    await count(worker, 1)
    module = worker.folder / "counts.py"
    module.write_text(module.read_text().replace("signals.looked", "signals.*"))
    assert (await run_app("state", "verify", worker=worker)).code == 0
    shown = await run_app("replay", "--from", "10", "--json", worker=worker)
    assert [line.split('"handler":"')[1].split('"')[0] for line in shown.out.splitlines()] == [
        "counts.counted",
        "others.looked",
    ]


async def test_log_of_the_store_does_not_wait_for_a_verify(worker: Worker) -> None:
    """While messages run again, which may take long, the store's log can be written back and used anew."""
    await publish(worker.nats, "signals.looked", [{"user_id": "all", "n": 1}])
    await worker.wait_counts("tipstream-others", processed=1)
    module, found = worker.folder / "counts.py", worker.folder / "found"
    look = f"""
    import pathlib, sqlite3
    connection = sqlite3.connect({str(worker.state_dir / "state.db")!r}, timeout=1)
    busy = connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
    pathlib.Path({str(found)!r}).write_text(str(busy))
    connection.close()
"""
    module.write_text(module.read_text() + look)  # at the end of the last handler
    result = await run_app("state", "verify", "seen", worker=worker)
    assert (result.code, found.read_text()) == (0, "0"), result.out


async def test_handler_that_was_removed_is_told(worker: Worker) -> None:
    """Messages that no handler takes any more are still in the stream, and are not said to be missing."""
    await count(worker, 1)
    module = worker.folder / "counts.py"
    module.write_text(module.read_text().replace("signals.counted", "signals.other"))
    result = await run_app("state", "verify", "sums", worker=worker)
    assert result.code == 3
    assert "the first at SIGNALS:10 in counts.removed: no handler takes 'signals.counted' any more" in result.out


async def test_rebuild_keeps_what_was_there(worker: Worker) -> None:
    """Without a yes nothing changes; with one the rows are right again, and the former ones are in a set-aside file."""
    spoil(worker, "user_sync", '"stream_seq":9', '"stream_seq":8')
    await run_app("state", "snapshot", worker=worker)  # it has the wrong row
    await worker.stop()
    asked = await run_app("state", "rebuild", "--no-snapshot", worker=worker, stdin="n\n")
    assert (asked.code, "Aborted!" in asked.err) == (1, True)
    done = await run_app("state", "rebuild", "--no-snapshot", "--yes", worker=worker)
    assert done.code == 0, done.err
    assert "user_sync: replaced" in done.out
    assert (await run_app("state", "verify", worker=worker)).code == 0
    aside = sorted(path.name for path in (worker.state_dir / "snapshots").iterdir())
    assert [name.split("Z-")[1] for name in aside] == ["asked.db.set-aside", "before-rebuild.db.set-aside"]
    again = await run_app("state", "rebuild", "--yes", worker=worker)
    assert (again.code, "nothing to replace" in again.out) == (0, True)


async def test_nothing_is_made_from_what_a_rebuild_replaced(worker: Worker) -> None:
    """The copy of the rows before a rebuild is no base, even if the rebuild died before it was set aside."""
    spoil(worker, "user_sync", '"stream_seq":9', '"stream_seq":8')
    await worker.stop()
    assert (await run_app("state", "rebuild", "--yes", worker=worker)).code == 0
    [kept] = (worker.state_dir / "snapshots").iterdir()
    kept.rename(kept.with_suffix(""))
    spoil(worker, "user_sync", '"stream_seq":9', '"stream_seq":8')
    result = await run_app("state", "verify", "user_sync", worker=worker)
    assert (result.code, "SIGNALS 1 to 9" in result.out) == (3, True), result.out


async def test_bad_questions_have_clear_answers(worker: Worker) -> None:
    """An unknown table, an instant without a zone, and a folder without a store are named."""
    for arguments, said in (
        (("verify", "nosuch"), "no table 'nosuch'"),
        (("verify", "--before", "2026-01-01T00:00:00"), "expected an instant with its zone"),
        (("rebuild", "--before", "yesterday"), "expected an instant as 2026-03-01T09:00:00Z, got 'yesterday'"),
    ):
        if arguments[0] == "rebuild":
            await worker.stop()
        result = await run_app("state", *arguments, worker=worker)
        assert (result.code, said in result.err) == (2, True), result.err
    empty = Worker(worker.folder, PLUGINS="counts", STATE_DIR="elsewhere")
    with empty:
        result = await run_app("state", "verify", worker=empty)
    assert (result.code, "there is no store yet" in result.err) == (1, True)


async def test_tables_of_one_subject_are_proved_each_to_its_own_end(tmp_path: Path) -> None:
    """A table that did not take the last messages of another one's range is proved beside it, without them."""
    write(tmp_path)
    (tmp_path / "strict.py").write_text(STRICT)
    with Worker(tmp_path, PLUGINS="counts,strict") as worker:
        await worker.start()
        await worker.wait_ok()
        await count(worker, 1, 2, -3)
        await worker.wait_counts("tipstream-strict", processed=2, dead_lettered=1)
        proved = await run_app("state", "verify", "sums", "strict", worker=worker)
        assert (proved.code, proved.err) == (0, "")
        assert proved.out == "sums\t1\t1\t0\tSIGNALS 1 to 3\nstrict\t1\t1\t0\tSIGNALS 1 to 2\n"
