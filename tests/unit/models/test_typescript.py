"""The literals of a TypeScript file: what is a text, what is none, and which brackets pair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ContractError
from models.typescript import MAX_DEPTH, Group, Token, groups_of, parse, parts_of


def texts(source: str) -> list[str]:
    """Every text of a source, in its order at the top."""
    return [item.text for item in parse(source).items if isinstance(item, Token) and item.kind == "text"]


def parts(source: str) -> list[int]:
    """The sizes of the parts of the first group."""
    group = next(item for item in parse(source).items if isinstance(item, Group))
    return [len(part) for part in parts_of(group)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("'a' \"b\" `c`", ["a", "b", "c"]),
        (r"""'it\'s' "a\"b" `c\`d`""", ["it's", 'a"b', "c`d"]),
        (r"'\u0061\u{1F600}\x62\n\q\u{FFFFFF}'", ["a😀b\nq\ufffd"]),
        (r"'\u0061bc \u{9}'", ["abc \t"]),
        (r"'\ud83d\ude00 \ud83d x \ude00'", ["😀 \ufffd x \ufffd"]),
        ("'a' // 'b'\n'c' /* 'd'\n'e' */ 'f'", ["a", "c", "f"]),
        ("`a ${b} c` 'd'", ["d"]),
        ("`a ${f(`b ${'}'.length} c`, {x: 1})}` 'd'", ["d"]),
        ("x = /['\"`]/g, 'a'", ["a"]),
        ("x = /[/'\\]]+/, 'a'", ["a"]),
        ("x = a / b; 'c'; d / e", ["c"]),
        ("return /'/.test(x) ? 'a' : 'b'", ["a", "b"]),
        ("'http://a' 'b'", ["http://a", "b"]),
        ("\ufeff'a'\r\n'b'", ["a", "b"]),
        ("`a\nb`", ["a\nb"]),
        ("", []),
    ],
)
def test_texts_are_told_from_all_else(source: str, expected: list[str]) -> None:
    """Comments, regular expressions and computed texts have no text of their own."""
    assert texts(source) == expected


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        ("a\n{", 2, "{ without its pair"),
        ("{\n]", 2, "] without its pair: the { of line 1 is open"),
        ("a\n\n)", 3, ") without its pair: nothing is open"),
        ("\n'a\n'", 2, "a text without its end: 'a"),
        ('\n"', 2, 'a text without its end: "'),
        ("\n`a ${", 2, "a text in backquotes without its end"),
        ("\n`a", 2, "a text in backquotes without its end"),
        ("\n/* a", 2, "a comment without its end"),
        ("\n" + "[" * 101, 2, f"brackets nested deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_no_typescript_is_named_with_its_line(source: str, line: int, problem: str) -> None:
    """The line is that of the bracket or text, and the problem says which one."""
    with pytest.raises(ContractError) as caught:
        parse(source)
    assert (caught.value.line, caught.value.problem) == (line, problem)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{a: 1, b: 2}", [3, 3]),
        ("{a: 1; b?: 2;}", [3, 4, 0]),
        ("{\n  a: string\n  b?: number | null\n  'c': X[]\n}", [3, 6, 4]),
        ("{\n  readonly a: string\n  readonly b?: X\n  readonly: boolean\n}", [4, 5, 3]),
        ("{a: [\n1\n]\nb: 2}", [3, 3]),
        ("{a:\n  b ? c :\n  d}", [7]),
        ("{a: b ?\n  c : d}", [7]),
        ("[a, {b: 1, c: 2}]", [1, 1]),
        ("{}", [0]),
    ],
)
def test_parts_lie_between_commas_semicolons_and_lines(source: str, expected: list[int]) -> None:
    """A new line ends a property where the next one begins, as an interface without semicolons has it."""
    assert parts(source) == expected


def test_tokens_know_their_lines() -> None:
    """Lines count from 1, through comments and texts of several lines."""
    items = parse("a /*\n*/ b `\n` c\n{\n}").items
    assert [item.line for item in items] == [1, 2, 2, 3, 4]
    assert isinstance(items[-1], Group) and items[-1].end_line == 5


def test_groups_are_all_found() -> None:
    """At any depth, the file itself included."""
    assert sorted(group.opening for group in groups_of(parse("({[]}) []"))) == ["", "(", "[", "[", "{"]


@given(st.text(st.sampled_from("ab1 \n'\"`\\${}[]()/*,;:?|.=<>\u2028é")) | st.text())
def test_any_text_is_read_or_refused(source: str) -> None:
    """Whatever a file holds, the answer is a tree or an error with a line of it."""
    try:
        assert parse(source).opening == ""
    except ContractError as error:
        assert 1 <= error.line <= source.count("\n") + 1
