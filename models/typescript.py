"""The literals of a TypeScript file: texts, words and signs in a tree of brackets.

This module owns the reading of a file as far as its data goes, and decides without I/O: comments are dropped, texts of
all three quotes and regular expressions are told apart, brackets are paired. It knows no statement, runs nothing, and
refuses only what no TypeScript is: brackets that don't pair, and texts and comments without an end.

models/profile_registry.py finds the features in the tree.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import attrs

from models.errors import ContractError

MAX_DEPTH = 100

Kind = Literal["text", "word", "sign"]

_PIECE = re.compile(
    r"""
    (?P<gap>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<word>[\w$@\#]+)
    | (?P<sign>\.\.\.|=>|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PATTERN = re.compile(r"/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/\w*")
_ESCAPE = re.compile(
    r"\\(?:u\{(?P<point>[0-9A-Fa-f]{1,6})\}|u(?P<unit>[0-9A-Fa-f]{4})|x(?P<byte>[0-9A-Fa-f]{2})|(?P<one>.))", re.DOTALL
)
_PAIRS = {"{": "}", "[": "]", "(": ")"}
_BEFORE_PATTERN = frozenset(("return", "typeof", "case", "in", "of", "new", "=>", *"([{,;:=!&|?+-*%<>~^"))
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}


@attrs.frozen
class Token:
    """A text without its quotes, a word (a name, a keyword or a number) or a sign; ``line`` counts from 1."""

    kind: Kind
    text: str
    line: int


@attrs.define
class Group:
    """What stands between two brackets; ``opening`` is the first of them, and empty for the whole file."""

    opening: str
    line: int
    items: "list[Item]" = attrs.field(factory=list)
    end_line: int = 0


Item: TypeAlias = Token | Group


def parse(source: str) -> Group:
    """Reads a file.

    Raises:
        ContractError: naming the line of a bracket without its pair, or of a text or comment without an end.
    """
    root = Group("", 1)
    stack = [root]
    for token in _tokens(source):
        if token.kind == "sign" and token.text in _PAIRS:
            if len(stack) > MAX_DEPTH:
                raise ContractError(token.line, f"brackets nested deeper than {MAX_DEPTH}")
            group = Group(token.text, token.line)
            stack[-1].items.append(group)
            stack.append(group)
        elif token.kind == "sign" and token.text in _PAIRS.values():
            closed = stack.pop()
            if _PAIRS.get(closed.opening) != token.text:
                opened = f"the {closed.opening} of line {closed.line} is open" if closed.opening else "nothing is open"
                raise ContractError(token.line, f"{token.text} without its pair: {opened}")
            closed.end_line = token.line
        else:
            stack[-1].items.append(token)
    if len(stack) > 1:
        raise ContractError(stack[-1].line, f"{stack[-1].opening} without its pair")
    return root


def groups_of(root: Group) -> Iterator[Group]:
    """Every group below ``root``, itself included, in no order that matters."""
    waiting = [root]
    while waiting:
        group = waiting.pop()
        yield group
        waiting.extend(item for item in group.items if isinstance(item, Group))


def parts_of(group: Group) -> Iterator[Sequence[Item]]:
    """The elements or properties of a group: between commas and semicolons, and where a line begins a property."""
    part: list[Item] = []
    for place, item in enumerate(group.items):
        if is_sign(item, ",", ";"):
            yield part
            part = []
            continue
        is_new_line = group.opening == "{" and part and _begins_line(part[-1], item)
        if is_new_line and is_key(without_modifier(group.items[place : place + 4])):
            yield part
            part = []
        part.append(item)
    yield part


def is_key(items: Sequence[Item]) -> bool:
    """Whether a property begins here: ``name:`` or ``name?:``, the name quoted or not."""
    if not items or not isinstance(items[0], Token) or items[0].kind == "sign":
        return False
    after = items[2:3] if len(items) > 1 and is_sign(items[1], "?") else items[1:2]
    return bool(after) and is_sign(after[0], ":")


def without_modifier(items: Sequence[Item]) -> Sequence[Item]:
    """A property without the ``readonly`` before its name; one whose name that is stays as it is."""
    return items[1:] if items and is_word(items[0], "readonly") and not is_key(items) else items


def is_sign(item: Item, *texts: str) -> bool:
    """Whether it is one of these signs."""
    return isinstance(item, Token) and item.kind == "sign" and item.text in texts


def is_word(item: Item, *texts: str) -> bool:
    """Whether it is one of these words, or a word at all when none is given."""
    return isinstance(item, Token) and item.kind == "word" and (not texts or item.text in texts)


def _begins_line(former: Item, item: Item) -> bool:
    """Whether a statement may end between the two without a sign, as TypeScript allows in types."""
    if isinstance(former, Group):
        return item.line > former.end_line
    return item.line > former.line and former.kind != "sign"


def _tokens(source: str) -> Iterator[Token]:
    starts = [match.end() for match in re.finditer("\n", source)]
    place, former = 0, ""
    while place < len(source):
        line = bisect.bisect_right(starts, place) + 1
        token, place = _next(source, place, former, line)
        if token is not None:
            former = token.text if token.kind != "text" else "'"
            yield token


def _next(source: str, place: int, former: str, line: int) -> tuple[Token | None, int]:
    """The token at ``place``, None for a gap, and where the next one begins."""
    if source[place] == "`":
        end = _end_of_template(source, place, line)
        return _template(source[place + 1 : end - 1], line), end
    found = _PIECE.match(source, place)
    assert found is not None  # the last alternative takes any character
    kind, text = found.lastgroup, found[0]
    if kind == "gap":
        return None, found.end()
    if kind == "text":
        return Token("text", _unescaped(text[1:-1]), line), found.end()
    if text == "/":
        pattern = _PATTERN.match(source, place) if former in _BEFORE_PATTERN or not former else None
        if pattern is not None:
            return Token("word", pattern[0], line), pattern.end()
        if source.startswith("/*", place):
            raise ContractError(line, "a comment without its end")
    if text in "'\"":
        raise ContractError(line, f"a text without its end: {source[place : place + 20].splitlines()[0]}")
    return Token("word" if kind == "word" else "sign", text, line), found.end()


def _end_of_template(source: str, place: int, line: int) -> int:
    """Where a text in backquotes ends; expressions in it may have texts of their own."""
    inside = ["`"]
    place += 1
    while place < len(source):
        char = source[place]
        if char == "\\":
            place += 1
        elif char == "`" and inside[-1] == "`":
            inside.pop()
            if not inside:
                return place + 1
        elif inside[-1] == "`":
            if source.startswith("${", place):
                inside.append("{")
                place += 1
        elif char in "`{":
            inside.append(char)
        elif char == "}":
            inside.pop()
        place += 1
    raise ContractError(line, "a text in backquotes without its end")


def _template(text: str, line: int) -> Token:
    """A text, or a word that has no value here when something is computed in it."""
    return Token("word", f"`{text}`", line) if "${" in text else Token("text", _unescaped(text), line)


def _unescaped(text: str) -> str:
    """A text with its escapes read: two halves of a character are one, and half of one is none."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(_plain, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(found: re.Match[str]) -> str:
    code = int(found["point"] or found["unit"] or found["byte"] or "0", 16)
    if code:
        return chr(code) if code < 0x110000 else "\ufffd"
    return _PLAIN.get(found["one"] or "0", found["one"] or "")
