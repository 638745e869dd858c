"""streams/suspects.py: who may run beside others, and who is suspected of killing the process."""

import asyncio

import pytest

from streams.suspects import Gate, Suspects


@pytest.mark.parametrize(
    ("was_unclean", "delivered", "seq", "is_suspect"),
    [
        pytest.param(False, 9, 5, False, id="clean"),
        pytest.param(True, None, 5, True, id="nothing-known-yet"),
        pytest.param(True, 9, 9, True, id="delivered-before"),
        pytest.param(True, 9, 10, False, id="new"),
    ],
)
def test_suspects_are_what_was_delivered_before_an_unclean_end(
    was_unclean: bool, delivered: int | None, seq: int, is_suspect: bool
) -> None:
    """After an unclean end, everything delivered by then is suspect, and nothing after a clean one."""
    suspects = Suspects(was_unclean=was_unclean, crashes={})
    if delivered is not None:
        suspects.note_delivered(delivered)
    assert suspects.is_suspect(seq) is is_suspect


def test_suspects_keep_the_first_attach_and_the_crashes() -> None:
    """What is delivered by this process itself makes no suspects; crashes are those of earlier ones."""
    suspects = Suspects(was_unclean=True, crashes={7: 2})
    suspects.note_delivered(9)
    suspects.note_delivered(500)
    assert (suspects.is_suspect(10), suspects.crash_count(7), suspects.crash_count(8)) == (False, 2, 0)


def test_suspects_of_a_waiting_lane_are_its_first_message_and_known_crashers() -> None:
    """Of a lane that waits in the store the first message is suspect; a later one only if it has crashed before."""
    suspects = Suspects(was_unclean=True, crashes={7: 1}, lanes=["ana"])
    suspects.note_delivered(9)
    assert suspects.is_suspect(5, "ana")
    suspects.clear_lane("ana")
    assert [suspects.is_suspect(seq, "ana") for seq in (6, 7)] == [False, True]
    assert not suspects.is_suspect(5, "bob")


def test_suspects_are_known_crashers_whatever_the_server_remembers() -> None:
    """A server that was killed too may have forgotten what it delivered; a crash on a message's account stays."""
    suspects = Suspects(was_unclean=True, crashes={7: 1})
    suspects.note_delivered(3)
    assert [suspects.is_suspect(seq) for seq in (6, 7)] == [False, True]


async def test_gate_lets_one_run_alone_when_the_others_have_left() -> None:
    """Who wants to be alone waits for those inside, and those who come after wait for it."""
    gate, said = Gate(), []

    async def alone() -> None:
        async with gate.alone():
            said.append("alone")

    async def beside() -> None:
        while not gate.is_free:
            await gate.free()
        said.append("beside")

    gate.enter()
    tasks = [asyncio.create_task(alone())]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(beside()))
    await asyncio.sleep(0)
    assert said == []
    said.append("left")
    gate.leave()
    await asyncio.gather(*tasks)
    assert said == ["left", "alone", "beside"]


async def test_gate_runs_two_alone_one_after_the_other() -> None:
    """Two that want to be alone don't overlap, and the gate is open again after both."""
    gate, inside, most = Gate(), 0, 0

    async def alone() -> None:
        nonlocal inside, most
        async with gate.alone():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(alone(), alone())
    assert (most, gate.is_free) == (1, True)


async def test_gate_survives_a_cancelled_wait() -> None:
    """Who is cancelled while it waits to be alone keeps nobody else out."""
    gate = Gate()
    gate.enter()

    async def alone() -> None:
        async with gate.alone():
            raise AssertionError("never alone here")

    task = asyncio.create_task(alone())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gate.is_free
