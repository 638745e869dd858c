"""``make chaos``: kills, cuts and freezes real processes at random while events flow, then counts.

Two workers share a STATE_DIR and reach a real nats-server through a proxy. The seed is printed, and gives the same
events and the same order of faults again; when each strikes is up to the machine.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent)]

import nats  # noqa: E402 (a client outside the application)
from chaos.events import FATAL, OUTPUT, SPREAD_SUBJECT, SPREAD_USER, SUBJECT, chaos_tables  # noqa: E402
from harness import NatsServer, TcpProxy  # noqa: E402
from nats.errors import Error as NatsError  # noqa: E402

from streams.audit import Report, audit_tables  # noqa: E402
from streams.broker import Broker  # noqa: E402
from streams.service import consumer_specs  # noqa: E402

USERS = 100
SPREAD_RATIO = 0.15
KINDS = {"ok": 0.93, "slow": 0.04, "flaky": 0.027, "poison": 0.0015, "bad": 0.0008, "hang": 0.0003, "kill": 0.0004}


@attrs.frozen(kw_only=True)
class Plan:
    """How much chaos: events, events a second, and the number of each fault."""

    seed: int
    events: int
    rate: float
    worker_kills: int
    cuts: int
    server_kills: int
    freezes: int


@attrs.define
class Sent:
    """What was sent: the kind of each event by its sequence, and what should be applied, by user."""

    kinds: dict[int, str] = attrs.field(factory=dict)
    wanted: dict[str, list[int]] = attrs.field(factory=lambda: collections.defaultdict(list))


class Workers:
    """Two workers; one that is gone is started again."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._log = (folder / "workers.log").open("ab")
        self._workers: list[subprocess.Popen[bytes]] = []
        self.deaths = 0

    def ensure(self) -> None:
        """Starts what is missing."""
        alive = [worker for worker in self._workers if worker.poll() is None]
        self.deaths += sum(worker.poll() == 9 for worker in self._workers)
        while len(alive) < 2:
            command = [sys.executable, str(HERE / "worker.py"), self._url, str(self._folder / "state")]
            env = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE.parent}"}
            alive.append(subprocess.Popen(command, stderr=self._log, env=env))
        self._workers = alive

    def kill_one(self, rng: random.Random) -> None:
        """Kills one of them without warning."""
        worker = rng.choice(self._workers)
        worker.kill()
        worker.wait()

    async def freeze_one(self, rng: random.Random) -> None:
        """Stops one of them for a while."""
        worker = rng.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.5, 2))
        worker.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kills both."""
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._log.close()


async def publish(url: str, plan: Plan, sent: Sent) -> None:
    """Publishes the events in order, each until it is confirmed."""
    rng = random.Random(plan.seed)
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore)
    stream = client.jetstream(timeout=2)
    places: dict[str, int] = collections.Counter()
    started = time.monotonic()
    for number in range(plan.events):
        is_spread = rng.random() < SPREAD_RATIO
        user = SPREAD_USER if is_spread else f"u{rng.randrange(USERS)}"
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        places[user] += 1
        event = {"user_id": user, "n": places[user], "kind": kind}
        subject = SPREAD_SUBJECT if is_spread else SUBJECT
        payload = b"{broken" if kind == "bad" else json.dumps(event).encode()
        while True:
            try:
                ack = await stream.publish(subject, payload, headers={"Nats-Msg-Id": f"{plan.seed}-{number}"})
                break
            except (NatsError, TimeoutError):
                await asyncio.sleep(0.1)
        sent.kinds[ack.seq] = kind
        if kind != "bad" and kind not in FATAL:
            sent.wanted[user].append(places[user])
        ahead_s = number / plan.rate - (time.monotonic() - started)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
    await client.close()


async def _ignore(error: Exception) -> None:
    """Faults are the point."""


async def break_things(plan: Plan, workers: Workers, proxy: TcpProxy, server: NatsServer) -> dict[str, int]:
    """Strikes in random order, evenly over the time that the events take."""
    rng = random.Random(plan.seed + 1)
    faults = ["kill"] * plan.worker_kills + ["cut"] * plan.cuts + ["server"] * plan.server_kills
    faults += ["freeze"] * plan.freezes
    rng.shuffle(faults)
    pause_s = plan.events / plan.rate / (len(faults) + 1)
    done: dict[str, int] = collections.Counter()
    for fault in faults:
        await asyncio.sleep(pause_s * rng.uniform(0.5, 1.5))
        workers.ensure()
        done[fault] += 1
        if fault == "kill":
            workers.kill_one(rng)
        elif fault == "cut":
            proxy.cut()
        elif fault == "server":
            server.kill9()
            await asyncio.sleep(rng.uniform(0, 0.3))
            server.start()
        else:
            await workers.freeze_one(rng)
        workers.ensure()
    return done


def read_store(path: Path) -> dict[str, Any]:
    """Reads what the workers have done so far from their database."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as store:
        rows = dict(store.execute("select key, row from rows where table_name = 'traces'").fetchall())
        totals = dict(store.execute("select table_name, row from rows where table_name like '%totals'").fetchall())
        tables = ("outbox", "parked", "started", "tried")
        waiting = [store.execute(f"select count(*) from {name}").fetchone()[0] for name in tables]
    return {
        "traces": {user: json.loads(row) for user, row in rows.items()},
        "total": sum(json.loads(row)["count"] for row in totals.values()),
        "waiting": waiting,
    }


