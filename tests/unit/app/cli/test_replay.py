"""``replay`` on a real stream and a store as a worker leaves it: what is chosen, what is shown, what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import click.testing
import pytest
from harness import NatsServer, free_port
from process_kit import invoke, rewarded, synced
from service_kit import api, client
from store_kit import commit, dump
from streams_kit import DURABLE, make_change, make_floor

from app.cli.replay import addresses
from models.errors import AppError
from state.sqlite import SqliteStore
from streams.broker import Broker

SYNCED, REPLAYED = "signals.task.synced", ("anna", "bert", "anna", "carl", "anna")
BAD = b'{"user_id": "dora"}'


@attrs.frozen
class Bench:
    """A server with streams, and a STATE_DIR."""

    url: str
    folder: Path
    times: dict[int, str]

    async def run(self, *arguments: str, **settings: str) -> click.testing.Result:
        """Runs the command in a thread of its own, as it brings its event loop along."""
        env = {"NATS_URL": self.url, "STATE_DIR": str(self.folder)} | settings
        return await asyncio.to_thread(lambda: invoke("replay", *arguments, **env))

    async def lines(self, *arguments: str) -> list[Any]:
        """What it prints with --json."""
        result = await self.run("--json", *arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    async def seqs(self, *arguments: str) -> list[int]:
        """The sequences that are shown."""
        return [one["seq"] for one in await self.lines(*arguments)]


@pytest.fixture
async def bench(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """Five synced events and one that does not decode; a worker applied 1 to 4, and gave up 5."""
    async with client(nats_server.url) as nc:
        js = nc.jetstream()
        await js.add_stream(name="SIGNALS", subjects=["signals.>"])
        events = [json.dumps(synced(user, day=day)).encode() for day, user in enumerate(REPLAYED, 1)]
        for payload in [*events, BAD]:
            await js.publish(SYNCED, payload)
        created = (await api(nc, "STREAM.INFO.SIGNALS"))["created"]
        times = {seq: (await api(nc, "STREAM.MSG.GET.SIGNALS", {"seq": seq}))["message"]["time"] for seq in range(1, 7)}
    store = SqliteStore(tmp_path / "state.db")
    changes = [make_change(seq, durable=DURABLE) for seq in (1, 2, 3, 4)]
    commit(store, *changes, floor=attrs.evolve(make_floor(4), created=created))
    store.close()
    yield Bench(nats_server.url, tmp_path, times)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 3, 4, 5, 6]),
        (("--from", "3", "--to", "4"), [3, 4]),
        (("--from", "9"), []),
        (("--from", "4", "--to", "2"), []),
        (("--last", "1h"), [1, 2, 3, 4, 5, 6]),
        (("--last", "0s"), []),
        (("--last", "36500d", "--limit", "1"), [1]),
        (("--user", "anna"), [1, 3, 5]),
        (("--user", "nobody"), []),
        (("--handler", "signals.task_synced", "--limit", "2"), [1, 2]),
        (("--handler", "signals.tip_feedback"), []),
        (("signals.task.*",), [1, 2, 3, 4, 5, 6]),
        (("signals.tip.feedback",), []),
        (("--where", "event.synced_at < timestamp('2026-03-03T00:00:00Z')"), [1, 2]),
        (("--where", "verdict == 'dead'"), [6]),
        (("--to", "1000-01-01T00:00:00Z"), []),
        (("--from", "2300-01-01T00:00:00Z"), []),
    ],
    ids=str,
)
async def test_replay_shows_what_is_asked_for(bench: Bench, arguments: tuple[str, ...], expected: list[int]) -> None:
    """Each option chooses its messages, and they come in order."""
    assert await bench.seqs(*arguments) == expected


async def test_replay_takes_instants(bench: Bench) -> None:
    """From an instant on its message is included, up to one it is not."""
    assert await bench.seqs("--from", bench.times[3]) == [3, 4, 5, 6]
    assert await bench.seqs("--from", bench.times[2], "--to", bench.times[4]) == [2, 3]


async def test_replay_begins_with_the_rows_of_before(bench: Bench) -> None:
    """The rows are made again up to the first message asked for; with --empty they are not."""
    [made] = await bench.lines("--from", "3", "--limit", "1")
    [empty] = await bench.lines("--from", "3", "--limit", "1", "--empty")
    assert made["writes"][0]["before"]["providers"]["todo"]["synced_at"].startswith("2026-03-01")
    assert empty["writes"][0]["before"] is None
    assert made["writes"][0]["after"]["stream_seq"] == 3


async def test_replay_tells_verdict_and_live_outcome(bench: Bench) -> None:
    """What the handler says today stands beside what became of the message in the worker."""
    found = await bench.lines("--from", "4")
    assert [(one["verdict"], one["live"]) for one in found] == [
        ("applied", "applied"),
        ("applied", "pending"),
        ("dead", "pending"),
    ]
    assert "missing" in found[2]["error"] and found[2]["key"] == ""


async def test_replay_prints_for_people(bench: Bench) -> None:
    """Without --json each message is a few lines, and the summary is the last one."""
    result = await bench.run("--from", "5")
    assert result.exit_code == 0
    assert "signals.task_synced  anna  applied  (live: pending)" in result.stdout
    assert "synced_at: " in result.stdout and " -> " in result.stdout
    assert result.stdout.splitlines()[-1] == "2 messages: 1 applied, 1 dead; 1 writes, 0 publishes"
    assert result.stderr == ""


async def test_replay_counts_what_where_can_not_answer(bench: Bench) -> None:
    """Messages without the field are not shown, and the summary says how many and why."""
    result = await bench.run("--where", "event.provider == 'todo'", "--json")
    assert len(result.stdout.splitlines()) == 5
    expected = "--where could not be answered for 1 messages, which are not shown (KeyError: 'provider')"
    assert result.stderr.splitlines()[-1] == expected


async def test_replay_says_what_the_rows_lack(bench: Bench) -> None:
    """When messages of before are gone from the stream, the summary says that the rows are incomplete."""
    async with client(bench.url) as nc:
        await nc.jetstream().purge_stream("SIGNALS", seq=3)
    result = await bench.run("--from", "4", "--json")
    assert result.exit_code == 0
    assert "signals: the rows before the first message are incomplete: 2 messages" in result.stderr
    assert "incomplete" not in (await bench.run("--from", "4", "--json", "--empty")).stderr


@pytest.mark.parametrize("options", [(), ("--limit", "1")], ids=["all", "limited"])
async def test_replay_says_that_a_message_was_deleted(bench: Bench, options: tuple[str, ...]) -> None:
    """One message amid those of before that is gone from the stream is said, too, also when the end is not reached."""
    async with client(bench.url) as nc:
        await nc.jetstream().delete_msg("SIGNALS", 2)
    result = await bench.run("--from", "4", "--json", *options)
    expected = "incomplete: 1 messages that were applied are no longer in stream SIGNALS"
    assert result.exit_code == 0 and expected in result.stderr


async def test_replay_changes_nothing(bench: Bench) -> None:
    """The store has the same rows, and the server the same streams and no consumer, after a replay."""
    before = dump(bench.folder / "state.db")
    async with client(bench.url) as nc:
        stream = await api(nc, "STREAM.INFO.SIGNALS")
        assert await bench.seqs() == [1, 2, 3, 4, 5, 6]
        after = await api(nc, "STREAM.INFO.SIGNALS")
    assert dump(bench.folder / "state.db") == before
    assert after["state"] == stream["state"]


async def test_replay_needs_no_store(bench: Bench) -> None:
    """Before a worker's first start, all messages play on empty rows, and no store is made."""
    (bench.folder / "state.db").unlink()
    found = await bench.lines()
    assert [one["live"] for one in found] == ["pending"] * 6
    assert not (bench.folder / "state.db").exists()


