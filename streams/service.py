"""The streams side of one process: owner or standby, its workers, and what /health shows of them.

One process at a time owns STATE_DIR: whoever holds the lock on ``owner.lock`` opens the store, attaches the durables
and runs the handlers. Others stand by, answer HTTP, and try the lock five times a second.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from models.errors import ApiError, BrokerError, BrokerUnavailable, StoreFenced
from state.sqlite import SqliteStore
from state.store import store_path
from streams.broker import Broker
from streams.commit import Committer
from streams.health import (
    ConsumerFacts,
    ConsumerHealth,
    Health,
    Mode,
    NatsHealth,
    StateHealth,
    judge,
    judge_consumer,
)
from streams.locks import LockFile
from streams.outbox import Outbox
from streams.outcomes import Services
from streams.probe import Probe
from streams.provision import ensure_streams
from streams.subjects import SubjectTable
from streams.suspects import Gate
from streams.topology import STREAMS, ConsumerSpec, is_publishable, stream_of
from streams.worker import Limits, TableWorker

log = logging.getLogger(__name__)

OWNER_LOCK = "owner.lock"
TAKEOVER_INTERVAL_S = 0.2
CANCEL_S = 2.0
START_GRACE_S = 2.0


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
        DeclarationError: a table's subjects lie in no stream, or in several.
    """
    specs = []
    for table in tables:
        subjects = tuple(handler.subject for handler in table.handlers)
        if subjects:
            specs.append(
                ConsumerSpec(
                    durable=f"{prefix}-{table.name}",
                    table=table.name,
                    stream=stream_of(subjects, STREAMS, f"subject table {table.name!r}").name,
                    subjects=subjects,
                    ack_wait_s=table.ack_wait_s,
                )
            )
    return specs


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
        self._workers: dict[str, TableWorker] = {}
        self._committer: Committer | None = None
        self._outbox: Outbox | None = None
        self._owner_since: float | None = None
        self._provision_error: str | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Has ``run`` finish what is in hand and return."""
        self._stop.set()

    async def run(self, shutdown_s: float) -> None:
        """Stands by, then owns, until ``stop``; then drains for at most ``shutdown_s`` seconds.

        Raises:
            StoreError: the store can't be opened, or another process has taken it over.
            BrokerError: the connection closed for good.
        """
        probe = asyncio.create_task(self._probe.run(), name="probe")
        lock = LockFile.open(self._config.state_dir / OWNER_LOCK)
        is_standby = False
        try:
            while not self._stop.is_set():
                if lock.try_exclusive():
                    await self._own(shutdown_s)
                    return
                if not is_standby:
                    is_standby = True
                    log.info("standing by: another worker owns STATE_DIR")
                await _wait(self._stop, TAKEOVER_INTERVAL_S)
        finally:
            lock.close()
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _own(self, shutdown_s: float) -> None:
        store = await _opened(store_path(self._config.state_dir))
        store.claim(self._config.durable_prefix)
        self._owner_since = time.monotonic()
        log.info("owner of the store", extra={"fields": {"store": store.store_id, "epoch": store.epoch}})
        committer = Committer(store, observe=self._observe_commit)
        outbox = Outbox(self._broker, forget=committer.forget_sent)
        outbox.load(store.fetch_outbox())
        self._committer, self._outbox = committer, outbox
        background = [
            asyncio.create_task(committer.run(), name="committer"),
            asyncio.create_task(self._work(store, committer, outbox), name="workers"),
            asyncio.create_task(outbox.run(), name="outbox"),
        ]
        ends = [
            asyncio.create_task(self._stop.wait()),
            asyncio.create_task(committer.fenced.wait()),
            asyncio.create_task(self._broker.closed.wait()),
        ]
        is_clean = False
        try:
            done, _ = await asyncio.wait([*background, *ends], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if committer.fenced.is_set():
                raise StoreFenced(store.path, "another process has taken this store over")
            if self._broker.closed.is_set():
                raise BrokerError(f"the connection to NATS closed for good ({self._broker.error})")
            await self._drain(committer, outbox, shutdown_s)
            is_clean = True
        finally:
            for task in [*background, *ends]:
                task.cancel()
            await asyncio.wait([*background, *ends], timeout=CANCEL_S)
            committer.close()
            if is_clean and committer.failure is None:
                store.end_clean()
            store.close()

    async def _work(self, store: SqliteStore, committer: Committer, outbox: Outbox) -> None:
        """Creates what is missing on the server, then runs every table's worker."""
        await self._provision(store)
        services = Services(
            broker=self._broker,
            store=store,
            store_id=store.store_id,
            committer=committer,
            outbox=outbox,
            publishable=lambda subject: is_publishable(subject, STREAMS),
            gate=Gate(),
            rng=random.Random(),
        )
        for spec in self._specs:
            self._workers[spec.durable] = TableWorker(self._tables[spec.table], spec, services, self._config.limits)
        async with asyncio.TaskGroup() as group:
            for worker in self._workers.values():
                group.create_task(worker.run(), name=worker.spec.durable)

    async def _provision(self, store: SqliteStore) -> None:
        known = {floor.stream for spec in self._specs if (floor := store.load(spec.durable).floor)}
        delay_s = 0.1
        while True:
            await self._broker.connected.wait()
            try:
                await ensure_streams(self._broker, STREAMS, replicas=self._config.replicas, known=known)
            except (BrokerUnavailable, ApiError) as error:
                self._provision_error = f"streams can't be created: {error}"
                log.error("streams can't be created", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(delay_s)
                delay_s = min(2.0, delay_s * 2)
            else:
                self._provision_error = None
                return

    async def _drain(self, committer: Committer, outbox: Outbox, shutdown_s: float) -> None:
        log.info("stopping", extra={"fields": {"within_s": shutdown_s}})
        try:
            async with asyncio.timeout(shutdown_s):
                await asyncio.gather(*(worker.drain() for worker in self._workers.values()))
                await committer.flushed()
                if self._broker.is_connected:
                    await outbox.emptied()
                    await committer.flushed()
                await self._broker.flush()
                await asyncio.gather(*(worker.consumer.hand_back() for worker in self._workers.values()))
        except TimeoutError:
            log.warning("not everything ended in time; it is left to the next start")

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
        if self._committer and self._committer.failure:
            return StateHealth(status="down", reason=self._committer.failure)
        return StateHealth()

    def _other_reasons(self) -> tuple[str, ...]:
        reasons = [
            f"stream {name} differs from its declaration ({'; '.join(drift)}): see 'streams plan'"
            for name, drift in self._probe.stream_drift.items()
            if drift
        ]
        if self._provision_error:
            reasons.append(self._provision_error)
        if self._outbox and self._outbox.error and self._outbox.unsent_count:
            reasons.append(f"{self._outbox.unsent_count} events wait to be published ({self._outbox.error})")
        if self._broker.permission_error:
            reasons.append(f"NATS refuses what this worker needs: {self._broker.permission_error}")
        return tuple(reasons)

    def _consumer_health(self, spec: ConsumerSpec) -> ConsumerHealth:
        sight = self._probe.sights[spec.durable]
        info = sight.info or {}
        seen = ConsumerHealth(
            pending=info.get("num_pending", 0),
            ack_pending=info.get("num_ack_pending", 0),
            redelivered=info.get("num_redelivered", 0),
        )
        is_missing = sight.info is None and sight.at is not None
        worker = self._workers.get(spec.durable)
        if worker is None:
            return self._describe_without_worker(seen, ConsumerFacts(info_age_s=sight.age_s, is_missing=is_missing))
        running = worker.running()
        unsent_count = self._outbox.unsent_count if self._outbox else 0
        drift = sight.drift + tuple(f"no handler for {subject!r}" for subject in sorted(worker.orphans))
        facts = ConsumerFacts(
            info_age_s=sight.age_s,
            is_missing=is_missing and 0 < worker.consumer.attached_at < (sight.at or 0.0),
            refused=worker.consumer.reason if worker.consumer.is_refused else None,
            detached=worker.consumer.detached_reason,
            intake_stopped=worker.intake_stopped,
            unfinished=seen.pending + max(worker.held_count, seen.ack_pending - unsent_count),
            paused_until=info.get("config", {}).get("pause_until") if info.get("paused") else None,
            idle_s=worker.idle_s,
            running_count=running.count,
            overdue=running.overdue,
            drift=drift,
        )
        status, reason = judge_consumer(facts)
        return attrs.evolve(worker.describe(seen), status=status, reason=reason)

    def _describe_without_worker(self, seen: ConsumerHealth, facts: ConsumerFacts) -> ConsumerHealth:
        """What is known of a durable that this process does not serve: it stands by, or has just become the owner."""
        if self._owner_since is None:
            status, reason = judge_consumer(facts)
            return attrs.evolve(seen, role="standby", status=status, reason=reason)
        if time.monotonic() - self._owner_since < START_GRACE_S:
            return seen
        return attrs.evolve(seen, status="down", reason="not attached yet")


async def _opened(path: Path) -> SqliteStore:
    """Opens the store; a cancellation waits for the end of that, for it fences every owner that came before."""
    opening = asyncio.ensure_future(asyncio.to_thread(SqliteStore, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait((opening,))
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        raise


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
