"""Files in which decisions wait while NATS can't take them, and what of a damaged one can still be read.

A file belongs to the process that holds its flock; what a killed process left is adopted by the next one. A record has
its length and checksum in front, so that a torn end is found and cut off. Nothing is synced: what was appended survives
the process, not a power cut. Every function blocks on the disk, so streams/decision_log.py calls them in a thread, one
at a time.
"""

import contextlib
import io
import itertools
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from models.errors import StoreError, StoreUnwritable
from streams.locks import LockFile

log = logging.getLogger(__name__)

SUFFIX = ".spool"
MAGIC = b"TIPSPOOL"
HEAD = struct.Struct(">8sQ")
"""The file's head: what it is, and where the first record begins that is not yet stored."""
FRAME = struct.Struct(">IIBH")
"""A record's head: the length of what follows, a CRC-32 of all but these two, the lengths of its id and its subject."""
LENGTHS = struct.Struct(">BH")
RECORD_LIMIT_BYTES = 64 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Record:
    """A decision on its way; its id is its ``Nats-Msg-Id``."""

    id: str
    subject: str
    payload: bytes


def size_on_disk(record: Record) -> int:
    """What a record takes there; its id and subject are ASCII."""
    return FRAME.size + len(record.id) + len(record.subject) + len(record.payload)


def encode_record(record: Record) -> bytes:
    """Lays out a record as it lies in the file."""
    identity, subject = record.id.encode(), record.subject.encode()
    body = identity + subject + record.payload
    return FRAME.pack(len(body), _checksum(body, len(identity), len(subject)), len(identity), len(subject)) + body


def read_records(file: io.BufferedIOBase) -> Iterator[tuple[Record, int]]:
    """Reads records, each with the bytes it takes, up to the end or to the first one that is not whole."""
    while len(head := file.read(FRAME.size)) == FRAME.size:
        length, checksum, id_length, subject_length = FRAME.unpack(head)
        if not id_length + subject_length <= length <= RECORD_LIMIT_BYTES:
            return
        body = file.read(length)
        if len(body) < length or _checksum(body, id_length, subject_length) != checksum:
            return
        at = id_length + subject_length
        identity, subject = body[:id_length].decode("utf-8", "replace"), body[id_length:at].decode("utf-8", "replace")
        yield Record(id=identity, subject=subject, payload=body[at:]), FRAME.size + length


