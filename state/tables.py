"""Declarations of the rows that handlers write: one Table, one attrs class, one owner.

A table of kind ``rows`` holds one row a key, put whole by the lane of that key. A table of kind ``counters`` holds rows
of integers that any lane may add to; sums are made at commit, so no increment is ever lost. The two kinds don't mix: a
whole row put beside increments would silently undo some of them.
"""

import re
from typing import Any, Generic, Literal, TypeVar

import attrs

from models.codec import decoder_for, encode_json
from models.errors import DeclarationError

RowT = TypeVar("RowT")
Kind = Literal["rows", "counters"]

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Table(Generic[RowT]):
    """A table of typed rows.

    Args:
        name: matches ``[a-z][a-z0-9_]*``; it is the table's identity in the store and in ``/state/{table}/{key}``.
        row: a frozen attrs class; a counters table's fields are all ``int`` and default to 0.
        kind: ``rows`` (put, get, delete by the lane that owns the key) or ``counters`` (add, by any lane).

    Raises:
        DeclarationError: the name, the class or its fields don't fit.
    """

    def __init__(self, name: str, row: type[RowT], *, kind: Kind = "rows") -> None:
        where = f"table {name!r}"
        if not NAME.fullmatch(name):
            raise DeclarationError(where, f"name: expected {NAME.pattern}, got {name!r}")
        if not attrs.has(row) or not _is_frozen(row):
            raise DeclarationError(where, f"row: expected a frozen attrs class, got {row!r}")
        if kind == "counters":
            for field in attrs.fields(row):
                if field.type is not int or type(field.default) is not int or field.default != 0:
                    raise DeclarationError(where, f"field {field.name!r}: a counter is an int that defaults to 0")
        self.name = name
        self.row = row
        self.kind = kind
        self.fields = frozenset(field.name for field in attrs.fields(row))
        self.decode = decoder_for(row)

    def encode(self, row: RowT) -> bytes:
        """Encodes a row as JSON.

        Raises:
            TypeError: the value is no row of this table, or holds something that JSON can't.
        """
        if type(row) is not self.row:
            raise TypeError(f"table {self.name!r}: expected a {self.row.__name__}, got {type(row).__name__}")
        return encode_json(row)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {self.row.__name__}, kind={self.kind!r})"


AnyTable = Table[Any]


def _is_frozen(cls: type) -> bool:
    """Whether assignment to an attribute of an instance is refused; attrs marks such classes by their __setattr__."""
    return "frozen" in cls.__setattr__.__name__
