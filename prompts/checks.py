"""Whether a tip that a model wrote may be shown: repaired where that is safe, else failed by name.

A tip has the length and the lines that its variant allows, is plain text, and names no number that does not stand in
the context it was made from. Repairs take away and never add a word: wrapping quotes and markup go, lines are joined,
and a text that is too long ends after the last whole sentence that fits. A repaired tip passes unchanged the next
time. Whoever gets a failed one shows another tip; prompts/local.py makes one that never fails. Decides without I/O.
"""

import re
from collections.abc import Callable, Iterator

import attrs

from models.context import FLAG, HOUR, RATIO, PromptContext, clean_text
from prompts.numbers import Number, numbers_in, unknown_numbers
from prompts.registry import Limits

INPUT_CHARS = 20_000
ROUNDS = 8
"""More than this is not looked at, or unwrapped: such an answer is no tip, and checks run on the event loop."""

_PAIRS = ('""', "''", "“”", "‘’", "„“", "„”", "‚‘", "«»", "»«", "‹›")
_INLINE_TAG = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|code|small)\s*/?>", re.IGNORECASE)
_BREAK_TAG = re.compile(r"(?:<br\s*/?>|</p\s*>)", re.IGNORECASE)
_FENCE = re.compile(r"^(?:```|~~~)[a-z]*$", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(r"^(?:#{1,6}|>) +", re.MULTILINE)
_ITEM = re.compile(r"^(?:[-*+•–]|[0-9]{1,2}[.)]) +", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_EMPHASIS = re.compile(r"(?<![^\W_])(\*{1,3}|_{1,3}|~~)(?=\S)([^*_~]+?)(?<=\S)\1(?![^\W_])")
_MARKUP = re.compile(r"<(?:!--|[/!?]?[a-z])|&(?:[a-z][a-z0-9]*|#[0-9]+|#x[0-9a-f]+);|`|\*\*|__|~~|\]\(", re.IGNORECASE)
_ADDRESS = re.compile(
    r"://|\bwww\.|\bmailto:|\bjavascript:|\w@\w"
    r"|\w\.(?:app|biz|co|com|dev|info|io|net|org|xyz)\b|\w\.[a-z]{2,24}/",  # what an app makes a link of by itself
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)]*(?=\s+[^\sa-z]|\s*$)")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|approx|no|mr|mrs|ms|dr|[a-z]))\.$", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Checked:
    """A tip after the checks.

    Args:
        text: the tip, repaired; not to be shown when something failed.
        repaired: what was mended: ``blanks``, ``markup``, ``quotes``, ``lines``, ``length``.
        failed: what can't be mended: ``empty``, ``markup``, ``link``, ``lines``, ``length``, ``numbers``.
    """

    text: str
    repaired: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def check_tip(text: str, *, limits: Limits, context: PromptContext) -> Checked:
    """Checks one tip against its variant's limits and the context that it was made from."""
    if len(text) > INPUT_CHARS:
        return Checked(text="", failed=("length",))
    repairs: list[tuple[str, Callable[[str], str]]] = [
        ("blanks", _without_odd_blanks),
        ("markup", _without_markup),
        ("quotes", _without_quotes),
        ("lines", lambda tip: _joined(tip, limits)),
        ("length", lambda tip: _cut(tip, limits)),
    ]
    tip = text.strip()
    repaired: dict[str, None] = {}
    for _ in range(ROUNDS):
        before = tip
        for name, repair in repairs:
            mended = repair(tip).strip()
            if mended != tip:
                repaired[name] = None
            tip = mended
        if tip == before:
            return Checked(text=tip, repaired=tuple(repaired), failed=tuple(_failures(tip, limits, context)))
    return Checked(text=tip, repaired=tuple(repaired), failed=("markup",))


def known_numbers(context: PromptContext) -> Iterator[Number]:
    """Every number that a tip from this context may name."""
    for text in (context.tip_kind or "", *context.signals, *(fact.label for fact in context.profile)):
        yield from numbers_in(text)
    for fact in context.profile:
        if fact.unit != FLAG:
            yield Number(value=abs(fact.value), is_ratio=fact.unit == RATIO)
        if fact.unit == HOUR:
            yield Number(value=60 * fact.value, kind="time")


def _failures(tip: str, limits: Limits, context: PromptContext) -> Iterator[str]:
    if not any(character.isalpha() for character in tip):
        yield "empty"
    if _MARKUP.search(tip) or _HEADING.search(tip) or _ITEM.search(tip):
        yield "markup"
    if _ADDRESS.search(tip):
        yield "link"
    if limits.max_lines is not None and len(tip.split("\n")) > limits.max_lines:
        yield "lines"
    if len(tip) > limits.max_chars:
        yield "length"
    if unknown_numbers(tip, known_numbers(context)):
        yield "numbers"


def _without_odd_blanks(tip: str) -> str:
    """Each line without what can't be seen and without blanks around it; no blank lines."""
    lines = (clean_text(line, INPUT_CHARS) for line in re.split("[\n\r\v\f\x85\u2028\u2029]", tip))
    return "\n".join(line for line in lines if line)


def _without_markup(tip: str) -> str:
    """Takes away what only formats; a list of several items, and other tags, are no tip with odd marks."""
    tip = _INLINE_TAG.sub("", _BREAK_TAG.sub("\n", tip))
    tip = _HEADING.sub("", _FENCE.sub("", tip))
    if len(_ITEM.findall(tip)) == 1:
        tip = _ITEM.sub("", tip)
    tip = _LINK.sub(r"\1", tip)
    tip = re.sub("`([^`]*)`", r"\1", tip)
    return _EMPHASIS.sub(r"\2", tip)


def _without_quotes(tip: str) -> str:
    """Takes away a pair around the whole tip, unless they are ends of two quotations."""
    if len(tip) >= 2 and tip[0] + tip[-1] in _PAIRS and not set(tip[1:-1]) & {tip[0], tip[-1]}:
        return tip[1:-1]
    return tip


def _joined(tip: str, limits: Limits) -> str:
    """One line, when there are more than allowed."""
    is_fine = limits.max_lines is None or tip.count("\n") < limits.max_lines
    return tip if is_fine or len(_ITEM.findall(tip)) > 1 else " ".join(tip.split("\n"))


def _cut(tip: str, limits: Limits) -> str:
    """The whole sentences that fit; the text as it is when it fits, or when not even one does."""
    if len(tip) <= limits.max_chars:
        return tip
    ends = [found.end() for found in _SENTENCE_END.finditer(tip, 0, limits.max_chars + 2)]
    whole = [end for end in ends if end <= limits.max_chars and not _ABBREVIATION.search(tip[max(0, end - 10) : end])]
    return tip[: max(whole, default=len(tip))]
