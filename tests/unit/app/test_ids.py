"""Ids: how they are minted."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ids import new_id, uuid7
from models.codec import is_id


def test_uuid7_equals_the_example_of_the_rfc() -> None:
    """The time and random bits of RFC 9562, appendix A.6, give the id printed there."""
    random_bytes = bytes.fromhex("0CC3 18C4 DC0C 0C07 398F")
    assert uuid7(0x017F22E279B0, random_bytes) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(now_ms=st.integers(0, 2**48 - 1), random_bytes=st.binary(min_size=10, max_size=10))
def test_uuid7_is_a_version_7_id_of_its_time(now_ms: int, random_bytes: bytes) -> None:
    """Whatever the random bytes, version and variant are right and the time can be read back."""
    made = uuid.UUID(uuid7(now_ms, random_bytes))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == now_ms


def test_uuid7_sorts_by_time() -> None:
    """An id of a later millisecond is greater as text, even with the least random bytes."""
    assert uuid7(1_000, b"\xff" * 10) < uuid7(1_001, b"\x00" * 10)


def test_uuid7_refuses_too_little_randomness() -> None:
    """A wrong number of random bytes is an error and never a short id."""
    with pytest.raises(ValueError, match="expected 10 bytes, got 9"):
        uuid7(0, b"\x00" * 9)


def test_new_id_differs_each_time_and_is_valid() -> None:
    """Ids made in the same millisecond differ, and each one would be accepted back."""
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(one) for one in ids)
