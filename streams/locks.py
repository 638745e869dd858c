"""Locks between the processes that share one STATE_DIR.

This module owns advisory locks on whole files (flock): taking them, asking whether a process has such a file open, and
refusing file systems on which they mean nothing. POSIX record locks are not used: closing any descriptor of the file
drops them. What the locks protect is decided by their callers; the embedded server in streams/server.py is one.
"""

import fcntl
import os
import re
from pathlib import Path

import attrs

from models.errors import StoreError, StoreUnwritable

NETWORK_TYPES = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"),
    }
)
"""Types in /proc/mounts of which the locks, or SQLite's shared memory, can't be trusted between hosts."""


@attrs.frozen(kw_only=True)
class LockFile:
    """An open file that exists to be locked; the lock lives as long as any copy of the descriptor, in any process.

    Nothing else may be read from or written to the file. The descriptor is not inherited unless it is passed on.
    """

    path: Path
    fd: int

    @classmethod
    def open(cls, path: Path) -> "LockFile":
        """Open the file, creating it if needed, without locking it.

        Raises:
            StoreUnwritable: the file can't be created or opened.
        """
        try:
            return cls(path=path, fd=os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreUnwritable(path, f"can't open the lock file: {error.strerror}") from error

    def try_exclusive(self) -> bool:
        """Take the lock alone if that is possible at once; a shared lock of this object is lost either way."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take the lock together with others if nobody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def close(self) -> None:
        """Close this copy of the descriptor: the lock is released unless another process was given a copy."""
        os.close(self.fd)

    def release(self) -> None:
        """Unlock for every process that has a copy, if only for the moment of a spawn, and close."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)

    def is_open_in(self, pid: int, *, proc: Path = Path("/proc")) -> bool:
        """Whether the process ``pid`` has this file open; where /proc does not say, whether the process exists."""
        if not (proc / "self" / "fd").is_dir():
            return _is_alive(pid)
        mine = os.fstat(self.fd)
        try:
            return any(_is_same_file(entry, mine) for entry in (proc / str(pid) / "fd").iterdir())
        except OSError:
            return False  # it is gone, or another user's and then none that we may signal

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self.fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(self.path, f"files can't be locked here: {error.strerror}") from error
        return True


def refuse_network_filesystem(path: Path, mounts_text: str) -> None:
    """Refuse a path on a network file system.

    Args:
        path: an absolute path without symbolic links; it need not exist.
        mounts_text: the content of /proc/mounts; empty where there is none, which refuses nothing.

    Raises:
        StoreError: naming the type and the mount point.
    """
    best = (0, Path("/"), "")
    for line in mounts_text.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount_point = Path(_unescape(fields[1]))
        # A later line covers an earlier one of the same mount point, hence >=.
        if path.is_relative_to(mount_point) and len(mount_point.parts) >= best[0]:
            best = (len(mount_point.parts), mount_point, fields[2])
    _, mount_point, kind = best
    if kind in NETWORK_TYPES:
        problem = f"{mount_point} is a network file system ({kind}), where locks can't be trusted; use a local disk"
        raise StoreError(path, problem)


def read_mounts(path: Path = Path("/proc/mounts")) -> str:
    """The content of /proc/mounts, empty where the platform has none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescape(field: str) -> str:
    """The kernel writes blanks and backslashes of a mount point as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _is_same_file(entry: Path, mine: os.stat_result) -> bool:
    try:
        return os.path.samestat(entry.stat(), mine)
    except OSError:
        return False  # closed between the listing and this look


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
