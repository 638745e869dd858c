"""Declarations of row tables."""

import datetime as dt
from typing import Any

import attrs
import pytest

from models.errors import DeclarationError, PayloadError
from state.tables import Table


@attrs.frozen(kw_only=True)
class Profile:
    name: str = ""
    seen_at: dt.datetime | None = None


@attrs.frozen(kw_only=True)
class Counts:
    good: int = 0
    bad: int = 0


@attrs.define
class Mutable:
    name: str = ""


@attrs.frozen
class Required:
    count: int


@attrs.frozen
class Flag:
    is_on: bool = False


@attrs.frozen
class FlagAsNumber:
    count: int = False


@attrs.frozen
class Started:
    count: int = 1


@attrs.frozen
class Made:
    count: int = attrs.field(factory=int)


class Plain:
    name: str = ""


def test_table_describes_itself() -> None:
    """Name, row class, kind and fields are what was declared, rows the default kind."""
    table, counters = Table("profiles", Profile), Table("counts", Counts, kind="counters")
    assert (table.name, table.row, table.kind) == ("profiles", Profile, "rows")
    assert table.fields == {"name", "seen_at"}
    assert repr(counters) == "Table('counts', Counts, kind='counters')"


@pytest.mark.parametrize("name", ["a", "a1_b", "a" * 64])
def test_table_takes_a_plain_name(name: str) -> None:
    """Small letters, digits and underscores after a letter make a name."""
    assert Table(name, Profile).name == name


@pytest.mark.parametrize("name", ["", "A", "1a", "_a", "a-b", "a b", "a.b", "../a", "ä", "a\n", "a" * 65])
def test_table_refuses_another_name(name: str) -> None:
    """Anything else is refused with the name and the rule."""
    with pytest.raises(DeclarationError, match=r"name: expected \[a-z\]\[a-z0-9_\]") as caught:
        Table(name, Profile)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("row", [Mutable, Plain, dict, "Profile", None])
def test_table_refuses_a_row_that_is_no_frozen_record(row: Any) -> None:
    """A row is a frozen attrs class: a mutable one could change after it was written."""
    with pytest.raises(DeclarationError, match="row: expected a frozen attrs class, got"):
        Table("profiles", row)


@pytest.mark.parametrize("row", [Required, Profile, Made, Flag, FlagAsNumber, Started])
def test_counters_table_refuses_fields_that_do_not_add_up(row: Any) -> None:
    """Each field of a counters row is an int that defaults to 0, for the store starts a missing one there."""
    with pytest.raises(DeclarationError, match=r"field '\w+': a counter is an int that defaults to 0$"):
        Table("counts", row, kind="counters")


def test_table_encodes_and_decodes_its_rows() -> None:
    """A row comes back equal, and fields of another version are ignored."""
    table = Table("profiles", Profile)
    row = Profile(name="\x00 ü 🙂", seen_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert table.decode(table.encode(row)) == row
    assert table.decode(b'{"name":"a","gone":1}') == Profile(name="a")


def test_table_encodes_no_other_class() -> None:
    """A row of another class, even a similar or derived one, is a TypeError that names both."""
    with pytest.raises(TypeError, match="table 'profiles': expected a Profile, got Counts"):
        Table("profiles", Profile).encode(Counts())  # type: ignore[arg-type]


def test_table_refuses_a_stored_row_of_another_shape() -> None:
    """A stored row that does not fit the class is an error with its path."""
    with pytest.raises(PayloadError, match="^name: expected str, got int$"):
        Table("profiles", Profile).decode(b'{"name":1}')
