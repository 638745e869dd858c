"""What the decision log does while there is no NATS: nothing at all, or keeping within its bounds."""

from pathlib import Path

import pytest
from decisions_kit import SUBJECT, logging_to, losses, write
from harness import free_port, wait_until
from hypothesis import given
from hypothesis import strategies as st

from streams.admission import is_admitted
from streams.decision_log import DecisionLimits, DecisionLog
from streams.spool import Record, Spools

NOWHERE = f"nats://127.0.0.1:{free_port()}"
NO_DISK = DecisionLimits(buffer_count=10, spool_bytes=1)


def test_log_without_nats_logs_nothing_and_that_is_no_fault(tmp_path: Path) -> None:
    """Nothing is admitted, taken, counted as lost or put on disk."""
    decisions = DecisionLog(tmp_path / "var")
    assert decisions.admit("r1") is None
    assert not decisions.write(SUBJECT, b"{}")
    facts = decisions.facts()
    assert (facts.is_enabled, facts.sampled_out, losses(decisions)) == (False, 0, {})
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize(
    "subject", ["decisions", "decisions.", "signals.x", "decisions.a b", "decisions.a\r\nPING", ""]
)
async def test_decision_on_another_subject_is_lost_and_counted(tmp_path: Path, subject: str) -> None:
    """Only subjects of the stream are taken, and none that would break the protocol."""
    async with logging_to(NOWHERE, tmp_path) as decisions:
        assert not decisions.write(subject, b"{}")
        assert losses(decisions) == {"subject": 1}
        assert decisions.facts().is_dropping


async def test_buffer_that_fills_admits_by_the_hash_of_the_request(tmp_path: Path) -> None:
    """Below half everything is logged; then the same ids as the hash says, and the others are counted."""
    async with logging_to(NOWHERE, tmp_path, limits=NO_DISK) as decisions:
        ids = [f"request-{number}" for number in range(100)]
        assert {decisions.admit(request_id) for request_id in ids} == {1.0}
        write(decisions, 1, 5)
        for _ in range(2):
            assert [decisions.admit(request_id) for request_id in ids] == [
                0.5 if is_admitted(request_id, 0.5) else None for request_id in ids
            ]
        assert decisions.facts().sampled_out == 2 * sum(not is_admitted(request_id, 0.5) for request_id in ids)
        assert decisions.facts().rate == 0.5


@pytest.mark.parametrize("limits", [NO_DISK, DecisionLimits(buffer_bytes=500, spool_bytes=1)], ids=["count", "bytes"])
async def test_buffer_that_is_full_loses_and_counts_the_newest(tmp_path: Path, limits: DecisionLimits) -> None:
    """Ten fit, of 48 bytes each with their heads; the next is lost, and so are the ten when the disk takes none."""
    async with logging_to(NOWHERE, tmp_path, limits=limits) as decisions:
        write(decisions, 1, 10, size=8)
        assert not decisions.write(SUBJECT, b"eleventh")
        assert (decisions.facts().buffered, losses(decisions)) == (10, {"full": 1})
    assert losses(decisions) == {"full": 1 + 10}


@given(st.integers(0, 3))
async def test_unconnected_log_keeps_on_disk_what_fits(tmp_path_factory: pytest.TempPathFactory, more: int) -> None:
    """The spool takes what is in memory, oldest first, up to its bound; what the disk has is nobody's loss."""
    folder = tmp_path_factory.mktemp("var")
    limits = DecisionLimits(buffer_count=10, spool_bytes=16 + 4 * 50)
    async with logging_to(NOWHERE, folder, limits=limits) as decisions:
        write(decisions, 1, 4)
        await wait_until(lambda: decisions.facts().spooled == 4)
        write(decisions, 5, 4 + more)
        assert (decisions.facts().spool_bytes, decisions.facts().rate) == (16 + 4 * 50, 0.02)
    assert losses(decisions) == ({"full": more} if more else {})
    spools = Spools(folder, limit_bytes=10_000)
    assert spools.adopt() == 4
    assert [int(record.payload) for record in spools.read(10, 10_000)] == [1, 2, 3, 4]
    spools.close()


async def test_disk_that_takes_nothing_is_said_and_memory_keeps_what_it_can(tmp_path: Path) -> None:
    """With a file where the folder should be the reason names it; the decisions stay in memory."""
    (tmp_path / "file").write_text("x")
    async with logging_to(NOWHERE, tmp_path / "file") as decisions:
        write(decisions, 1, 3)
        await wait_until(lambda: "file: " in (decisions.facts().error or ""))
        assert (decisions.facts().buffered, losses(decisions)) == (3, {})
    assert losses(decisions) == {"full": 3}


async def test_spool_with_nothing_in_it_is_removed(tmp_path: Path) -> None:
    """What was published before the process was killed leaves no file behind in the end."""
    spools = Spools(tmp_path, limit_bytes=1000)
    spools.append([Record(id="a", subject=SUBJECT, payload=b"1")])
    [path] = tmp_path.iterdir()
    head = path.read_bytes()[:16]
    spools.close()
    path.write_bytes(head)
    async with logging_to(NOWHERE, tmp_path) as decisions:
        assert path.exists()
    assert not path.exists()
    assert losses(decisions) == {}
