"""The header in which a caller says how long it waits."""

import pytest

from app.deadlines import read_deadline_s
from models.errors import RequestError


@pytest.mark.parametrize("header", ["0", "60001", "-1", "1.5", "x", "", "٣", "1" * 50])
def test_a_deadline_that_is_none_is_refused(header: str) -> None:
    """400 names the header, and what would be accepted."""
    with pytest.raises(RequestError, match="X-Deadline-Ms: expected milliseconds from 1 to 60000") as caught:
        read_deadline_s(header, default_ms=40)
    assert caught.value.status == 400


def test_the_deadline_is_in_milliseconds() -> None:
    """A route's own without the header."""
    found = [read_deadline_s(header, default_ms=40) for header in (None, "1", "60000")]
    assert found == [0.04, 0.001, 60.0]
