"""The records of released versions: read, written whole, and never changed."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import StoreError, StoreUnwritable
from prompts.registry import SHIPPED, load_variants
from prompts.releases import SHIPPED_RELEASES, read_releases, record_releases

A, B = "a" * 12, "b" * 12


def test_shipped_variants_are_as_released() -> None:
    """A file that ships is never edited: write a new version beside it, and add its hash to releases.json."""
    found = {version: variant.content_hash for version, variant in load_variants([SHIPPED]).items()}
    assert found == read_releases(SHIPPED_RELEASES)


def test_record_is_empty_before_the_first_release(tmp_path: Path) -> None:
    """No file is no release, and reading makes none."""
    assert read_releases(tmp_path / "prompts.json") == {}
    assert list(tmp_path.iterdir()) == []


def test_record_keeps_the_first_content(tmp_path: Path) -> None:
    """A version that is there stays; others join it, and the answer is what the disk has."""
    record = tmp_path / "prompts.json"
    assert record_releases(record, {"v4": A}) == {"v4": A}
    assert record_releases(record, {"v4": B, "v5": B}) == {"v4": A, "v5": B} == read_releases(record)
    assert json.loads(record.read_text()) == {"v4": A, "v5": B}
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.json", "prompts.lock"}


def test_record_loses_nothing_among_writers(tmp_path: Path) -> None:
    """Many that record at once wait for each other."""
    record = tmp_path / "prompts.json"
    served = [{f"v{n}": A} for n in range(4, 44)]
    with ThreadPoolExecutor(8) as writers:
        answers = list(writers.map(lambda one: record_releases(record, one), served))
    assert read_releases(record) == {f"v{n}": A for n in range(4, 44)}
    assert all(one.items() <= answer.items() for one, answer in zip(served, answers, strict=True))


def test_record_that_changes_nothing_is_not_written(tmp_path: Path) -> None:
    """What is known already costs no write."""
    record_releases(tmp_path / "prompts.json", {"v4": A})
    before = (tmp_path / "prompts.json").stat()
    record_releases(tmp_path / "prompts.json", {"v4": B})
    after = (tmp_path / "prompts.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"v1": 3}', b'{"v1": "short"}', b"\xff"], ids=range(5))
def test_record_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """A damaged file is named, and neither taken for an empty one nor overwritten."""
    record = tmp_path / "prompts.json"
    record.write_bytes(content)
    for touch in (lambda: read_releases(record), lambda: record_releases(record, {"v4": A})):
        with pytest.raises(StoreError, match=r"prompts\.json: no record of .* mend it or move it away"):
            touch()
    assert record.read_bytes() == content


def test_record_that_can_not_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    """A folder in the file's place, and a folder that is not there, are named with the system's reason."""
    (tmp_path / "prompts.json").mkdir()
    with pytest.raises(StoreError, match="can't be read .Is a directory"):
        read_releases(tmp_path / "prompts.json")
    with pytest.raises(StoreUnwritable, match="can't be recorded .No such file"):
        record_releases(tmp_path / "nowhere" / "prompts.json", {"v4": A})
    (tmp_path / "other.new").mkdir()
    with pytest.raises(StoreUnwritable, match="can't be recorded .Is a directory"):
        record_releases(tmp_path / "other.json", {"v4": A})
