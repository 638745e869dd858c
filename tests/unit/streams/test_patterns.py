"""Subject patterns agree with brute force over every subject of a small alphabet."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DeclarationError
from streams.patterns import as_filter, check_pattern, covers, is_subject, matches, overlap

LENGTH = 4
# Patterns use "a" and "b"; "c" stands for every token that no pattern names. A pattern of n tokens tells subjects of
# up to n + 1 tokens apart, so those of LENGTH + 1 are enough.
SUBJECTS = [".".join(tokens) for n in range(1, LENGTH + 2) for tokens in itertools.product("abc", repeat=n)]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Patterns of up to LENGTH tokens."""
    tokens = draw(st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=LENGTH))
    if draw(st.booleans()):
        tokens[-1] = ">"
    return ".".join(tokens)


def _matches_by_definition(pattern: list[str], subject: list[str]) -> bool:
    """NATS' own words: ``*`` is one token, a final ``>`` one or more, anything else itself."""
    if pattern == [">"]:
        return len(subject) >= 1
    if not pattern or not subject:
        return pattern == subject
    return pattern[0] in ("*", subject[0]) and _matches_by_definition(pattern[1:], subject[1:])


def _subjects_of(pattern: str) -> set[str]:
    tokens = pattern.split(".")
    return {subject for subject in SUBJECTS if _matches_by_definition(tokens, subject.split("."))}


@given(patterns())
def test_matches_agrees_with_the_definition(pattern: str) -> None:
    """A subject matches exactly when NATS' definition says so."""
    assert {subject for subject in SUBJECTS if matches(pattern, subject)} == _subjects_of(pattern)


@given(patterns(), patterns())
def test_overlap_agrees_with_brute_force(one: str, other: str) -> None:
    """Two patterns overlap exactly when a subject matches both, in either order."""
    expected = bool(_subjects_of(one) & _subjects_of(other))
    assert (overlap(one, other), overlap(other, one)) == (expected, expected)


@given(patterns(), patterns())
def test_covers_agrees_with_brute_force(pattern: str, other: str) -> None:
    """A pattern covers another exactly when it matches all subjects of the other."""
    assert covers(pattern, other) == (_subjects_of(other) <= _subjects_of(pattern))


@given(patterns())
def test_pattern_covers_and_overlaps_itself(pattern: str) -> None:
    """Every pattern covers and overlaps itself, and may be subscribed to."""
    check_pattern(pattern, "here")
    assert covers(pattern, pattern) and overlap(pattern, pattern)


BAD_TOKENS = [
    pytest.param("", id="empty"),
    pytest.param("a..b", id="empty-token"),
    pytest.param(".a", id="leading-dot"),
    pytest.param("a.", id="trailing-dot"),
    pytest.param("a b", id="blank"),
    pytest.param("a\tb", id="tab"),
    pytest.param("a\r\nPUB x 0", id="line-end"),
    pytest.param("a\n", id="trailing-line-end"),
    pytest.param("a\x00b", id="nul"),
    pytest.param("a\x7f", id="delete"),
    pytest.param("a*", id="star-in-token"),
    pytest.param("a>", id="gt-in-token"),
    pytest.param("**", id="two-stars"),
    pytest.param(">.a", id="gt-not-last"),
    pytest.param("a.>.>", id="two-gts"),
]


@pytest.mark.parametrize("pattern", BAD_TOKENS)
def test_pattern_that_nats_refuses_is_a_declaration_error(pattern: str) -> None:
    """A bad pattern is named with the place of its declaration, and is no subject to publish on."""
    with pytest.raises(DeclarationError, match="^here: subject: expected tokens") as caught:
        check_pattern(pattern, "here")
    assert repr(pattern) in str(caught.value)
    assert not is_subject(pattern)


@pytest.mark.parametrize("subject", ["a", "signals.task.synced", "a-b_c:d/e$", "ü.🙂", "A.1"])
def test_subject_of_plain_tokens_can_be_published_on(subject: str) -> None:
    """Any visible characters but dots and wildcards make tokens."""
    assert is_subject(subject)
    check_pattern(subject, "here")


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "a.>"])
def test_subject_holds_no_wildcard(pattern: str) -> None:
    """A pattern with wildcards may be subscribed to and not published on."""
    check_pattern(pattern, "here")
    assert not is_subject(pattern)


@given(st.lists(patterns(), min_size=1, max_size=4))
def test_filter_matches_what_the_patterns_match(some: list[str]) -> None:
    """No two patterns of a filter overlap, and it lets through what any of the patterns does; empty means all."""
    found = as_filter(some)
    assert not any(overlap(one, other) for one, other in itertools.combinations(found, 2))
    for subject in SUBJECTS if found else ():
        assert any(matches(one, subject) for one in found) == any(matches(one, subject) for one in some)


@pytest.mark.parametrize(
    ("some", "found"),
    [
        pytest.param(["b", "a", "a"], ["a", "b"], id="apart"),
        pytest.param(["a.*", "a.b", "b.>", "b.a.*"], ["a.*", "b.>"], id="covered"),
        pytest.param(["a.*", "*.b"], [], id="crossing"),
    ],
)
def test_filter_leaves_out_what_is_covered(some: list[str], found: list[str]) -> None:
    """What another pattern covers is left out; where two cross, everything has to be read."""
    assert as_filter(some) == found
