"""Checks of a tip: what is mended, what fails by name, and that a mended one passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.context import Fact, PromptContext
from prompts.checks import INPUT_CHARS, Checked, check_tip
from prompts.registry import Limits

LIMITS = Limits(max_chars=60, max_lines=2)
CONTEXT = PromptContext(
    tip_kind="top 5",
    signals=("synchronised 3 tasks 2 hours ago",),
    profile=(
        Fact(name="rate", value=0.4239, unit="ratio", meaning="share of tips in 30 days"),
        Fact(name="hour", value=9, unit="hour", meaning="when"),
        Fact(name="trend", value=-7.5, unit="count", meaning="change"),
        Fact(name="flag", value=1, unit="flag", meaning="whether"),
    ),
)


def check(text: str) -> Checked:
    """Checks against the limits and the context above."""
    return check_tip(text, limits=LIMITS, context=CONTEXT)


REPAIRED = {
    "quotes": ('"Do it."', "Do it.", "quotes"),
    "curly": ("“Do it.”", "Do it.", "quotes"),
    "nested-quotes": ("“'Do it.'”", "Do it.", "quotes"),
    "bold": ("**Do** it __now__.", "Do it now.", "markup"),
    "code": ("Run `ls`.", "Run ls.", "markup"),
    "fence": ("```text\nDo it.\n```", "Do it.", "markup"),
    "heading": ("## Do it.", "Do it.", "markup"),
    "quotation": ("> Do it.", "Do it.", "markup"),
    "item": ("- Do it.", "Do it.", "markup"),
    "numbered": ("1. Do it.", "Do it.", "markup"),
    "link": ("See [the list](https://x.example/a?b=1).", "See the list.", "markup"),
    "tag": ("<b>Do</b> it.", "Do it.", "markup"),
    "blanks": ("Do  it\u202e.\n\nNow.", "Do it.\nNow.", "blanks"),
    "separator": ("Do it.\u2028Now.", "Do it.\nNow.", "blanks"),
    "lines": ("Do\nit\nnow.", "Do it now.", "lines"),
    "length": (
        "Do it now. " + "And think of it, e.g. today. " * 9,
        "Do it now. And think of it, e.g. today.",
        "length",
    ),
}


@pytest.mark.parametrize(("text", "mended", "name"), REPAIRED.values(), ids=REPAIRED.keys())
def test_tip_is_repaired(text: str, mended: str, name: str) -> None:
    """What only wraps or formats is taken away, and the repair is named."""
    assert check(text) == Checked(text=mended, repaired=(name,))


def test_tip_is_repaired_in_several_ways() -> None:
    """One repair lays open the next."""
    checked = check('```\n"**Do** it."\n```')
    assert (checked.text, set(checked.repaired), checked.failed) == ("Do it.", {"markup", "quotes"}, ())


@pytest.mark.parametrize(
    "text",
    [
        "Do it.",
        "Say 'no' to one task, then don't look back.",
        "'A' and 'B' wait: pick one.",
        '"Now" beats "later"',
        "Keep snake_case, 2 * 3 and 3 < 5 as they are.",
        "You did 42 % of 5 tips by 9:00.",
        "Down 7.5, and 8 if you round, in thirty days.",
        "Two of three tasks wait since 9 am.",
        "Öffne eine Aufgabe — jetzt.",
        "Open plan.md and/or notes.txt, e.g. in Node.js.",
    ],
)
def test_tip_that_is_fine_is_left_alone(text: str) -> None:
    """Quotation inside, signs of arithmetic, and numbers of the context stay as they are."""
    assert check(text) == Checked(text=text)


FAILED = {
    "empty": ("", "empty"),
    "no-word": ("…!", "empty"),
    "list": ("- Do this.\n- Do that.", "markup"),
    "script": ("<script>x</script>", "markup"),
    "comment": ("Do it.<!-- x -->", "markup"),
    "entity": ("Do it &lt;now&gt;.", "markup"),
    "half": ("**Do it.", "markup"),
    "onion": ("".join("*_"[i % 2] for i in range(30)) + "x" + "".join("_*"[i % 2] for i in range(30)), "markup"),
    "address": ("See https://x.example now.", "link"),
    "www": ("See www.example.org now.", "link"),
    "domain": ("Claim your prize at evil-tips.com today.", "link"),
    "path": ("Open bit.ly/free and log in.", "link"),
    "mail": ("Send your list to a.b@example.org.", "link"),
    "long": ("word " * 30, "length"),
    "endless": ("x" * (INPUT_CHARS + 1), "length"),
    "number": ("You have 4 tasks.", "numbers"),
    "word-number": ("You have four tasks.", "numbers"),
    "percent": ("You did 43 %.", "numbers"),
    "bare-ratio": ("You did 42.", "numbers"),
    "time": ("Start at 10:00.", "numbers"),
    "flag": ("You have 1 task.", "numbers"),
}


@pytest.mark.parametrize(("text", "name"), FAILED.values(), ids=FAILED.keys())
def test_tip_fails_by_name(text: str, name: str) -> None:
    """What can't be mended without changing what is said is named, and nothing else is."""
    assert check(text).failed == (name,)


def test_tip_of_too_many_list_items_fails_for_its_lines_too() -> None:
    """A list is never joined into a sentence."""
    assert check("- a\n- b\n- c").failed == ("markup", "lines")


def test_lines_without_a_limit_are_left() -> None:
    """A variant may allow any number of lines."""
    assert check_tip("a\nb\nc", limits=Limits(max_chars=60), context=CONTEXT) == Checked(text="a\nb\nc")


BITS = st.sampled_from([*"\"'*_`~#>-+•1234.)(][<&;/ \n\t“”‘’«»!?:%aBc", "https://", "<b>", "</p>", "```", "two ", ". "])


@given(st.lists(BITS | st.text(max_size=3), max_size=60).map("".join), st.integers(40, 80), st.integers(1, 3))
def test_tip_that_was_checked_passes_unchanged(text: str, max_chars: int, max_lines: int) -> None:
    """Whatever a model writes: a second check finds nothing to mend, and a passed tip keeps every limit."""
    limits = Limits(max_chars=max_chars, max_lines=max_lines)
    checked = check_tip(text, limits=limits, context=CONTEXT)
    again = check_tip(checked.text, limits=limits, context=CONTEXT)
    if not checked.failed:
        assert again == Checked(text=checked.text)
        assert len(checked.text) <= max_chars and len(checked.text.splitlines()) <= max_lines
        assert not set("`\u202e\x00") & set(checked.text) and "**" not in checked.text


@given(st.text(alphabet="ab .,", min_size=1))
def test_repairs_add_nothing(text: str) -> None:
    """Each character of a mended tip was there before, in that order."""
    remaining = iter(text)
    assert all(character in remaining for character in check(text).text)
