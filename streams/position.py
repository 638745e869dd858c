"""How far a durable has got, decided without I/O.

The floor is the highest message up to which every matching one has its outcome; outcomes above it have marks of their
own. The server's own floor is not trusted: its acks are not durable at once, and sequences can come again after a loss
of data, so a floor is a sequence and that message's timestamp, within one creation of the stream.
"""

import collections
from typing import Any

import attrs

from models.errors import AttachRefused
from state.store import Floor


@attrs.define(eq=False)
class Place:
    """A delivered message's place in the stream; settled once its outcome is part of a commit."""

    seq: int
    ts: int
    is_settled: bool = False


class Position:
    """The floor, the marks above it, and the messages delivered since the last attach.

    Args:
        floor: the committed floor.
        marks: timestamps of messages above the floor that have their outcome, by sequence.
    """

    def __init__(self, floor: Floor, marks: dict[int, int]) -> None:
        self.floor = floor
        self.marks = marks
        self._window: collections.deque[Place] = collections.deque()

    def restart(self) -> None:
        """Forgets what was delivered: an attach makes the server deliver again from the floor."""
        self._window.clear()

    def is_done(self, seq: int, ts: int) -> bool:
        """Whether a message has its outcome already.

        Raises:
            AttachRefused: the sequence was used before by another message, so the stream has lost data.
        """
        known_ts = self.marks.get(seq)
        if known_ts is not None and known_ts != ts:
            raise lost(self.floor, f"sequence {seq} came again with another message")
        return known_ts is not None or seq <= self.floor.seq

    def append(self, place: Place) -> None:
        """Takes note of a delivery; deliveries come in stream order within an attach."""
        self._window.append(place)

    @property
    def window_count(self) -> int:
        """Deliveries since the lowest one that is not settled; they take memory, whether settled or not."""
        return len(self._window)

    def advance(self) -> Floor:
        """Computes the floor once every settled message is committed."""
        seq, ts = self.floor.seq, self.floor.ts
        while self._window and self._window[0].is_settled:
            place = self._window.popleft()
            if place.seq > seq:
                seq, ts = place.seq, place.ts
        if seq == self.floor.seq:
            return self.floor
        floor = self.floor
        return Floor(durable=floor.durable, stream=floor.stream, created=floor.created, seq=seq, ts=ts)

    def committed(self, floor: Floor, marks: dict[int, int]) -> None:
        """Takes over what a commit made real."""
        has_moved = floor.seq > self.floor.seq
        self.floor = floor
        self.marks.update(marks)
        if has_moved:
            self.marks = {seq: ts for seq, ts in self.marks.items() if seq > floor.seq}


class SharedPosition:
    """The position of a durable that several processes consume: the server's own floor, which only their acks move.

    Every ack follows a commit, so that all up to that floor have their outcome. Above it, the store's marks tell.

    Args:
        floor: the committed floor.
        is_stored: whether the store has it.
    """

    def __init__(self, floor: Floor, *, is_stored: bool) -> None:
        self.floor = floor
        self.window_count = 0
        self._newest = floor
        self._is_stored = is_stored

    def restart(self) -> None:
        """An attach changes nothing: what was delivered is still ours."""

    def is_done(self, seq: int, ts: int) -> bool:
        """Whether a message has its outcome for certain; one above the floor may have it all the same."""
        return seq <= self.floor.seq

    def append(self, place: Place) -> None:
        """Deliveries don't move the floor."""

    def note_server_floor(self, seq: int, ts: int) -> None:
        """Takes the server's floor and the timestamp of the message there."""
        if seq > self._newest.seq:
            self._newest = attrs.evolve(self.floor, seq=seq, ts=ts)

    def advance(self) -> Floor | None:
        """The floor to store, or None while there is no newer one."""
        return self._newest if self._newest.seq > self.floor.seq or not self._is_stored else None

    def committed(self, floor: Floor, marks: dict[int, int]) -> None:
        """Takes over what a commit made real."""
        self.floor, self._is_stored = floor, True


def lost(floor: Floor, what: str) -> AttachRefused:
    """The error for a stream that is no longer the one that the store has read."""
    return AttachRefused(
        f"stream {floor.stream} is not the one this store has read up to sequence {floor.seq}: {what}. Restore the "
        "stream, or accept it with 'streams accept-loss'; until then nothing of it is handled"
    )


def check_stream(floor: Floor, info: dict[str, Any], floor_ts: int | None) -> None:
    """Checks that a stream is still the one that was read up to the floor.

    Args:
        info: what the server says of the stream.
        floor_ts: the timestamp of the message at the floor now; None when the stream no longer keeps it.

    Raises:
        AttachRefused: it was made anew, lost its end, or holds another message at the floor.
    """
    if info["created"] != floor.created:
        raise lost(floor, f"it was created at {info['created']}, not at {floor.created}")
    last = info["state"]["last_seq"]
    if last < floor.seq:
        raise lost(floor, f"it ends at sequence {last}")
    if floor_ts is not None and floor_ts != floor.ts:
        raise lost(floor, f"the message at sequence {floor.seq} is another one")
