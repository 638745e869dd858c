"""One attempt on a message: beside others, or alone when it may have killed a process; then its verdict is settled."""

import asyncio

import attrs

from models.errors import StoreError
from streams.context import Context
from streams.lanes import Lanes
from streams.outcomes import Hand, Outcomes, Services
from streams.runner import Item, Runner, Slot
from streams.suspects import CRASH_LIMIT, Suspects
from streams.topology import ConsumerSpec
from streams.verdict import Verdict

CRASHED_WAIT_S = 0.5


class Attempts:
    """What the slots of one worker do.

    Args:
        suspects: who has to run alone.
    """

    def __init__(
        self,
        spec: ConsumerSpec,
        services: Services,
        *,
        hand: Hand,
        lanes: Lanes[Item],
        runner: Runner,
        outcomes: Outcomes,
        suspects: Suspects,
    ) -> None:
        self._spec, self._services, self._hand, self._lanes = spec, services, hand, lanes
        self._runner, self._outcomes = runner, outcomes
        self.suspects = suspects

    async def run(self, item: Item, slot: Slot) -> None:
        """Runs a message that a slot has taken, to its verdict and on to its outcome."""
        gate = self._services.gate
        if self._is_suspect(item):
            # An innocent one that was hit by chance, for it ran first, is not the first one to run again.
            await asyncio.sleep(CRASHED_WAIT_S * self.suspects.crash_count(item.seq))
            async with gate.alone():
                await self._run_alone(item, slot)
            self.suspects.clear_lane(item.key)
            if item not in self._hand.held:
                self.suspects.acquit(item.seq)
            return
        if item.is_redriven and not await self._may_redrive(item):
            return
        while not gate.is_free:
            await gate.free()
        gate.enter()
        try:
            verdict, ctx = await self._runner.run(item, slot)
        finally:
            gate.leave()
        self._conclude(item, verdict, ctx)

    async def _may_redrive(self, item: Item) -> bool:
        """Notes the start of a redriven message; one with which the process has died stays dead without another run."""
        if self.suspects.crash_count(item.seq):
            self.suspects.acquit(item.seq)
            item.was_noted = True
            reason = "the process died while this message was redriven"
            self._conclude(item, Verdict(kind="dead", is_failure=True, error=reason), None)
            return False
        if item in self._hand.held and await self._services.committer.note_start(self._spec.durable, item.seq, 0):
            item.was_noted = True
            return True
        self._lanes.release(item)
        return False

    def _is_suspect(self, item: Item) -> bool:
        if item.is_redriven:
            return False
        if self._spec.is_shared and not item.is_parked and item.message.num_delivered > 1:
            try:
                started = self._services.store.fetch_started(self._spec.durable, item.seq)
                tried = self._services.store.fetch_tried(self._spec.durable, item.seq)
            except StoreError:
                return False  # its commit will fail as well
            self.suspects.note_redelivered(item.seq, item.message.num_delivered, started=started, tried=tried)
        return self.suspects.is_suspect(item.seq, item.key if item.is_parked else None)

    async def _run_alone(self, item: Item, slot: Slot) -> None:
        """Runs a crash suspect between a durable note of its start and the commit of its outcome."""
        crash_count = self.suspects.crash_count(item.seq)
        committer = self._services.committer
        if crash_count >= CRASH_LIMIT:
            item.was_noted = True
            reason = f"the process died {crash_count} times while this message ran alone"
            self._conclude(item, Verdict(kind="dead", is_failure=True, error=reason), None)
        elif item in self._hand.held and await committer.note_start(self._spec.durable, item.seq, crash_count):
            item.was_noted = True
            self._conclude(item, *await self._runner.run(item, slot))
        else:
            self._lanes.release(item)
        if item in self._hand.held:
            await self._hand.held.gone(item)

    def _conclude(self, item: Item, verdict: Verdict, ctx: Context | None) -> None:
        if item.is_redriven and verdict.kind == "parked":  # it goes back to where it was
            verdict = attrs.evolve(verdict, kind="dead")
        if item not in self._hand.held:  # the store failed meanwhile; the message comes again
            self._lanes.release(item)
        elif verdict.kind == "parked":
            behind = self._lanes.clear_behind(item)
            self._outcomes.settle(item, verdict, None)
            for other in behind:
                self._outcomes.park_behind(other)
        else:
            self._outcomes.settle(item, verdict, ctx.effects if ctx and verdict.kind == "applied" else None)
            self._lanes.release(item)