class Spool:
    """One file, first in, first out. The methods are for one thread at a time.

    Reading moves nothing; ``forget`` does, and notes in the file how far it came.
    """

    def __init__(self, lock: LockFile, file: io.FileIO) -> None:
        self._lock = lock
        self._file = file
        self._begin = self._end = HEAD.size
        self._sizes: list[int] = []
        self._written_ns = 0
        self.count = 0
        self.is_torn = False

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._lock.path

    @property
    def size_bytes(self) -> int:
        """The size of the file, with what was read already."""
        return self._end

    @classmethod
    def create(cls, folder: Path) -> "Spool":
        """Makes a new, empty file of this process.

        Raises:
            StoreError: it can't be made or locked.
        """
        path = folder / f"decisions-{uuid.uuid4().hex}{SUFFIX}"
        with contextlib.ExitStack() as undo:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = LockFile.open(path)
                undo.callback(lock.close)
                undo.callback(path.unlink, missing_ok=True)
                lock.try_exclusive()  # adopters pass an empty file by, so nobody else has it
                spool = cls(lock, undo.enter_context(path.open("r+b", buffering=0)))
                spool._write_at(0, HEAD.pack(MAGIC, HEAD.size))
            except OSError as error:
                raise StoreUnwritable(folder, f"decisions can't be kept ({error.strerror})") from error
            undo.pop_all()
        return spool

    @classmethod
    def adopt(cls, folder: Path) -> list["Spool"]:
        """Takes over the files of processes that are gone, the oldest first; a torn end is cut off.

        A file that is not a spool, or can't be opened, is left as it is.
        """
        found = [spool for path in folder.glob(f"decisions-*{SUFFIX}") if (spool := cls._adopt_one(path))]
        return sorted(found, key=lambda spool: spool._written_ns)

    @classmethod
    def _adopt_one(cls, path: Path) -> "Spool | None":
        with contextlib.ExitStack() as undo:
            try:
                if not _has_head(path):
                    return None
                lock = LockFile.open(path)
                undo.callback(lock.close)
                if not (lock.try_exclusive() and _has_head(path)):
                    return None
                spool = cls(lock, undo.enter_context(path.open("r+b", buffering=0)))
                spool._scan()
            except (OSError, StoreError) as error:
                log.warning("a spool can't be adopted", extra={"fields": {"path": str(path), "error": str(error)}})
                return None
            undo.pop_all()
        return spool

    def append(self, records: Iterable[Record]) -> None:
        """Adds records at the end: all of them, or none.

        Raises:
            StoreUnwritable: the disk is full or failing.
        """
        encoded = [encode_record(record) for record in records]
        try:
            self._write_at(self._end, b"".join(encoded))
        except OSError as error:
            raise StoreUnwritable(self.path, f"decisions can't be kept ({error.strerror})") from error
        self._end += sum(map(len, encoded))
        self.count += len(encoded)

    def read(self, max_count: int, max_bytes: int) -> Sequence[Record]:
        """Reads the first records, at least one if there is any.

        Raises:
            StoreUnwritable: the disk is failing.
        """
        found: list[Record] = []
        self._sizes = []
        try:
            with self._open_to_read() as file:
                file.seek(self._begin)
                for record, size in itertools.islice(read_records(file), min(max_count, self.count)):
                    if found and sum(self._sizes) + size > max_bytes:
                        break
                    found.append(record)
                    self._sizes.append(size)
        except OSError as error:
            raise StoreUnwritable(self.path, f"decisions can't be read ({error.strerror})") from error
        if not found:  # the rest was damaged while it lay there
            self.is_torn = self.is_torn or self.count > 0
            self.count = 0
        return found

    def forget(self) -> None:
        """Leaves out what was read last; the rest is what an adopter would find.

        Raises:
            StoreUnwritable: the disk is failing.
        """
        self._begin += sum(self._sizes)
        self.count -= len(self._sizes)
        self._sizes = []
        try:
            self._write_at(0, HEAD.pack(MAGIC, self._begin))
        except OSError as error:
            raise StoreUnwritable(self.path, f"decisions can't be kept ({error.strerror})") from error

    def close(self) -> None:
        """Closes the file, and removes it when nothing waits in it."""
        if not self.count:
            with contextlib.suppress(OSError):  # an empty one that stays is removed by who adopts it
                self.path.unlink()
        self._file.close()
        self._lock.close()

    def _open_to_read(self) -> io.BufferedReader:
        """The same file once more, even if somebody has removed it."""
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    def _scan(self) -> None:
        """Counts the whole records of a file that another process wrote, and cuts off what follows them."""
        with self._open_to_read() as file:
            _, begin = HEAD.unpack(file.read(HEAD.size))
            stat = os.fstat(file.fileno())
            size, self._written_ns = stat.st_size, stat.st_mtime_ns
            self._begin = self._end = min(max(begin, HEAD.size), size)
            file.seek(self._begin)
            for _, length in read_records(file):
                self.count += 1
                self._end += length
        if self._end < size:
            self.is_torn = True
            self._file.truncate(self._end)

    def _write_at(self, at: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written


def _checksum(body: bytes, id_length: int, subject_length: int) -> int:
    return zlib.crc32(body, zlib.crc32(LENGTHS.pack(id_length, subject_length)))


def _has_head(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD.size)
    return len(head) == HEAD.size and head.startswith(MAGIC)


class Spools:
    """All that waits on disk: the files that other processes left, oldest first, then this one's own.

    Args:
        folder: where the files are.
        limit_bytes: what all of them together may take.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._spools: list[Spool] = []
        self._own: Spool | None = None
        self.torn_count = 0

    @property
    def count(self) -> int:
        """Records that wait."""
        return sum(spool.count for spool in self._spools)

    @property
    def size_bytes(self) -> int:
        """What the files take."""
        return sum(spool.size_bytes for spool in self._spools)

    def adopt(self) -> int:
        """Takes over what processes left that are gone; returns the records in it."""
        for spool in Spool.adopt(self._folder):
            self.torn_count += spool.is_torn
            self._spools.append(spool)
        return self.count

    def append(self, records: Sequence[Record]) -> bool:
        """Adds records behind all others: all of them, or none, when there is no room.

        Raises:
            StoreError: the disk is full or failing.
        """
        if self.size_bytes + sum(map(size_on_disk, records)) > self._limit_bytes:
            return False
        if self._own is None:
            self._own = Spool.create(self._folder)
            self._spools.append(self._own)
        self._own.append(records)
        return True

    def read(self, max_count: int, max_bytes: int) -> Sequence[Record]:
        """Reads the first records of the first file.

        Raises:
            StoreError: the disk is failing.
        """
        if not self._spools:
            return []
        first = self._spools[0]
        records = first.read(max_count, max_bytes)
        if not records:
            self.torn_count += first.is_torn
            self._drop_empty()
        return records

    def forget(self) -> None:
        """Leaves out what was read last, and removes a file in which nothing waits any more.

        Raises:
            StoreError: the disk is failing.
        """
        self._spools[0].forget()
        self._drop_empty()

    def close(self) -> None:
        """Lets go of all files; what waits in them is adopted by the next process."""
        for spool in self._spools:
            spool.close()
        self._spools, self._own = [], None

    def _drop_empty(self) -> None:
        for spool in [spool for spool in self._spools if not spool.count]:
            self._spools.remove(spool)
            if spool is self._own:
                self._own = None
            spool.close()
