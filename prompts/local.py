"""A tip that is made here, without any model: what a user gets when no model gave one that can be shown.

The texts are fixed. The context chooses among them, the same context always the same one, and at most lends a number
of the profile; no text of a user gets into a tip. So each passes the checks (prompts/checks.py) of every variant, with
any context. The shortest fits the least ``max_chars`` that a variant can have. Decides without I/O.
"""

import hashlib
import json

import attrs

from models.context import FLAG, Fact, PromptContext
from prompts.registry import Limits

MODEL = "local"
"""What an answer says of the model when the tip was made here."""

SHORTEST = "Do one small task."
LEAST, MOST = 2, 9_999
"""What is told as a number: more than one, for the plural, and no more than a person would say."""


@attrs.frozen
class Text:
    """A tip for a topic; with ``number``, the name of a fact, ``{n}`` stands for its value."""

    topic: str
    text: str
    number: str | None = None


TEXTS = (
    Text(
        "backlog",
        "You have {n} overdue tasks: choose the one that matters most, do it first, and set new dates for the others.",
        "overdue_task_count",
    ),
    Text("backlog", "Delete or postpone every task that you would not start today, and keep the rest in one list."),
    Text("backlog", "Open your oldest task and decide: do it now, give it a date, or delete it."),
    Text(
        "plan",
        "With {n} open tasks, mark the few that would make today a good day, and hide the others until tomorrow.",
        "open_task_count",
    ),
    Text("plan", "Choose the task that matters most today and give it a fixed time in your calendar."),
    Text("plan", "Before you stop today, write down the first task of tomorrow and leave it open on your desk."),
    Text("focus", "Put your phone in another room, open one task, and stay with it until its next step is done."),
    Text("focus", "Close every window that your current task does not need, then work on that task alone."),
    Text("habit", "You have a streak of {n} days: keep it with the smallest task on your list.", "current_streak_days"),
    Text("habit", "Tie one small task to something that you do every day, such as your first coffee."),
    Text("habit", "Finish the smallest task on your list now, and let it carry you into the next one."),
    Text("start", "Take the task that you keep putting off and do nothing but its first, smallest step."),
    Text("start", "Write the next step of your hardest task as an action so small that you can start it right away."),
    Text("rest", "Stand up, leave your screen for a short walk, and come back to one task only."),
    Text("rest", "Decide now when your work ends today, and plan something for that time that you look forward to."),
)

TOPICS = {
    "backlog": ("backlog", "overdue", "late", "inbox", "clean", "tidy", "review", "declutter"),
    "plan": ("plan", "schedul", "priorit", "calendar", "organi", "day", "week"),
    "focus": ("focus", "concentrat", "distract", "deep work", "attention"),
    "habit": ("habit", "streak", "routine", "motivat", "consisten"),
    "start": ("start", "begin", "stuck", "procrastinat", "postpon"),
    "rest": ("rest", "break", "pause", "sleep", "health", "energy", "wellbeing", "stress"),
}
"""Parts of words in ``tip_kind`` that ask for a topic."""


def local_tip(context: PromptContext, *, limits: Limits) -> str:
    """Makes a tip that the checks pass; texts of the topic that was asked for, and with a known number, come first."""
    wanted = _topics(context.tip_kind)
    numbers = {fact.name: int(fact.value) for fact in context.profile if _is_told(fact)}
    fitting = [
        (text, filled)
        for text in TEXTS
        if (text.number is None or text.number in numbers)
        and len(filled := text.text.format(n=f"{numbers.get(text.number or '', 0):,}")) <= limits.max_chars
    ]
    pool = [pair for pair in fitting if pair[0].topic in wanted] or fitting
    pool = [pair for pair in pool if pair[0].number] or pool
    return pool[_pick(context) % len(pool)][1] if pool else SHORTEST


def _is_told(fact: Fact) -> bool:
    return fact.unit != FLAG and LEAST <= fact.value <= MOST and float(fact.value).is_integer()


def _topics(tip_kind: str | None) -> set[str]:
    asked = (tip_kind or "").casefold()
    return {topic for topic, words in TOPICS.items() if any(word in asked for word in words)}


def _pick(context: PromptContext) -> int:
    """A number that stands for the context."""
    return int.from_bytes(hashlib.sha256(json.dumps(context.variables(), sort_keys=True).encode()).digest()[:8])
