"""The streams side of one process: owner or standby, its workers, and what /health shows of them.

One process at a time owns STATE_DIR: whoever holds the lock on ``owner.lock`` fences the store, attaches the ordered
durables and runs their handlers. Others stand by, answer HTTP, and try the lock five times a second. The tables without
order are served by all of them; streams/crew.py runs either kind.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from models.errors import BrokerError, StoreError
from state.sqlite import SqliteStore
from state.store import store_path
from streams.broker import MIN_SERVER, Broker
from streams.crew import CANCEL_S, Crew, Ship
from streams.health import (
    ConsumerFacts,
    ConsumerHealth,
    Health,
    Mode,
    NatsHealth,
    Role,
    StateHealth,
    judge,
    judge_consumer,
)
from streams.isolation import Isolation, check_isolated
from streams.locks import LockFile
from streams.presence import Presence, age_s, touch
from streams.probe import Probe
from streams.redrive import redrive_spec
from streams.snapshotting import Snapshotting
from streams.subjects import Handler, SubjectTable
from streams.suspects import Gate
from streams.table_health import Limits
from streams.topology import STREAMS, ConsumerSpec, stream_of
from streams.watchdog import Watchdog
from streams.worker import TableWorker

log = logging.getLogger(__name__)

OWNER_LOCK = "owner.lock"
TAKEOVER_INTERVAL_S = 0.2
TOUCH_INTERVAL_S = 0.5
FROZEN_AFTER_S = 1.5


@attrs.frozen(kw_only=True)
class ServiceConfig:
    """What the operator set: see app/settings.py."""

    state_dir: Path
    durable_prefix: str
    limits: Limits
    replicas: int
    mode: Mode


def consumer_specs(tables: Sequence[SubjectTable], prefix: str) -> list[ConsumerSpec]:
    """The durables of the subject tables that have handlers.

    Raises:
        DeclarationError: a table's subjects lie in no stream, or in several; or a handler can't be isolated.
    """
    check_isolated(tables)
    specs = []
    for table in tables:
        subjects = tuple(handler.subject for handler in table.handlers)
        if subjects:
            specs.append(
                ConsumerSpec(
                    durable=_durable(prefix, table.name, table.version),
                    table=table.name,
                    stream=stream_of(subjects, STREAMS, f"subject table {table.name!r}").name,
                    subjects=subjects,
                    ack_wait_s=table.ack_wait_s,
                    former=_former_durables(prefix, table),
                    is_shared=table.order == "none",
                    is_push=table.delivery == "push",
                    start=table.start,
                )
            )
    return specs


def all_specs(tables: Sequence[SubjectTable], prefix: str) -> list[ConsumerSpec]:
    """The durables of the subject tables, and those of the requests to redrive."""
    specs = consumer_specs(tables, prefix)
    return specs + [redrive_spec(spec) for spec in specs]


def _durable(prefix: str, name: str, version: int) -> str:
    return f"{prefix}-{name}" + (f"-v{version}" if version > 1 else "")


def _former_durables(prefix: str, table: SubjectTable) -> tuple[str, ...]:
    """Where the position may lie: earlier versions, then the same versions of the former name; the newest first."""
    names = [table.name] + ([table.renamed_from] if table.renamed_from else [])
    found = [_durable(prefix, name, version) for name in names for version in range(table.version, 0, -1)]
    return tuple(found[1:])


class StreamService:
    """Runs the subject tables of an app on one broker.

    Args:
        observe_commit: told the outcomes and the seconds of every commit.
    """

    def __init__(
        self,
        config: ServiceConfig,
        tables: Sequence[SubjectTable],
        broker: Broker,
        *,
        observe_commit: Callable[[int, float], None],
    ) -> None:
        self._config = config
        self._tables = {table.name: table for table in tables}
        self._specs = consumer_specs(tables, config.durable_prefix)
        self._broker = broker
        self._observe_commit = observe_commit
        self._probe = Probe(broker, self._specs, STREAMS, replicas=config.replicas)
        self._presence = Presence(config.state_dir)
        self._shared: Crew | None = None
        self._owned: Crew | None = None
        self._lock: LockFile | None = None
        self._owner_since: float | None = None
        versions = {table.name: table.version for table in tables}
        self._snapshotting = Snapshotting(config.state_dir, versions)
        self._watchdog = Watchdog(self._handler_of)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Has ``run`` finish what is in hand and return."""
        self._stop.set()

    async def run(self, shutdown_s: float) -> None:
        """Stands by, then owns, until ``stop``; then drains for at most ``shutdown_s`` seconds.

        The tables that all processes share are served all the while.

        Raises:
            StoreError: the store can't be opened, or another process has taken it over.
            BrokerError: the connection closed for good.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._watchdog.watching())
            stack.enter_context(self._presence.held())
            lock = self._lock = LockFile.open(self._config.state_dir / OWNER_LOCK)
            stack.callback(lock.close)
            executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="commit")
            stack.callback(executor.shutdown)
            stack.push_async_callback(_cancelled, asyncio.create_task(self._probe.run(), name="probe"))
            ship = self._ship(executor, await stack.enter_async_context(Isolation()))
            duties = [asyncio.create_task(self._take_turns(lock, ship, shutdown_s), name="owner")]
            shared = [spec for spec in self._specs if spec.is_shared]
            if shared:
                duties.append(asyncio.create_task(self._share(ship, shared, shutdown_s), name="shared"))
            await _all_or_first_failure(duties)

    def _ship(self, executor: concurrent.futures.Executor, isolation: Isolation) -> Ship:
        return Ship(
            broker=self._broker,
            presence=self._presence,
            limits=self._config.limits,
            replicas=self._config.replicas,
            executor=executor,
            gate=Gate(),
            isolation=isolation,
            observe_commit=self._observe_commit,
        )

    async def _take_turns(self, lock: LockFile, ship: Ship, shutdown_s: float) -> None:
        """Waits for the lock, then owns."""
        is_standby = False
        while not self._stop.is_set():
            if lock.try_exclusive():
                async with self._moving(lock):
                    await self._own(ship, shutdown_s)
                return
            if not is_standby:
                is_standby = True
                log.info("standing by: another worker owns STATE_DIR")
            if self._broker.closed.is_set():
                raise BrokerError(f"the connection to NATS closed for good ({self._broker.error})")
            await _wait(self._stop, TAKEOVER_INTERVAL_S)

    @contextlib.asynccontextmanager
    async def _moving(self, lock: LockFile) -> AsyncIterator[None]:
        """Sets the lock's time again and again, so that others see that the owner moves."""

        async def move() -> None:
            while True:
                touch(lock)
                await asyncio.sleep(TOUCH_INTERVAL_S)

        moving = asyncio.create_task(move(), name="owner-moves")
        try:
            yield
        finally:
            moving.cancel()

    async def _own(self, ship: Ship, shutdown_s: float) -> None:
        store = await self._opened(is_owner=True)
        try:
            self._claim(store)
            for spec in self._specs:
                self._move(store, spec)
                self._move(store, redrive_spec(spec))
            self._owner_since = time.monotonic()
            log.info("owner of the store", extra={"fields": {"store": store.store_id, "epoch": store.epoch}})
            if self._shared:
                self._shared.own()
            owned = [spec for spec in self._specs if not spec.is_shared]
            timers = [h.timer for table in self._tables.values() for h in table.handlers if h.timer]
            self._owned = Crew(ship, store, owned, self._tables, timers=timers)
            async with contextlib.AsyncExitStack() as stack:
                keeping = asyncio.create_task(self._snapshotting.run(), name="snapshots")
                stack.push_async_callback(_cancelled, keeping)
                await self._owned.run(self._stop, shutdown_s)
        finally:
            store.close()

    def _claim(self, store: SqliteStore) -> None:
        try:
            store.claim(self._config.durable_prefix)
        except StoreError:
            if not store.was_unclean:  # nothing was begun
                store.end_clean()
            raise

    @staticmethod
    def _move(store: SqliteStore, spec: ConsumerSpec) -> None:
        """Has a durable go on where an earlier version, or name, of its table was."""
        for former in spec.former:
            if store.move(former, spec.durable):
                log.info("position moved", extra={"fields": {"durable": spec.durable, "from": former}})
                return

    async def _share(self, ship: Ship, specs: Sequence[ConsumerSpec], shutdown_s: float) -> None:
        store = await self._opened(is_owner=False)
        try:
            self._shared = Crew(ship, store, specs, self._tables)
            if self._owner_since is not None:
                self._shared.own()
            await self._shared.run(self._stop, shutdown_s)
        finally:
            store.close()

    async def _opened(self, *, is_owner: bool) -> SqliteStore:
        """Opens the store; a cancellation waits for the end of that, for it fences every owner that came before."""

        def open_store() -> SqliteStore:
            path, alive = store_path(self._config.state_dir), self._presence.alive()
            return SqliteStore(path, runner=self._presence.name, alive=alive, is_owner=is_owner)

        opening = asyncio.ensure_future(asyncio.to_thread(open_store))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait((opening,))
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            raise

    @property
    def _crews(self) -> list[Crew]:
        return [crew for crew in (self._owned, self._shared) if crew]

    def _worker(self, durable: str) -> TableWorker | None:
        return next((crew.workers[durable] for crew in self._crews if durable in crew.workers), None)

    def _handler_of(self, task: "asyncio.Task[Any] | None") -> Handler | None:
        """Finds the handler that a task runs; called in the watchdog's thread, hence the copies."""
        for worker in [worker for crew in self._crews for worker in list(crew.workers.values())]:
            if name := worker.slots.handler_of(task):
                return next((handler for handler in worker.table.handlers if handler.name == name), None)
        return None

    @property
    def specs(self) -> Sequence[ConsumerSpec]:
        """The durables that it serves."""
        return self._specs

    def unfinished(self, *, with_parked: bool = True) -> list[str]:
        """What is under way in this process, in words; nothing when it only waits for messages.

        Args:
            with_parked: count messages that wait for a later run, too.
        """
        if self._owned is None:
            return ["not started yet"]
        found = []
        for spec in self._specs:
            worker = self._worker(spec.durable)
            problems = worker.health.unfinished(with_parked=with_parked) if worker else ["not attached"]
            found += [f"{spec.durable}: {problem}" for problem in problems]
        return found + [problem for crew in self._crews for problem in crew.unfinished()]

    def health(self) -> Health:
        """What /health shows, as of now."""
        connected = self._broker.is_connected
        rtt_s = self._broker.rtt_s
        nats = NatsHealth(
            enabled=True,
            mode=self._config.mode,
            connected=connected,
            rtt_ms=round(rtt_s * 1000, 3) if rtt_s is not None else None,
            unhandled=self._probe.unhandled,
            consumers={spec.durable: self._consumer_health(spec) for spec in self._specs},
        )
        return judge(nats, self._state_health(), error=self._broker.error, extra=self._other_reasons())

    def _state_health(self) -> StateHealth:
        for crew in self._crews:
            if crew.committer.failure:
                return StateHealth(status="down", reason=crew.committer.failure)
        return StateHealth()

    def _other_reasons(self) -> tuple[str, ...]:
        reasons = [
            f"stream {name} differs from its declaration ({'; '.join(drift)}): see 'streams plan'"
            for name, drift in self._probe.stream_drift.items()
            if drift
        ]
        for crew in self._crews:
            if crew.provision_error:
                reasons.append(crew.provision_error)
            reasons += [
                f"dead letters of {redriver.spec.table} can't be redriven: {why}"
                for redriver in crew.redrivers.values()
                if (why := redriver.trouble)
            ]
            reasons += [f"timer {name} can't fire: {why}" for name, why in crew.timers.troubles().items()]
            if crew.outbox.error and crew.outbox.unsent_count:
                reasons.append(f"{crew.outbox.unsent_count} events wait to be published ({crew.outbox.error})")
        if standstill := self._watchdog.trouble(time.monotonic()):
            reasons.append(standstill)
        if self._snapshotting.trouble:
            reasons.append(f"no snapshot of the store could be taken: {self._snapshotting.trouble}")
        if self._broker.permission_error:
            reasons.append(f"NATS refuses what this worker needs: {self._broker.permission_error}")
        if self._broker.is_connected and self._broker.server_version < MIN_SERVER:
            found, oldest = (".".join(map(str, version)) for version in (self._broker.server_version, MIN_SERVER))
            reasons.append(f"nats-server is {found}: order through a fault is promised from {oldest} on")
        return tuple(reasons)

    def _frozen_owner(self) -> str | None:
        """Says that the owner, another process, does not move; None when it does, or when this is the owner."""
        if self._lock is None or self._owner_since is not None or (age := age_s(self._lock)) < FROZEN_AFTER_S:
            return None
        return f"the owner of STATE_DIR has not moved for {age:.0f} s and holds its lock: end that process"

    def _consumer_health(self, spec: ConsumerSpec) -> ConsumerHealth:
        sight = self._probe.sights[spec.durable]
        info = sight.info or {}
        seen = ConsumerHealth(
            pending=info.get("num_pending", 0),
            ack_pending=info.get("num_ack_pending", 0),
            redelivered=info.get("num_redelivered", 0),
        )
        is_missing = sight.info is None and sight.at is not None
        worker = self._worker(spec.durable)
        if worker is None:
            frozen = None if spec.is_shared else self._frozen_owner()
            facts = ConsumerFacts(info_age_s=sight.age_s, is_missing=is_missing, detached=frozen)
            return self._describe_without_worker(seen, facts, is_shared=spec.is_shared)
        running, idle_s = worker.health.running(), worker.health.idle_s(sight.quiet_at)
        unsent_count = sum(crew.outbox.unsent_count for crew in self._crews)
        drift = sight.drift + tuple(f"no handler for {subject!r}" for subject in sorted(worker.orphans))
        facts = ConsumerFacts(
            info_age_s=sight.age_s,
            is_missing=is_missing and 0 < worker.consumer.attached_at < (sight.at or 0.0),
            refused=worker.consumer.reason if worker.consumer.is_refused else None,
            detached=worker.consumer.detached_reason,
            intake_stopped=worker.health.intake_stopped,
            unfinished=seen.pending + max(worker.health.held_count, seen.ack_pending - unsent_count),
            paused_until=info.get("config", {}).get("pause_until") if info.get("paused") else None,
            idle_s=idle_s,
            running_count=running.count,
            overdue=running.overdue,
            drift=drift,
        )
        status, reason = judge_consumer(facts)
        role: Role = "shared" if spec.is_shared else "owner"
        return attrs.evolve(worker.health.describe(seen, idle_s), role=role, status=status, reason=reason)

    def _describe_without_worker(
        self, seen: ConsumerHealth, facts: ConsumerFacts, *, is_shared: bool
    ) -> ConsumerHealth:
        """What is known of a durable that this process does not serve: it stands by, or has just become the owner."""
        if self._owner_since is None and not is_shared:
            status, reason = judge_consumer(facts)
            return attrs.evolve(seen, role="standby", status=status, reason=reason)
        return attrs.evolve(seen, role="shared" if is_shared else "owner", status="down", reason="not attached yet")


async def _all_or_first_failure(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Waits until all have ended; when one fails, ends the others and passes its error on."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=2 * CANCEL_S)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
