"""Which worker processes of a STATE_DIR live, by locks that end with their holders.

Each process holds the lock of a file of its own in ``STATE_DIR/workers``; the file's name is the process's name. A file
whose lock can be taken is of a process that is gone, and is removed. ``owner.lock`` beside them says who owns the
store; the owner sets its time every second, so that others see when it has stopped moving.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from models.errors import StoreUnwritable
from streams.locks import LockFile

FOLDER = "workers"


class Presence:
    """This process's place among those of its STATE_DIR; ``name`` is new at every start."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Is seen as alive inside.

        Raises:
            StoreUnwritable: the folder can't be written.
        """
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreUnwritable(self._folder, f"can't create the folder: {error.strerror}") from error
        lock = LockFile.open(self._folder / self.name)
        lock.try_exclusive()
        try:
            yield
        finally:
            lock.path.unlink(missing_ok=True)
            lock.close()

    def alive(self) -> Collection[str]:
        """The names of all processes that live, this one among them."""
        return {path.name for path in self._folder.iterdir() if path.name == self.name or _is_held(path)}


def _is_held(path: Path) -> bool:
    """Whether a process holds the file's lock; removes the file of one that is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # removed just now
    with contextlib.closing(LockFile(path=path, fd=fd)) as lock:
        if not lock.try_exclusive():
            return True
        path.unlink(missing_ok=True)
        return False


def touch(lock: LockFile) -> None:
    """Says that the owner moves."""
    os.utime(lock.fd)


def age_s(lock: LockFile) -> float:
    """Seconds since the owner moved."""
    return max(0.0, time.time() - os.fstat(lock.fd).st_mtime)
