"""Places for calls: how many run, how many wait, and who is refused."""

import asyncio

import pytest
from harness import wait_until

from models.errors import GatewayError
from prompts.slots import CallSlots


async def hold(slots: CallSlots, until: asyncio.Event) -> None:
    """Holds a place until the event."""
    async with slots.take():
        await until.wait()


async def test_slots_refuse_what_neither_runs_nor_waits() -> None:
    """With one place and one in the queue the third call is refused at once, and all is free in the end."""
    slots, until = CallSlots(max_running=1, max_waiting=1), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(hold(slots, until))
        await wait_until(lambda: (slots.running, slots.waiting) == (1, 1))
        with pytest.raises(GatewayError, match="overloaded .1 calls run and 1 wait"):
            await hold(slots, until)
        until.set()
    assert (slots.running, slots.waiting) == (0, 0)


async def test_slots_without_a_queue_refuse_when_all_run() -> None:
    """No queue means that nobody waits, and that a free place is still taken."""
    slots, until = CallSlots(max_running=1, max_waiting=0), asyncio.Event()
    async with slots.take():
        with pytest.raises(GatewayError, match="overloaded"):
            await hold(slots, until)
    until.set()
    await hold(slots, until)


async def test_slots_forget_who_left_the_queue() -> None:
    """A caller that is cancelled while it waits gives its place in the queue up."""
    slots, until = CallSlots(max_running=1, max_waiting=1), asyncio.Event()
    async with slots.take():
        waiting = asyncio.create_task(hold(slots, until))
        await wait_until(lambda: slots.waiting == 1)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert slots.waiting == 0
