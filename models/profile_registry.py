"""The recommender's list of profile features, read from its TypeScript source and compared with ours.

This module owns the search for the list, and the comparison; it decides without I/O. Features are found in an array of
objects with a name each, and in an object that has them by name, also in parts that are spread into the list from
constants of the same file. Of several lists the one counts that has most of our names and the least besides.

It refuses a list of which an entry can't be told without running the file. app/cli/schema.py prints the differences.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from models.errors import ContractError
from models.profile_schema import PROFILE, ProfileFeature
from models.typescript import Group, Item, Token, groups_of, is_key, is_sign, is_word, parse, parts_of, without_modifier

Problem = Literal["missing there", "unknown there", "dtype differs", "twice there"]

_NAME_KEYS = ("name", "key", "id", "feature")
_TYPE_KEYS = ("dtype", "type", "valuetype", "value_type", "datatype", "data_type", "kind")
_DTYPES: Mapping[str, str] = {
    **dict.fromkeys(("float", "double", "float32", "float64", "f32", "f64", "real", "decimal"), "float"),
    **dict.fromkeys(("int", "integer", "int32", "int64", "i32", "i64"), "int"),
    **dict.fromkeys(("bool", "boolean"), "bool"),
    **dict.fromkeys(("number", "numeric"), "number"),
    **dict.fromkeys(("string", "str", "text"), "string"),
}
_FITTING = {"float": ("float", "number"), "int": ("int", "number"), "bool": ("bool",)}
_DECLARING = ("const", "let", "var")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_Constants = Mapping[str, Sequence[Item]]


@attrs.frozen(kw_only=True)
class Entry:
    """A feature as the other side declares it.

    Args:
        dtype: one of ours, ``number``, or the word that stands there; empty when none does.
        line: where it is declared.
        is_short: nothing but a type stands behind the name, as in an interface.
        problem: why it can't be told; the name is empty then.
    """

    name: str
    dtype: str
    line: int
    is_short: bool = False
    problem: str = ""


@attrs.frozen(kw_only=True)
class Difference:
    """A feature in which the two sides differ; ``ours`` and ``theirs`` are dtypes, empty where there is none."""

    problem: Problem
    name: str
    ours: str
    theirs: str
    line: int | None

    def __str__(self) -> str:
        facts = {"missing there": self.ours, "unknown there": self.theirs, "twice there": self.theirs}
        fact = facts.get(self.problem, f"here {self.ours}, there {self.theirs or 'none'}")
        return f"{self.problem}: {self.name} ({fact})"


def compare(source: str, ours: Sequence[ProfileFeature] = PROFILE) -> list[Difference]:
    """Compares the names and dtypes of a TypeScript file's list with ours: ours first, in our order.

    TypeScript's ``number`` fits a float and an int alike.

    Raises:
        ContractError: the file is no TypeScript, has no list, or a list that can't be told; names the line.
    """
    theirs: dict[str, Entry] = {}
    found: list[Difference] = []
    for entry in read_entries(source, {feature.name for feature in ours}):
        if entry.name in theirs:
            found.append(_difference("twice there", entry.name, None, entry))
        theirs.setdefault(entry.name, entry)
    dtypes = {feature.name: feature.dtype for feature in ours}
    for name, dtype in dtypes.items():
        if name not in theirs:
            found.append(_difference("missing there", name, dtype, None))
        elif theirs[name].dtype not in _FITTING[dtype]:
            found.append(_difference("dtype differs", name, dtype, theirs[name]))
    found += [_difference("unknown there", name, None, theirs[name]) for name in theirs if name not in dtypes]
    return found


def read_entries(source: str, known: Collection[str]) -> list[Entry]:
    """Finds the list of features of a TypeScript file.

    Args:
        known: our names, by which the list is told from others of the file.

    Raises:
        ContractError: as ``compare`` says.
    """
    root = parse(source)
    constants = dict(_constants_of(root))
    lists = [_Reading(constants, known).entries_of(group) for group in groups_of(root) if group.opening in ("[", "{")]
    lists = [entries for entries in lists if any(_counts(entry, known) for entry in entries)]
    if not lists:
        raise _nothing_found(root, known)
    chosen = max(lists, key=lambda entries: _rank(entries, known))
    for entry in chosen:
        if entry.problem:
            raise ContractError(entry.line, entry.problem)
    return chosen


def _nothing_found(root: Group, known: Collection[str]) -> ContractError:
    """Says what was looked for; where one of our names stands, that this is none."""
    items = (item for group in groups_of(root) for item in group.items)
    ours = [item for item in items if isinstance(item, Token) and item.text in known]
    first = min(ours, key=lambda token: token.line, default=None)
    line, where = (1, "") if first is None else (first.line, f", though {first.text} stands here")
    expected = "an array of objects with name and dtype, or an object of them by name"
    return ContractError(line, f"no feature was found{where}: expected {expected}")


def _counts(entry: Entry, known: Collection[str]) -> bool:
    """Whether a list with this entry may be one of features: any interface has names with types."""
    return bool(entry.name) and (not entry.is_short or entry.name in known)


def _rank(entries: Sequence[Entry], known: Collection[str]) -> tuple[int, int, int]:
    """Most of our names; then the fewest others; then what is more than a type. Without any of ours, the longest."""
    overlap = len({entry.name for entry in entries} & set(known))
    return overlap, -len(entries) if overlap else len(entries), sum(not entry.is_short for entry in entries)


def _difference(problem: Problem, name: str, ours: str | None, theirs: Entry | None) -> Difference:
    dtype, line = ("", None) if theirs is None else (theirs.dtype, theirs.line)
    return Difference(problem=problem, name=name, ours=ours or "", theirs=dtype, line=line)


def _constants_of(root: Group) -> Iterator[tuple[str, Sequence[Item]]]:
    """The file's constants by name: what stands behind the ``=`` of each."""
    items = root.items
    for place, item in enumerate(items[:-1]):
        if is_word(item, *_DECLARING) and is_word(name := items[place + 1]):
            after = range(place + 1, len(items))
            end = next((n for n in after if is_sign(items[n], "=", ";") or is_word(items[n], *_DECLARING)), len(items))
            assert isinstance(name, Token)
            yield name.text, items[end + 1 : end + 12]