async def test_replay_goes_through_all_streams(bench: Bench) -> None:
    """Streams come one after the other, by name."""
    async with client(bench.url) as nc:
        await nc.jetstream().add_stream(name="FEEDBACK", subjects=["feedback.>"])
        await nc.jetstream().publish("feedback.tip.rewarded", json.dumps(rewarded(1)).encode())
    found = await bench.lines()
    assert [(one["stream"], one["seq"]) for one in found] == [("FEEDBACK", 1)] + [("SIGNALS", n) for n in range(1, 7)]
    assert found[0]["adds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--last", "1h", "--from", "1"), "--last and --from can't be combined"),
        (("--last", "0s", "--from", "1"), "--last and --from can't be combined"),
        (("--last", "soon"), "expected a time span as 90s, 15m, 2h or 7d, got 'soon'"),
        (("--from", "noon"), "expected a sequence from 1 on, or an instant as 2026-03-01T09:00:00Z, got 'noon'"),
        (("--limit", "0"), "0 is not in the range x>=1"),
        (("--handler", "signals.other"), "--handler: no handler 'signals.other'; there is feedback.tip_rewarded"),
        (("signals.other",), "SUBJECT: no handler takes 'signals.other'; there is feedback.tip.rewarded"),
        (("--where", "seq >"), "no expression: "),
        (("--where", ""), "no expression: "),
        (("--where", "evnt.n == 1"), "Undefined variable or function: 'evnt'; there is event"),
    ],
    ids=str,
)
def test_replay_refuses_bad_input(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """A slip is exit code 2 with one line that says what is accepted, before anything is connected to."""
    result = invoke("replay", *arguments, STATE_DIR=str(tmp_path), NATS_URL=f"nats://127.0.0.1:{free_port()}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("where", ["seq", "seq < 3 || evnt.n == 1"], ids=["no condition", "unknown name"])
async def test_replay_ends_on_a_condition_that_is_none(bench: Bench, where: str) -> None:
    """What shows only when a message is looked at ends the replay with one line, too."""
    result = await bench.run("--where", where, "--json")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: Invalid value for --where: ")


def test_replay_refuses_a_subject_that_is_none(tmp_path: Path) -> None:
    """A pattern that NATS does not know is an error of ours, which the group prints."""
    result = invoke("replay", "signals..x", STATE_DIR=str(tmp_path))
    assert isinstance(result.exception, AppError) and "SUBJECT" in str(result.exception)


async def test_replay_says_that_there_is_no_stream(nats_server: NatsServer, tmp_path: Path) -> None:
    """On a server that no worker has seen there is nothing to play."""
    result = await Bench(nats_server.url, tmp_path, {}).run()
    assert isinstance(result.exception, AppError)
    assert str(result.exception) == "there is no stream yet: a worker makes them"


async def test_addresses_are_names_and_numbers(nats_server: NatsServer) -> None:
    """The server may be reached by the name in its URL and by what that resolves to; no other port is named."""
    async with Broker(
        [f"nats://localhost:{nats_server.port}", "127.0.0.1", "nats://none.invalid:1"], name="t"
    ) as broker:
        found = addresses(broker)
    assert {("localhost", nats_server.port), ("127.0.0.1", nats_server.port)} <= found
    assert {("127.0.0.1", 4222), ("none.invalid", 1)} <= found
