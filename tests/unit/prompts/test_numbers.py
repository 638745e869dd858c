"""Numbers as people write them, and which of them are true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.numbers import Number, numbers_in, unknown_numbers

READ = {
    "3 of 3.5 and 1,200.5": [3, 3.5, 1200.5],
    "12\u202f345 and 1\u00a0000": [12345, 1000],
    "1,2345 is two": [1, 2345, 2],
    "3k, 2.5M, 5m and 5 thousand": [3000, 2_500_000, 5, 5000],
    "v3, 3rd, B12": [3, 3, 12],
    "2026-03-01": [2026, 3, 1],
    "-5 and +3": [5, 3],
    "three tasks, Twenty-five days": [3, 25],
    "seventeen seven ninety nine": [17, 7, 99],
    "two hundred and one hundred": [200, 100],
    "one first step, half of it, twice, a hundred": [],
    "twofold, often, someone, weighty": [],
    "½, ², ٣ and 三": [0.5, 2, 3, 3],
}


@pytest.mark.parametrize(("text", "values"), READ.items(), ids=READ.keys())
def test_numbers_are_read_as_people_write_them(text: str, values: list[float]) -> None:
    """Digits, separators, suffixes, words and the digits of other scripts."""
    assert [(number.value, number.kind) for number in numbers_in(text)] == [(value, "plain") for value in values]


@pytest.mark.parametrize("text", ["40 %", "40%", "40 percent", "forty per cent"])
def test_percentages_are_a_kind_of_their_own(text: str) -> None:
    """With the sign or the word."""
    assert [(number.value, number.kind) for number in numbers_in(text)] == [(40, "percent")]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("9:00", 540), ("09:00", 540), ("9 am", 540), ("9:30 a.m.", 570), ("21:15", 1275), ("9.15 PM", 1275), ("12am", 0)],
)
def test_times_of_day_are_minutes(text: str, minutes: int) -> None:
    """However it is written, one time is one number."""
    assert numbers_in(text) == [Number(value=minutes, kind="time")]


@pytest.mark.parametrize(
    ("said", "truth", "is_told"),
    [
        ("3", Number(value=3), True),
        ("3", Number(value=4), False),
        ("3.4", Number(value=3.4271), True),
        ("3", Number(value=3.4271), True),
        ("3.5", Number(value=3.4271), False),
        ("13", Number(value=12.5), True),
        ("1.2", Number(value=1.15), True),
        ("1", Number(value=0.6), False),
        ("0", Number(value=0.4), False),
        ("0", Number(value=0), True),
        ("0.4", Number(value=0.42), True),
        ("42 %", Number(value=0.42, is_ratio=True), True),
        ("42.4 %", Number(value=0.4239, is_ratio=True), True),
        ("41 %", Number(value=0.42, is_ratio=True), False),
        ("42", Number(value=0.42, is_ratio=True), False),
        ("42 %", Number(value=42), False),
        ("100 %", Number(value=1), False),
        ("9:00", Number(value=9), False),
        ("9 am", Number(value=540, kind="time"), True),
    ],
)
def test_number_tells_the_truth_or_not(said: str, truth: Number, is_told: bool) -> None:
    """Exact or rounded to what is written, a ratio in percent; never nothing of something, nor another kind."""
    assert (unknown_numbers(f"so {said}.", [truth]) == []) is is_told


@given(st.floats(0, 1e9), st.integers(0, 3))
def test_number_rounded_by_python_is_known(value: float, decimals: int) -> None:
    """What a program rounds and writes passes, unless a share was rounded to a whole."""
    said = f"{value:,.{decimals}f}"
    if float(said.replace(",", "")) == 0 or value < 1:
        return
    assert unknown_numbers(said, [Number(value=value)]) == []


@given(st.text())
def test_numbers_of_a_text_are_known_to_it(text: str) -> None:
    """A tip that repeats its context invents nothing, and any text can be read."""
    assert unknown_numbers(text, numbers_in(text)) == []


AROUND = st.sampled_from([0.0, 0.3, 0.5, 0.96, 1.0, 1.04, 1.5, 9.0, 10.0, 99.5, 100.0, 540.0, 1e9, 1e300, float("inf")])
NUMBERS = st.builds(Number, value=AROUND, kind=st.sampled_from(["plain", "percent", "time"]))
TRUTHS = NUMBERS | st.builds(Number, value=AROUND, is_ratio=st.just(True))
SAID = st.sampled_from(["0", "1", "0.5", "1.0", "10", "50 %", "100 %", "30%", "9:00", "9", "1000000000", "9" * 400])


@given(st.lists(SAID, max_size=8), st.lists(TRUTHS, max_size=8))
def test_numbers_that_are_unknown_are_so_to_each_truth(said: list[str], truths: list[Number]) -> None:
    """Many truths know what any one of them does, each number of the text is judged, and their order stays."""
    text = " and ".join(said)
    expected = [number for one in said for number in unknown_numbers(one, []) if _is_unknown_to_each(one, truths)]
    assert unknown_numbers(text, truths) == expected


def _is_unknown_to_each(said: str, truths: list[Number]) -> bool:
    return all(unknown_numbers(said, [truth]) for truth in truths)