@attrs.frozen
class _Reading:
    """Reads one list; each array and object of it once, so that constants that name each other come to an end."""

    constants: _Constants
    known: Collection[str]
    seen: set[int] = attrs.field(factory=set, init=False)

    def entries_of(self, group: Group) -> list[Entry]:
        """The features of an array or an object, those of arrays and objects in it included."""
        if id(group) in self.seen:
            return []
        self.seen.add(id(group))
        read = self._of_element if group.opening == "[" else self._of_property
        return [entry for part in parts_of(group) if part for entry in read(part)]

    def _of_element(self, part: Sequence[Item]) -> list[Entry]:
        if is_sign(part[0], "..."):
            return self._of_spread(part)
        value = self._value_of(part)
        found = [] if value is None else self._of_literal(value, None)
        return found or self._untold(part[0].line, _arguments_of(part))

    def _of_property(self, part: Sequence[Item]) -> list[Entry]:
        if is_sign(part[0], "..."):
            return self._of_spread(part)
        property_ = _property_of(part)
        if property_ is None:
            return []
        key, items = property_
        value = self._value_of(items)
        found = [] if value is None else self._of_literal(value, key)
        dtype = _type_of(items)
        if not found and dtype in _DTYPES.values():  # also a call that was given options: z.number({message: "…"})
            return [Entry(name=key.text, dtype=dtype, line=key.line, is_short=True)]
        return found or self._untold(key.line, [key])

    def _untold(self, line: int, names: Sequence[Item]) -> list[Entry]:
        """Something that has one of our names, but nothing that could be read as its type."""
        for name in names:
            if isinstance(name, Token) and name.text in self.known:
                problem = f"{name.text}: its dtype can't be told without running the file"
                return [Entry(name="", dtype="", line=line, problem=problem)]
        return []

    def _value_of(self, items: Sequence[Item]) -> Group | None:
        """A literal, or that of a constant of the file."""
        if len(items) == 1 and isinstance(items[0], Token) and is_word(items[0]):
            return _literal_of(self.constants.get(items[0].text, ()))
        return _literal_of(items)

    def _of_literal(self, value: Group, key: Token | None) -> list[Entry]:
        """An object is a feature when it has a type, or a name and no features in it."""
        if value.opening == "[":
            return self.entries_of(value)
        facts = self._facts_of(value)
        dtype = next((_type_of(facts[name]) for name in _TYPE_KEYS if name in facts), "")
        named = self._name_of(facts, value.line)
        if key is None and named is not None:
            return [attrs.evolve(named, dtype=dtype)] if dtype else self.entries_of(value) or [named]
        if key is not None and dtype:
            own = "" if named is None else named.name
            is_own = own and key.text not in self.known and (own in self.known or key.text.lower() != key.text)
            name = own if is_own else key.text
            return [Entry(name=name, dtype=dtype, line=key.line)]
        return self.entries_of(value)

    def _facts_of(self, value: Group) -> dict[str, Sequence[Item]]:
        """The properties of an object by name in lower case, those of constants spread into it included."""
        facts: dict[str, Sequence[Item]] = {}
        for part in parts_of(value):
            if len(part) > 1 and is_sign(part[0], "...") and isinstance(part[1], Token):
                common = _literal_of(self.constants.get(part[1].text, ()))
                facts |= {} if common is None else _own_facts(common)
        return facts | _own_facts(value)

    def _name_of(self, facts: Mapping[str, Sequence[Item]], line: int) -> Entry | None:
        """The name that an object gives itself: rather one that may be a key of JSON than one for people."""
        texts = {key: self._text_of(facts[key]) for key in _NAME_KEYS if key in facts}
        given = [text for text in texts.values() if text is not None]
        if given:
            name = next((text for text in given if _IDENTIFIER.fullmatch(text)), given[0])
            return Entry(name=name, dtype="", line=line)
        if not texts:
            return None
        key = next(iter(texts))
        problem = f"{key}: expected a name in quotes, got {_shown(facts[key])}"
        return Entry(name="", dtype="", line=facts[key][0].line if facts[key] else line, problem=problem)

    def _text_of(self, items: Sequence[Item]) -> str | None:
        if items and is_word(items[0]) and isinstance(items[0], Token):
            items = self.constants.get(items[0].text, ()) if not any(is_sign(item, ".") for item in items[1:2]) else ()
        first = items[0] if items else None
        return first.text if isinstance(first, Token) and first.kind == "text" else None

    def _of_spread(self, part: Sequence[Item]) -> list[Entry]:
        value = self._value_of(part[1:])
        if value is not None:
            return self.entries_of(value)
        problem = f"{_shown(part)}: expected a list of this file"
        return [Entry(name="", dtype="", line=part[0].line, problem=problem)]


