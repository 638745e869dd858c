"""Numbers as people write them in English, and whether one tells the truth about another.

Owns what counts as a number in a text: ``3``, ``3.5``, ``1,200``, ``3k``, ``40 %`` and ``40 percent``, ``9:00`` and
``9 am``, ``½``, digits inside of words, and the words from ``two`` to ``ninety-nine``, with ``hundred``, ``thousand``
and ``million``. ``one``, ``first``, ``half`` and ``twice`` are none: they are part of plain language. Signs don't
count, for "down 20 %" is what a person says of -0.2. Percentages, times of day and all the rest are three kinds that
are not compared with each other. Decides without I/O; prompts/checks.py uses it.
"""

import bisect
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

Kind = Literal["plain", "percent", "time"]

_SMALL = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_UNITS = {word: value for value, word in enumerate(f"{_SMALL} eighteen nineteen".split(), 2)}
_TENS = {
    word: 10 * n
    for n, word in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
_SCALES = {"one": 1, "hundred": 100, "thousand": 1_000, "million": 1_000_000, "k": 1_000, "m": 1_000_000}
_ONES = {"one": 1} | {word: value for word, value in _UNITS.items() if value < 10}
_DIGITS = r"[0-9]{1,3}(?:[,\u00a0\u2009\u202f'’][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?"
_WORDS = f"(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES)}))?|{'|'.join(sorted(_UNITS, key=len, reverse=True))}"
_SCALE = "hundred|thousand|million"
_NUMBER = re.compile(
    rf"""(?P<hour>[0-9]{{1,2}})(?:[:.](?P<minute>[0-5][0-9]))?\s?(?P<half>[ap])\.?m\b\.?
    | (?P<hour24>[0-9]{{1,2}}):(?P<minute24>[0-5][0-9])(?![0-9])
    | (?:(?P<digits>{_DIGITS})(?:(?P<suffix>k|(?-i:M))\b|[-\s](?P<scale>{_SCALE})\b)?
      | \b(?:(?P<words>{_WORDS})(?:[-\s](?P<wordscale>{_SCALE}))?|(?P<one>one)[-\s](?P<onescale>{_SCALE}))\b)
      (?P<percent>\s?(?:%|percent\b|per\scent\b))?""",
    re.IGNORECASE | re.VERBOSE,
)


@attrs.frozen(kw_only=True)
class Number:
    """A number of a text or of a context.

    Args:
        value: its absolute value; of a percentage what stands before the sign, of a time minutes since midnight.
        decimals: how many are written.
        is_ratio: a share between 0 and 1, which a person says in percent.
    """

    value: float
    kind: Kind = "plain"
    decimals: int = 0
    is_ratio: bool = False


def numbers_in(text: str) -> list[Number]:
    """Every number of a text, in order; other scripts' digits are read as ours are."""
    return list(_numbers(_digits(text)))


def unknown_numbers(text: str, known: Iterable[Number]) -> list[Number]:
    """The numbers of a text that are none of the known ones, nor one of them rounded."""
    said = numbers_in(text)
    if not said:
        return []
    truths: dict[Kind, list[float]] = {"plain": [], "percent": [], "time": []}
    for truth in set(known):
        truths[truth.kind].append(truth.value)
        if truth.is_ratio:
            truths["percent"].append(100 * truth.value)
    for values in truths.values():
        values.sort()
    unknown = {number for number in set(said) if not _is_among(number, truths[number.kind])}
    return [number for number in said if number in unknown]


def _numbers(text: str) -> Iterator[Number]:
    for found in _NUMBER.finditer(text):
        if found["hour"] or found["hour24"]:
            yield _time(found)
            continue
        kind: Kind = "percent" if found["percent"] else "plain"
        if found["digits"]:
            digits = re.sub("[^0-9.]", "", found["digits"])
            value = float(digits) * _SCALES[(found["suffix"] or found["scale"] or "").lower() or "one"]
            yield Number(value=value, kind=kind, decimals=len(digits.partition(".")[2]))
        else:
            yield Number(value=_value_of_words(found), kind=kind)


def _time(found: "re.Match[str]") -> Number:
    """Minutes since midnight; an hour that there is not is none of any day."""
    hour, minute = int(found["hour"] or found["hour24"]), int(found["minute"] or found["minute24"] or 0)
    if half := found["half"]:
        hour = hour % 12 + (12 if half in "pP" else 0)
    return Number(value=float(60 * hour + minute), kind="time")


def _value_of_words(found: "re.Match[str]") -> float:
    words = re.split("[- ]", (found["words"] or found["one"]).lower())
    value = sum((_UNITS | _TENS | _ONES)[word] for word in words)
    return float(value * _SCALES[(found["wordscale"] or found["onescale"] or "one").lower()])


def _is_among(said: Number, truths: Sequence[float]) -> bool:
    """Whether what is said is a truth, exactly or rounded; of the sorted truths only those around it are looked at."""
    reach = 10**-said.decimals + 1e-9 * said.value
    first, end = bisect.bisect_left(truths, said.value - reach), bisect.bisect_right(truths, said.value + reach)
    return any(_rounds(said, truths[place]) for place in range(first, end))


def _rounds(said: Number, truth: float) -> bool:
    """To the decimals that are written; rounding may neither make nothing of something, nor a whole one of a share."""
    if math.isclose(said.value, truth, rel_tol=1e-12):
        return True
    is_near = abs(said.value - truth) <= 0.5 * 10**-said.decimals * (1 + 1e-9)
    return is_near and said.value != 0 and (truth >= 1 or said.decimals > 0)


def _digits(text: str) -> str:
    """Writes digits of other scripts, and signs such as ½ and ², with ours; a sign stands apart from its neighbours."""
    if text.isascii():
        return text
    return "".join(character if character.isascii() else _plain(character) for character in text)


def _plain(character: str) -> str:
    value = unicodedata.numeric(character, None)
    if value is None:
        return character
    if character.isdecimal():
        return str(int(value))
    return f" {value:.12f} ".rstrip("0 ") + " " if value % 1 else f" {int(value)} "
