"""Server-sent events: the same events however the bytes are cut, and nothing but their data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.sse import EventParser

LINES = st.sampled_from(["data: a", "data:b", "data", "data:  c", ": comment", "event: x", "id: 1", "datax: y", "", ""])


@pytest.mark.parametrize(
    ("text", "events"),
    [
        pytest.param("data: a\n\ndata: b\n\n", ["a", "b"], id="two"),
        pytest.param("data: a\ndata: b\n\n", ["a\nb"], id="two-lines"),
        pytest.param("data:a\r\n\r\ndata: b\r\r", ["a", "b"], id="other-line-ends"),
        pytest.param(": ping\n\nevent: x\nid: 1\nretry: 5\n\n", [], id="no-data"),
        pytest.param("data\n\n", [""], id="without-colon"),
        pytest.param("data:  a\n\n", [" a"], id="one-space-is-taken"),
        pytest.param("\ufeffdata: a\n\n", ["a"], id="byte-order-mark"),
        pytest.param("data: a\n", [], id="unfinished"),
    ],
)
def test_parser_finds_the_data_of_events(text: str, events: list[str]) -> None:
    """Data lines up to an empty line are one event; everything else is left out."""
    assert EventParser().feed(text.encode()) == [event.encode() for event in events]


@given(st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r", "\r\n"])), max_size=30), st.data())
def test_parser_does_not_care_how_bytes_are_cut(lines: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whatever the pieces, the events are those of the whole."""
    content = "".join(line + end for line, end in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=20)))
    parser, pieces = EventParser(), zip([0, *cuts], [*cuts, len(content)], strict=True)
    events = [event for start, stop in pieces for event in parser.feed(content[start:stop])]
    assert events == EventParser().feed(content)


@given(st.lists(st.text().map(lambda text: " ".join(text.splitlines())), max_size=10))
def test_parser_gives_back_what_was_sent(texts: list[str]) -> None:
    """Each text that is sent as an event arrives as it was."""
    content = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    assert EventParser().feed(content) == [text.encode() for text in texts]