def _own_facts(value: Group) -> dict[str, Sequence[Item]]:
    found = (_property_of(part) for part in parts_of(value))
    return {key.text.lower(): items for key, items in filter(None, found)}


def _property_of(part: Sequence[Item]) -> tuple[Token, Sequence[Item]] | None:
    """A property's key and what stands behind its colon; None for anything else."""
    part = without_modifier(part)
    if not is_key(part):
        return None
    key = part[0]
    assert isinstance(key, Token)
    return key, part[3:] if is_sign(part[1], "?") else part[2:]


def _literal_of(items: Sequence[Item]) -> Group | None:
    """The array or object that a value is, also as the first argument of a call (``feature({…})``)."""
    for item in items:
        if isinstance(item, Group):
            return _literal_of(item.items) if item.opening == "(" else item
        if not is_word(item) and not is_sign(item, "."):
            return None
    return None


def _arguments_of(items: Sequence[Item]) -> Sequence[Item]:
    """What a call is given."""
    return next((item.items for item in items if isinstance(item, Group) and item.opening == "("), ())


def _type_of(items: Sequence[Item]) -> str:
    """The dtype that a value names: a text, the end of ``Dtype.Float``, the call ``z.number().int()``, ``x | null``."""
    words = [""]
    for item in items:
        if isinstance(item, Group) or is_sign(item, "."):
            continue
        if item.kind == "sign" or item.text in ("as", "satisfies"):
            if words[-1] in ("null", "undefined") and is_sign(item, "|"):
                continue
            break
        words.append(item.text.lower())
    known = [_DTYPES[word] for word in words if word in _DTYPES]
    return known[-1] if known else words[-1]


def _shown(items: Sequence[Item]) -> str:
    """A value as it stands there, shortened."""
    texts = (item.text if isinstance(item, Token) else item.opening + "…" for item in items)
    return "".join(texts)[:40] or "nothing"
