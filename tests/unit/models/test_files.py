"""Files that outlive a crash, and a lock between those who write them."""

from pathlib import Path

import pytest

from models.files import append_line, locked, make_folder, replace_file


def test_make_folder_makes_those_above(tmp_path: Path) -> None:
    """A folder that is there already is no error."""
    for _ in range(2):
        make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_replace_file_leaves_one_file(tmp_path: Path) -> None:
    """The second content stands alone, and who has the first one open still reads all of it."""
    replace_file(tmp_path / "file", b"first")
    with (tmp_path / "file").open("rb") as opened:
        replace_file(tmp_path / "file", b"2")
        assert opened.read() == b"first"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"2")]


@pytest.mark.parametrize(
    ("content", "kept", "expected"),
    [
        pytest.param(None, b"", b"new\n", id="no file"),
        pytest.param(b"a\n", b"a\n", b"a\nnew\n", id="ended"),
        pytest.param(b"a", b"a", b"a\nnew\n", id="not ended"),
        pytest.param(b"a\nhal", b"a\n", b"a\nnew\n", id="cut off"),
    ],
)
def test_append_line_goes_behind_what_is_kept(
    tmp_path: Path, content: bytes | None, kept: bytes, expected: bytes
) -> None:
    """Each line is a line of its own, and what a crash has cut off is gone."""
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    append_line(tmp_path / "log", kept, b"new\n")
    assert (tmp_path / "log").read_bytes() == expected


def test_locked_gives_up_when_another_one_stays(tmp_path: Path) -> None:
    """Whoever is stopped with the lock hangs nobody; once it is free it can be taken."""
    with locked(tmp_path / "lock", wait_s=0):
        refused = pytest.raises(BlockingIOError, match="another process has held lock for 0.01 s")
        with refused, locked(tmp_path / "lock", wait_s=0.01):
            raise AssertionError("both have it")
    with locked(tmp_path / "lock", wait_s=0):
        pass
