"""Server-sent events from bytes, without I/O: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing.

This module owns the framing alone: it gives the data of each event, as bytes, in whatever pieces the bytes come. What
the data means is the business of prompts/answers.py; how many bytes may come at all is checked where they are read.
Only ``data`` counts: names, ids and retry times of events, and comments, have no meaning in a stream of completions.
"""

_BOM = b"\xef\xbb\xbf"


class EventParser:
    """The events of one stream."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._is_first_line = True
        self._skips_lf = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Takes the next bytes, and returns the data of the events that end in them."""
        if not chunk:
            return []
        if self._skips_lf:  # a line ends with CR, LF or both, and the two may come apart
            chunk = chunk.removeprefix(b"\n")
        self._skips_lf = chunk.endswith(b"\r")
        first, *others = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line += first
        events = []
        for rest in others:
            events += self._end_line()
            self._line += rest
        return events

    def _end_line(self) -> list[bytes]:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            line = line.removeprefix(_BOM)
            self._is_first_line = False
        if not line:
            event = [b"\n".join(self._data)] if self._data else []
            self._data.clear()
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return []
