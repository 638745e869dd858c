"""Files that outlive a crash: whole on the disk once a function returns, and one process at a time that changes them.

Errors of the system pass as they are; who calls says what could not be kept. state/ keeps rows, this is for what is a
file: models/registry.py.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.005


def make_folder(path: Path) -> None:
    """Makes a folder with those above it, unless they are there."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in place; its name is on the disk once its folder is synced."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file: who reads sees all of the former content or all of this one. Its writers share a lock."""
    made = path.with_name(f"{path.name}.new")
    write_file(made, content)
    made.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, kept: bytes, line: bytes) -> None:
    """Writes a line behind ``kept``, which is what the file holds but for what a crash has cut off."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.truncate(len(kept))
        file.write((b"" if kept[-1:] in (b"", b"\n") else b"\n") + line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[None]:
    """Holds a lock (flock) on a file that exists to be locked; it ends with the process, however that ends.

    Raises:
        BlockingIOError: another one has held it for all of ``wait_s``.
    """
    with path.open("ab") as file:
        deadline = time.monotonic() + wait_s
        while not _try(file.fileno()):
            if time.monotonic() >= deadline:
                raise BlockingIOError(None, f"another process has held {path.name} for {wait_s:g} s")
            time.sleep(POLL_S)
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
