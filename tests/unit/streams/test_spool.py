"""The files in which decisions wait: what is written is read back, and damage costs the tail alone."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from decisions_kit import no_file_grows
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import StoreUnwritable
from streams.locks import LockFile
from streams.spool import HEAD, Record, Spool, Spools, encode_record, read_records, size_on_disk

RECORDS = st.lists(
    st.builds(
        Record,
        id=st.from_regex(r"[0-9a-f]{0,12}", fullmatch=True),
        subject=st.from_regex(r"[a-z.]{0,20}", fullmatch=True),
        payload=st.binary(max_size=60),
    ),
    max_size=8,
)


def record(number: int, size: int = 10) -> Record:
    """A decision with a number."""
    return Record(id=f"id{number}", subject="decisions.score", payload=str(number).encode().ljust(size))


def records(first: int, last: int) -> list[Record]:
    """Decisions with these numbers, both ends included."""
    return [record(number) for number in range(first, last + 1)]


def read_all(spool: Spool) -> list[Record]:
    """Takes out everything, two at a time."""
    found: list[Record] = []
    while chunk := spool.read(2, 10_000):
        found += chunk
        spool.forget()
    return found


def abandoned(folder: Path, content: list[Record], *, damage: bytes = b"", cut: int = 0) -> Path:
    """A file as a killed process leaves it."""
    spool = Spool.create(folder)
    spool.append(content)
    path = spool.path
    spool.count = spool.count or 1  # keeps an empty one
    spool.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut] + damage)
    return path


@given(RECORDS)
def test_records_are_read_back_as_written(written: list[Record]) -> None:
    """Any records come back, each with its size."""
    encoded = b"".join(map(encode_record, written))
    found = list(read_records(io.BytesIO(encoded)))
    assert [record for record, _ in found] == written
    assert [size for _, size in found] == [size_on_disk(record) for record in written]


@given(RECORDS, st.data())
def test_any_truncation_loses_the_tail_alone(written: list[Record], data: st.DataObject) -> None:
    """Wherever the end is torn off, every record before it is read, and none that is not whole."""
    encoded = b"".join(map(encode_record, written))
    length = data.draw(st.integers(0, len(encoded)))
    found = [record for record, _ in read_records(io.BytesIO(encoded[:length]))]
    ends = [sum(size_on_disk(record) for record in written[: count + 1]) for count in range(len(written))]
    assert found == written[: sum(end <= length for end in ends)]


@given(RECORDS, st.data())
def test_a_changed_byte_gives_no_false_record(written: list[Record], data: st.DataObject) -> None:
    """Whatever byte changes, what is read is a prefix of what was written."""
    encoded = bytearray(b"".join(map(encode_record, written)) + bytes(40))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    found = [record for record, _ in read_records(io.BytesIO(encoded))]
    assert found == written[: len(found)]


def test_spool_is_first_in_first_out_and_removed_when_empty(tmp_path: Path) -> None:
    """Reading moves nothing until it is forgotten; adding goes on meanwhile; an empty file is removed."""
    spool = Spool.create(tmp_path / "var")
    spool.append(records(1, 3))
    assert spool.read(2, 10_000) == spool.read(2, 10_000) == records(1, 2)
    spool.append(records(4, 5))
    spool.forget()
    assert (spool.count, spool.read(9, 1)) == (3, [record(3)]), "at least one, however large"
    assert read_all(spool) == records(3, 5)
    spool.close()
    assert not list((tmp_path / "var").iterdir())


@settings(max_examples=25)
@given(st.integers(0, 6), st.integers(0, 200))
def test_adopted_spool_has_what_was_not_forgotten_up_to_the_damage(forgotten: int, cut: int) -> None:
    """The next process finds the records after the last that was noted as stored; a torn end is counted once."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool.create(Path(folder))
        spool.append(records(1, 6))
        spool.read(forgotten, 10_000)
        spool.forget()
        path, size = spool.path, spool.size_bytes
        spool.count = 9  # is left, not removed
        spool.close()
        os.truncate(path, max(size - cut, HEAD.size))
        whole = max(0, (size - HEAD.size - cut) // size_on_disk(record(1)))
        [adopted] = Spool.adopt(Path(folder))
        is_torn = cut % size_on_disk(record(1)) != 0 and cut < size - HEAD.size and whole >= forgotten
        assert read_all(adopted) == records(forgotten + 1, whole)
        assert adopted.is_torn == is_torn
        adopted.close()


def test_spool_of_a_living_process_is_not_adopted(tmp_path: Path) -> None:
    """A file is taken by the one who has its lock; once let go of it is the next one's."""
    mine = Spool.create(tmp_path)
    mine.append([record(1)])
    assert Spool.adopt(tmp_path) == []
    mine.close()
    [adopted] = Spool.adopt(tmp_path)
    assert read_all(adopted) == [record(1)]
    adopted.close()


@pytest.mark.parametrize(
    "content", [b"", b"TIPS", b"something else, longer than a head"], ids=["empty", "short", "other"]
)
def test_file_that_is_no_spool_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    """An unknown file under such a name is neither read nor removed."""
    path = tmp_path / "decisions-x.spool"
    path.write_bytes(content)
    assert Spool.adopt(tmp_path) == []
    assert path.read_bytes() == content


def test_spool_that_can_not_be_opened_is_passed_by(tmp_path: Path) -> None:
    """A folder, or a file that is gone, under such a name stops nothing."""
    (tmp_path / "decisions-folder.spool").mkdir()
    (tmp_path / "decisions-gone.spool").symlink_to(tmp_path / "nowhere")
    path = abandoned(tmp_path, [record(1)])
    [adopted] = Spool.adopt(tmp_path)
    assert adopted.path == path
    adopted.close()


def test_folder_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    """The message names the folder."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnwritable, match=r"file/var: decisions can't be kept \(Not a directory\)"):
        Spool.create(tmp_path / "file" / "var")


def test_file_that_can_not_be_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    """A disk without room for the head is an error, and neither a file nor a descriptor stays."""
    open_count = len(os.listdir("/proc/self/fd"))
    with no_file_grows(), pytest.raises(StoreUnwritable, match=r"decisions can't be kept \(File too large\)"):
        Spool.create(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_count


def test_disk_that_fails_at_reading_is_an_error(tmp_path: Path) -> None:
    """What can't be read for a reason of the disk is no damage of the file: it is tried again later."""
    spool = Spool(LockFile.open(tmp_path / "x"), Path("/proc/self/mem").open("r+b", buffering=0))  # noqa: SIM115
    spool.count = 1
    with pytest.raises(StoreUnwritable, match=r"decisions can't be read \(Input/output error\)"):
        spool.read(1, 1)
    assert (spool.count, spool.is_torn) == (1, False)
    spool.close()


def test_spool_survives_the_loss_of_its_name(tmp_path: Path) -> None:
    """Somebody who removes the file, or its folder, takes nothing from the process that has it open."""
    spool = Spool.create(tmp_path / "var")
    spool.append(records(1, 3))
    (tmp_path / "var").rename(tmp_path / "elsewhere")
    assert read_all(spool) == records(1, 3)
    spool.close()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_disk_that_is_full_loses_nothing_that_was_there(tmp_path: Path) -> None:
    """What can't be written is an error; what was there is still read, and the next records take its place."""
    lock = LockFile.open(tmp_path / "full")
    spool = Spool(lock, Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115 - the spool closes it
    with pytest.raises(StoreUnwritable, match=r"decisions can't be kept \(No space left on device\)"):
        spool.append([record(1)])
    with pytest.raises(StoreUnwritable, match="No space left"):
        spool.forget()
    assert (spool.count, spool.size_bytes) == (0, HEAD.size)
    spool.close()


def test_spools_are_read_oldest_first_and_own_ones_last(tmp_path: Path) -> None:
    """What killed processes left comes first, in the order of their last change, and an empty file is removed."""
    for age, first in ((30, 1), (10, 5), (20, 3)):
        path = abandoned(tmp_path, records(first, first + 1))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    spools = Spools(tmp_path, limit_bytes=10_000)
    assert spools.adopt() == 6
    assert spools.append(records(7, 8))
    found = []
    while chunk := spools.read(10, 10_000):
        found += chunk
        spools.forget()
    assert found == records(1, 8)
    assert (spools.count, spools.size_bytes, list(tmp_path.iterdir())) == (0, 0, [])
    spools.close()


def test_spools_refuse_what_goes_beyond_their_bound(tmp_path: Path) -> None:
    """All files together take no more than the limit; records that don't fit are refused as a whole."""
    abandoned(tmp_path, [record(1, 500)])
    spools = Spools(tmp_path, limit_bytes=1400)
    spools.adopt()
    assert spools.append([record(2, 500)])
    assert not spools.append([record(3, 10), record(4, 500)])
    assert spools.count == 2 and spools.size_bytes < 1400
    spools.close()
    assert len(list(tmp_path.iterdir())) == 2, "what waits is left to the next process"


def test_spools_count_what_was_torn_before_and_meanwhile(tmp_path: Path) -> None:
    """A torn end is counted at adoption; a file that is damaged while it lies there is given up and counted."""
    abandoned(tmp_path, [record(1)], damage=b"half a record")
    spools = Spools(tmp_path, limit_bytes=10_000)
    assert (spools.adopt(), spools.torn_count) == (1, 1)
    others = set(tmp_path.iterdir())
    spools.append([record(2)])
    [path] = set(tmp_path.iterdir()) - others
    assert spools.read(10, 10_000) == [record(1)]
    spools.forget()
    path.write_bytes(path.read_bytes()[:-1])
    assert (spools.read(10, 10_000), spools.torn_count, spools.count) == ([], 2, 0)
    assert spools.read(10, 10_000) == []
    spools.close()