async def read_stream(url: str, stream: str, subject: str) -> list[Any]:
    """Reads everything on a subject through a client of its own."""
    client = await nats.connect(url)
    found = []
    try:
        subscription = await client.jetstream().subscribe(subject, stream=stream, ordered_consumer=True)
        count = (await subscription.consumer_info()).num_pending
        count += subscription.delivered if count == 0 else 0
        while len(found) < count or await _more(subscription, found):
            if len(found) < count:
                found.append(await subscription.next_msg(timeout=5))
    finally:
        await client.close()
    return found


async def _more(subscription: Any, found: list[Any]) -> bool:
    """Takes one more message if there is one."""
    try:
        found.append(await subscription.next_msg(timeout=0.5))
    except (NatsError, TimeoutError):
        return False
    return True


async def settle(plan: Plan, sent: Sent, workers: Workers, path: Path, limit_s: float) -> dict[str, Any]:
    """Waits until everything that should be applied is, nothing waits any more, or the time is over."""
    wanted = sum(len(places) for places in sent.wanted.values())
    deadline = time.monotonic() + limit_s
    while True:
        workers.ensure()
        state = read_store(path)
        if (state["total"] >= wanted and not any(state["waiting"])) or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.3)


def judge(sent: Sent, state: dict[str, Any], outputs: list[Any], letters: list[Any]) -> list[str]:
    """Compares what came about with what was sent; one sentence for each difference."""
    problems = []
    for user, places in sent.wanted.items():
        if user == SPREAD_USER:  # without order there is no trace; its outputs and the total tell
            continue
        trace = state["traces"].get(user, {"count": 0, "last": 0, "inversions": 0})
        if (trace["count"], trace["last"], trace["inversions"]) != (len(places), places[-1], 0):
            problems.append(f"{user}: {len(places)} events up to {places[-1]}, applied as {trace}")
    wanted = {(user, place) for user, places in sent.wanted.items() for place in places}
    if state["total"] != len(wanted):
        problems.append(f"the total is {state['total']}, not {len(wanted)}")
    published = collections.Counter((event["user_id"], event["n"]) for event in outputs)
    twice = [key for key, count in published.items() if count > 1]
    if missing := wanted - published.keys():
        problems.append(f"{len(missing)} outputs are missing, such as {sorted(missing)[0]}")
    if twice or published.keys() - wanted:
        problems.append(f"{len(twice)} outputs came twice, {len(published.keys() - wanted)} were not wanted")
    dead = collections.Counter(letters)
    fatal = {seq for seq, kind in sent.kinds.items() if kind == "bad" or kind in FATAL}
    if dead.keys() != fatal or any(count != 1 for count in dead.values()):
        innocent = [(seq, sent.kinds.get(seq)) for seq in dead.keys() - fatal]
        problems.append(f"dead letters: {len(fatal - dead.keys())} missing, innocent {innocent}, {dead.total()} in all")
    if any(state["waiting"]):
        problems.append(f"outbox, parked, started, tried still hold {state['waiting']}")
    return problems


