"""The workers of one kind of table in one process, with the store, the committer and the outbox that they share.

The owner's crew serves the ordered tables, in the one process that owns the store. The shared crew serves the tables
with ``order="none"``, in every process. Both have connections to the same database; one thread makes the commits of
both, so that they don't wait for each other's locks.
"""

import asyncio
import concurrent.futures
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import attrs

from models.errors import ApiError, BrokerError, BrokerUnavailable, StoreError, StoreFenced
from state.sqlite import SqliteStore
from streams.broker import Broker
from streams.commit import Committer
from streams.isolation import Isolation
from streams.outbox import Outbox
from streams.outcomes import Services
from streams.presence import Presence
from streams.provision import ensure_streams
from streams.redrive import Redriver
from streams.subjects import SubjectTable
from streams.suspects import Gate
from streams.table_health import Limits
from streams.ticks import Timer
from streams.timers import Timers
from streams.topology import DEAD_LETTER_PREFIX, STREAMS, ConsumerSpec, is_publishable
from streams.worker import TableWorker

log = logging.getLogger(__name__)

CANCEL_S = 2.0
SWEEP_INTERVAL_S = 5.0
SWEEP_AGE_S = 15.0


@attrs.frozen(kw_only=True)
class Ship:
    """What all crews of a process have in common.

    Args:
        observe_commit: told the outcomes and the seconds of every commit.
    """

    broker: Broker
    presence: Presence
    limits: Limits
    replicas: int
    executor: concurrent.futures.Executor
    gate: Gate
    isolation: Isolation
    observe_commit: Callable[[int, float], None]


