"""``--where``: a condition on messages in the Common Expression Language, which computes and can do nothing else."""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

import cel
import click
import msgspec

from app.cli.playback import verdict_of
from streams.player import Played

# What the library calls undefined, too, when it does not take the kind of value that it got.
FUNCTIONS = re.compile(
    "size|contains|startsWith|endsWith|matches|int|uint|double|string|bytes|bool|timestamp|duration"
    "|get(FullYear|Month|Date|DayOf(Month|Week|Year)|Hours|Minutes|Seconds|Milliseconds)"
)
NAMES = ("event", "subject", "handler", "key", "seq", "time", "verdict", "error")


class Where:
    """A condition on what became of messages.

    Args:
        text: an expression over ``event``, ``subject``, ``handler``, ``key``, ``seq``, ``time``, ``verdict`` and
            ``error``, as ``event.provider == "todoist" && verdict != "applied"``.

    Raises:
        click.BadParameter: it is no expression, or names something else.
    """

    def __init__(self, text: str) -> None:
        self.unanswered = 0
        self.answered = 0
        self.trouble = ""
        try:
            self._program = cel.compile(text)
        except ValueError as error:
            problem = str(error).partition("<input>:")[2].partition(" expecting ")[0] or "it can't be read"
            raise click.BadParameter(f"no expression: {problem}".partition("\n")[0], param_hint="--where") from error
        try:
            self._program.execute(dict.fromkeys(NAMES, "") | {"event": {}})
        except RuntimeError as error:
            if _is_unknown(error):
                raise _unknown(error) from error
        except (LookupError, TypeError, ValueError, ArithmeticError):
            pass  # it depends on the message

    def holds(self, played: Played) -> bool:
        """Whether the condition is true of a message; where it can't be answered, as for a missing field, it is not.

        Raises:
            click.BadParameter: it names something that is not there, or its answer is neither true nor false.
        """
        message = played.message
        facts = {
            "event": _as_dict(played),
            "subject": message.subject,
            "handler": played.handler.name,
            "key": played.key,
            "seq": message.seq,
            "time": dt.datetime.fromtimestamp(message.ts / 1e9, dt.UTC),
            "verdict": verdict_of(played),
            "error": played.verdict.error or "",
        }
        try:
            answer = self._program.execute(facts)
        except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            if _is_unknown(error):
                raise _unknown(error) from error
            self.unanswered += 1
            self.trouble = f"{type(error).__name__}: {error}".partition("\n")[0]
            return False
        if not isinstance(answer, bool):
            raise click.BadParameter(f"expected true or false, got {answer!r}", param_hint="--where")
        self.answered += 1
        return answer


def _is_unknown(error: Exception) -> bool:
    """Whether it names something that is not there, rather than a function that has no answer for a value."""
    found = re.match("Undefined variable or function: '([^']*)'", str(error))
    return found is not None and not FUNCTIONS.fullmatch(found[1])


def _unknown(error: Exception) -> click.BadParameter:
    problem = str(error).partition("\n")[0].partition(". ")[0]
    return click.BadParameter(f"{problem}; there is {', '.join(NAMES)}", param_hint="--where")


def _as_dict(played: Played) -> Mapping[str, Any]:
    """The event as typed, or, when it did not fit, as it came."""
    if played.event is not None:
        return dict(msgspec.to_builtins(played.event, builtin_types=(dt.datetime,)))
    try:
        raw = msgspec.json.decode(played.message.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}
