"""What a worker has in hand: each message once, and as many bytes as its payloads have."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from streams_kit import make_item, make_message

from streams.held import Held
from streams.runner import Item


class Worker(RuleBasedStateMachine):
    """Uses Held as the worker does, beside a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()
        self.items: list[Item] = []
        self.gone: list[Item] = []

    @rule(seq=st.integers(1, 5), payload=st.binary(max_size=9))
    def add(self, seq: int, payload: bytes) -> None:
        """A message is delivered, unless it is in hand."""
        found = self.held.get(seq)
        assert found is next((item for item in self.items if item.seq == seq), None)
        if found is None:
            self.items.append(make_item(message=make_message(seq, payload)))
            self.held.add(self.items[-1])

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """A message is committed."""
        item = data.draw(st.sampled_from(self.items))
        self.held.discard(item)
        self.items.remove(item)
        self.gone.append(item)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def discard_again(self, data: st.DataObject) -> None:
        """An item that is not held any more goes a second time, while another of its sequence may be held."""
        self.held.discard(data.draw(st.sampled_from(self.gone)))

    @rule()
    def clear(self) -> None:
        """The store has failed: everything goes."""
        self.held.clear()
        self.gone.extend(self.items)
        self.items.clear()

    @invariant()
    def holds_the_items_in_order_and_their_bytes(self) -> None:
        """Items come in the order in which they were taken, and only their payloads count."""
        assert list(self.held) == self.items
        assert len(self.held) == len(self.items)
        assert self.held.byte_count == sum(len(item.message.payload) for item in self.items)
        assert not any(item in self.held for item in self.gone)
        assert all(item in self.held for item in self.items)


def test_held_is_exactly_what_was_taken_and_not_let_go() -> None:
    """Whatever comes and goes, each item in hand is there once, with its bytes, and no earlier one stands for it."""
    run_state_machine_as_test(Worker, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


def test_held_tells_an_item_from_another_of_its_sequence() -> None:
    """After a store failure a message comes again: the attempt that still runs does not count as the new one."""
    held, first, second = Held(), make_item(7), make_item(7)
    held.add(first)
    held.clear()
    held.add(second)
    held.discard(first)
    assert (first in held, second in held, held.get(7), held.get(8)) == (False, True, second, None)


@pytest.mark.parametrize("let_go", [Held.discard, lambda held, item: held.clear()], ids=["committed", "store-failed"])
async def test_held_tells_when_an_item_is_let_go(let_go: Callable[[Held, Item], None]) -> None:
    """Who waits for an item goes on when that one is let go, and not when another one is."""
    held, item, other = Held(), make_item(7), make_item(8)
    held.add(item)
    held.add(other)
    waiting = asyncio.create_task(held.gone(item))
    held.discard(other)
    await asyncio.sleep(0)
    assert not waiting.done()
    let_go(held, item)
    await asyncio.wait_for(waiting, 3)