class Crew:
    """Runs some subject tables on one store until told to stop.

    Args:
        store: closed by the caller after ``run``.
        timers: those whose ticks this crew publishes.
    """

    def __init__(
        self,
        ship: Ship,
        store: SqliteStore,
        specs: Sequence[ConsumerSpec],
        tables: Mapping[str, SubjectTable],
        *,
        timers: Iterable[Timer] = (),
    ) -> None:
        self._ship = ship
        self._store = store
        self._specs = specs
        self._tables = tables
        self.committer = Committer(store, observe=ship.observe_commit, executor=ship.executor)
        self.outbox = Outbox(ship.broker, forget=self.committer.forget_sent, fetch=store.fetch_outbox_row)
        self.workers: dict[str, TableWorker] = {}
        self.timers = Timers(ship.broker, timers)
        self.redrivers: dict[str, Redriver] = {}
        self.provision_error: str | None = None
        self._group: asyncio.TaskGroup | None = None
        self._firing: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._is_owner = store.is_owner

    def own(self) -> None:
        """Has this process, which has become the owner, take care of what others leave of shared tables.

        A crew that stops, or has stopped, begins nothing any more: its store is about to be closed.
        """
        if self._is_stopping:
            return
        self._is_owner = True
        for durable, worker in self.workers.items():
            worker.run_parked()
            if self._group and durable not in self.redrivers:
                redriver = Redriver(
                    worker,
                    self._ship.broker,
                    store=self._store,
                    committer=self.committer,
                    store_id=self._store.store_id,
                )
                self.redrivers[durable] = redriver
                self._group.create_task(redriver.run(), name=redriver.spec.durable)

    def unfinished(self) -> Iterator[str]:
        """What is decided and not carried out, in words."""
        if not self.committer.is_idle:
            yield f"outcomes to be committed ({self.committer.failure or 'on their way'})"
        if self.outbox.unsent_count:
            yield f"{self.outbox.unsent_count} events to be published ({self.outbox.error or 'on their way'})"

    async def run(self, stop: asyncio.Event, shutdown_s: float) -> None:
        """Consumes until ``stop``; then drains for at most ``shutdown_s`` seconds.

        Raises:
            StoreFenced: another process has taken the store over.
            BrokerError: the connection closed for good.
        """
        committer, broker = self.committer, self._ship.broker
        if self._is_owner:
            self.outbox.load(self._store.fetch_outbox())
        background = [
            asyncio.create_task(committer.run(), name="committer"),
            asyncio.create_task(self._work(), name="workers"),
            asyncio.create_task(self.outbox.run(), name="outbox"),
            asyncio.create_task(self._sweep(), name="sweep"),
        ]
        ends: list[asyncio.Task[Any]] = [
            asyncio.create_task(event.wait()) for event in (stop, committer.fenced, broker.closed)
        ]
        is_clean = False
        try:
            done, _ = await asyncio.wait([*background, *ends], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if committer.fenced.is_set():
                raise StoreFenced(self._store.path, "another process has taken this store over")
            if broker.closed.is_set():
                raise BrokerError(f"the connection to NATS closed for good ({broker.error})")
            await self._drain(shutdown_s)
            is_clean = True
        finally:
            self._is_stopping = True
            for task in [*background, *ends]:
                task.cancel()
            await asyncio.wait([*background, *ends], timeout=CANCEL_S)
            committer.close()
            if is_clean and committer.failure is None:
                self._store.end_clean()

    async def _work(self) -> None:
        """Creates what is missing on the server, then runs every table's worker."""
        await self._provision()
        if self._is_stopping:  # nothing begins any more
            return
        services = Services(
            broker=self._ship.broker,
            store=self._store,
            store_id=self._store.store_id,
            committer=self.committer,
            outbox=self.outbox,
            publishable=lambda subject: is_publishable(subject, STREAMS),
            gate=self._ship.gate,
            rng=random.Random(),
            version=version("tipstream"),
            alive=self._ship.presence.alive,
            isolation=self._ship.isolation,
        )
        for spec in self._specs:
            self.workers[spec.durable] = TableWorker(self._tables[spec.table], spec, services, self._ship.limits)
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._firing = group.create_task(self.timers.run(), name="timers")
            for worker in self.workers.values():
                group.create_task(worker.run(), name=worker.spec.durable)
            if self._is_owner:
                self.own()

    async def _provision(self) -> None:
        known = {floor.stream for spec in self._specs if (floor := self._store.load(spec.durable).floor)}
        delay_s = 0.1
        while True:
            await self._ship.broker.connected.wait()
            try:
                await ensure_streams(self._ship.broker, STREAMS, replicas=self._ship.replicas, known=known)
            except (BrokerUnavailable, ApiError) as error:
                self.provision_error = f"streams can't be created: {error}"
                log.error("streams can't be created", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(delay_s)
                delay_s = min(2.0, delay_s * 2)
            else:
                self.provision_error = None
                return

    async def _sweep(self) -> None:
        """Takes over the events that a process committed and did not live to publish."""
        ours = (DEAD_LETTER_PREFIX, *(f"{spec.durable}:" for spec in self._specs))
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            if not self._is_owner or self._store.is_owner:
                continue
            try:
                rows = self._store.fetch_outbox(before=time.time() - SWEEP_AGE_S)
            except StoreError as error:
                log.debug("can't look for events that others left", extra={"fields": {"error": str(error)}})
                continue
            self.outbox.load(row for row in rows if row.lane.startswith(ours))

    async def _drain(self, shutdown_s: float) -> None:
        log.info("stopping", extra={"fields": {"within_s": shutdown_s, "tables": [spec.table for spec in self._specs]}})
        broker, workers = self._ship.broker, self.workers.values()
        self._is_stopping = True
        if self._firing:
            self._firing.cancel()
        try:
            async with asyncio.timeout(shutdown_s):
                if self._firing:
                    await asyncio.wait((self._firing,))
                await asyncio.gather(*(worker.drain() for worker in workers))
                await self.committer.flushed()
                if broker.is_connected:
                    await self.outbox.settled()
                    await self.committer.flushed()
                await broker.flush()
                await asyncio.gather(*(worker.consumer.hand_back() for worker in workers))
        except TimeoutError:
            log.warning("not everything ended in time; it is left to the next start")