async def audited(url: str, path: Path) -> list[Report]:
    """What the application's own audit says, once the workers are gone."""
    async with Broker([url], name="chaos-audit") as broker:
        await broker.connected.wait()
        return await audit_tables(broker, path, consumer_specs(chaos_tables(), "chaos"))


def audit_problems(sent: Sent, reports: list[Report]) -> list[str]:
    """Where the audit finds something, or disagrees with what was sent."""
    problems = [f"audit of {report.durable}: {report}" for report in reports if not report.is_good]
    wanted = sum(len(places) for places in sent.wanted.values())
    fatal = sum(kind == "bad" or kind in FATAL for kind in sent.kinds.values())
    found = [sum(report.counts[name] for report in reports) for name in ("applied", "dead", "pending", "skipped")]
    if found != [wanted, fatal, 0, 0]:
        problems.append(f"audit counts {found}, not {[wanted, fatal, 0, 0]}")
    return problems


async def run(plan: Plan, folder: Path) -> list[str]:
    """One run; prints its figures and returns what is wrong."""
    (folder / "nats").mkdir(parents=True)
    (folder / "state").mkdir()
    with NatsServer(folder / "nats") as server:
        async with TcpProxy(server.port) as proxy:
            workers, sent, started = Workers(proxy.url, folder), Sent(), time.monotonic()
            try:
                workers.ensure()
                while not await _streams_are_there(server.url):
                    await asyncio.sleep(0.1)
                publishing = asyncio.create_task(publish(server.url, plan, sent))
                faults = await break_things(plan, workers, proxy, server)
                await publishing
                state = await settle(plan, sent, workers, folder / "state" / "state.db", 90 + plan.events / 1000)
            finally:
                workers.end()
            outputs = [json.loads(message.data) for message in await read_stream(server.url, "FEEDBACK", OUTPUT)]
            letters = [
                int(message.subject.rpartition(".")[2])
                for message in await read_stream(server.url, "DEAD_LETTERS", "deadletters.>")
            ]
            audit = await audited(server.url, folder / "state" / "state.db")
    problems = judge(sent, state, outputs, letters) + audit_problems(sent, audit)
    kinds = collections.Counter(sent.kinds.values())
    print(f"seed {plan.seed}: {len(sent.kinds):,} events {dict(kinds)} in {time.monotonic() - started:.0f} s")
    print(f"  faults {dict(faults)}, deaths by killing messages {workers.deaths}")
    inversions = sum(trace["inversions"] for trace in state["traces"].values())
    print(
        f"  applied {state['total']:,}, outputs {len(outputs):,}, dead letters {len(letters)}, inversions {inversions}"
    )
    for report in audit:
        print(f"  audit {report.durable}: {report.matched:,} matched, {report.counts}, gaps {report.gaps.count}")
    for problem in problems:
        print(f"  WRONG: {problem}")
    return problems


async def _streams_are_there(url: str) -> bool:
    client = await nats.connect(url)
    try:
        await client.jetstream().stream_info("DEAD_LETTERS")
    except NatsError:
        return False
    finally:
        await client.close()
    return True


def main() -> None:
    """Runs one plan; exit code 1 when anything was lost, doubled, out of order or wrongly given up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=600.0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--server-kills", type=int, default=30)
    parser.add_argument("--freezes", type=int, default=10)
    given = parser.parse_args()
    plan = Plan(
        seed=given.seed,
        events=given.events,
        rate=given.rate,
        worker_kills=given.kills,
        cuts=given.cuts,
        server_kills=given.server_kills,
        freezes=given.freezes,
    )
    print(f"seed {plan.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="tipstream-chaos-"))
    problems = asyncio.run(run(plan, folder))
    print(f"  logs and store in {folder}" if problems else "  nothing lost, nothing twice, nothing out of order")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
