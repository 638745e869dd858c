"""File locks between processes, and the file systems on which they are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import StoreError, StoreUnwritable
from streams.locks import LockFile, read_mounts, refuse_network_filesystem

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /srv/shared nfs4 rw 0 0
tmpfs /srv/shared/local tmpfs rw 0 0
//host/c /mnt/my\\040share cifs rw 0 0
server:/old /home nfs rw 0 0
/dev/vdb /home ext4 rw 0 0
broken
"""


def test_lock_taken_alone_excludes_others(tmp_path: Path) -> None:
    """Whoever has the lock alone keeps every other descriptor from it, until it is closed."""
    first, second = LockFile.open(tmp_path / "lock"), LockFile.open(tmp_path / "lock")
    assert first.try_exclusive()
    assert (second.try_exclusive(), second.try_shared()) == (False, False)
    first.close()
    assert second.try_exclusive()
    second.close()


def test_lock_shared_is_upgraded_by_the_last_holder_only(tmp_path: Path) -> None:
    """Of two sharers the first that wants the lock alone fails and has left; the second succeeds."""
    first, second = LockFile.open(tmp_path / "lock"), LockFile.open(tmp_path / "lock")
    assert first.try_shared() and second.try_shared()
    assert not first.try_exclusive()
    assert second.try_exclusive()
    first.close()
    second.close()


def test_lock_lives_on_in_a_child_that_was_given_the_descriptor(tmp_path: Path) -> None:
    """The lock outlives its taker while a child holds the descriptor, and ends with the child."""
    lock, probe = LockFile.open(tmp_path / "lock"), LockFile.open(tmp_path / "lock")
    assert lock.try_exclusive()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fd]) as child:
        lock.close()
        assert (probe.try_exclusive(), probe.is_open_in(child.pid)) == (False, True)
        child.communicate(b"\n")
    assert probe.try_exclusive()
    probe.close()


def test_lock_is_not_open_in_a_process_that_never_saw_it(tmp_path: Path) -> None:
    """A process without the file, and a pid without a process, do not have it open."""
    lock = LockFile.open(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not lock.is_open_in(child.pid)
        child.communicate(b"\n")
    assert not lock.is_open_in(child.pid)
    assert lock.is_open_in(os.getpid())
    lock.close()


def test_lock_in_a_missing_folder_is_unwritable(tmp_path: Path) -> None:
    """A lock file that can't be created is an error that names it."""
    with pytest.raises(StoreUnwritable, match=r"absent/lock: can't open the lock file: No such file"):
        LockFile.open(tmp_path / "absent" / "lock")


def test_lock_that_the_file_system_refuses_is_a_store_error(tmp_path: Path) -> None:
    """An error other than 'somebody has it' is never taken for a held lock."""
    lock = LockFile.open(tmp_path / "lock")
    lock.close()
    with pytest.raises(StoreError, match="files can't be locked here"):
        lock.try_exclusive()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        pytest.param("/srv/shared/var", r"/srv/shared is a network file system \(nfs4\)", id="below-a-mount"),
        pytest.param("/srv/shared", "/srv/shared is a network", id="the-mount-itself"),
        pytest.param("/mnt/my share/var", r"/mnt/my share is a network file system \(cifs\)", id="escaped-blank"),
    ],
)
def test_network_filesystem_is_refused(path: str, told: str) -> None:
    """A path on a network file system is refused, with type and mount point."""
    with pytest.raises(StoreError, match=told):
        refuse_network_filesystem(Path(path), MOUNTS)


@pytest.mark.parametrize(
    ("path", "mounts"),
    [
        pytest.param("/var/lib/x", MOUNTS, id="local-root"),
        pytest.param("/srv/shared-not", MOUNTS, id="name-that-only-begins-alike"),
        pytest.param("/srv/shared/local/x", MOUNTS, id="local-below-network"),
        pytest.param("/home/x", MOUNTS, id="later-mount-covers-earlier"),
        pytest.param("/srv/shared/x", "", id="no-proc-mounts"),
    ],
)
def test_local_filesystem_is_accepted(path: str, mounts: str) -> None:
    """The deepest and latest mount that holds the path decides, and only that."""
    refuse_network_filesystem(Path(path), mounts)


def test_mounts_of_this_machine_are_read() -> None:
    """Where there is a /proc/mounts, the root is among its mount points."""
    if not Path("/proc/mounts").exists():
        pytest.skip("this platform has no /proc/mounts")
    assert " / " in read_mounts()


def test_platform_without_proc_is_served(tmp_path: Path) -> None:
    """Without /proc there are no mounts to refuse, and a process that lives counts as having the file."""
    assert read_mounts(tmp_path / "mounts") == ""
    lock = LockFile.open(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert lock.is_open_in(child.pid, proc=tmp_path)
        child.communicate(b"\n")
    assert not lock.is_open_in(child.pid, proc=tmp_path)
    lock.close()


def test_lock_released_is_free_though_a_copy_is_open(tmp_path: Path) -> None:
    """A release unlocks at once, even while a copy of the descriptor exists."""
    lock, probe = LockFile.open(tmp_path / "lock"), LockFile.open(tmp_path / "lock")
    copy = os.dup(lock.fd)
    assert lock.try_exclusive()
    lock.release()
    assert probe.try_exclusive()
    probe.close()
    os.close(copy)
