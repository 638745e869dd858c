"""Holds the rows of the store against rows that today's handlers make of the same messages.

Both sides stand at one position: the ledger of the moment that is looked at says which messages were applied, and those
run again in a scratch store. What is said of each table is what was proved, and of what range.
"""

from collections.abc import Callable, Sequence

import attrs

from state.scratch import Scratch
from state.tables import AnyTable
from streams.broker import Broker
from streams.compare import Difference, Tally, compare_rows
from streams.moment import Moment
from streams.plan import Plan
from streams.player import Player
from streams.replay import Progress, load_bases, rebuild


@attrs.frozen(kw_only=True)
class Verified:
    """What was found of one row table.

    Args:
        plan: how its rows were made again; its ``trouble`` says why they could not be.
        tally: rows that are equal, and rows that are not.
    """

    table: AnyTable
    plan: Plan
    tally: Tally

    @property
    def is_proved(self) -> bool:
        """Whether its rows could be made again at all."""
        return self.plan.trouble is None

    @property
    def is_equal(self) -> bool:
        """Whether they are the stored ones, and every message was taken by today's handlers."""
        return self.is_proved and not self.tally.different and not self.plan.failed_count


async def verify(
    broker: Broker,
    moment: Moment,
    plans: Sequence[Plan],
    scratch: Scratch,
    *,
    max_deliver: int,
    note: Callable[[AnyTable, Difference], None],
    progress: Progress,
) -> list[Verified]:
    """Makes the rows of the planned subject tables again and compares them with the stored ones.

    Args:
        moment: is let go once its rows are copied.
        scratch: holds the rows that were made, afterwards.
        note: told each row that differs, as it is found.

    Raises:
        BrokerError: a stream could not be read to its end.
        StoreError: the store can't be read, or the scratch store is full.
    """
    load_bases(plans, scratch)
    durables = {plan.table.name: plan.durable for plan in plans}
    player = Player(
        [plan.table for plan in plans],
        scratch,
        peeks=lambda table, seq: moment.peeks(durables[table], seq),
        max_deliver=max_deliver,
        max_payload_bytes=broker.max_payload_bytes,
    )
    chosen = [(plan, table) for plan in plans for table in plan.table.tables]
    with Scratch() as stored:
        for _, table in chosen:
            stored.take(table.name, moment.rows(table.name))
        moment.let_go()  # a worker's log must not grow for as long as all messages take
        async with player:
            await rebuild(broker, plans, player, progress=progress)
        return [_compared(stored, plan, table, scratch, note) for plan, table in chosen]


def _compared(
    stored: Scratch, plan: Plan, table: AnyTable, scratch: Scratch, note: Callable[[AnyTable, Difference], None]
) -> Verified:
    tally = Tally()
    if plan.trouble is None:
        for difference in compare_rows(table, stored.rows(table.name), scratch.rows(table.name), tally):
            note(table, difference)
    return Verified(table=table, plan=plan, tally=tally)
