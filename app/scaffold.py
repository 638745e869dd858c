"""The text of a new handler: a module with an event type, a table and a handler, and a test of it.

This module owns the names and the text, and refuses names that Python or the module itself needs. What it writes is
formatted as the linter wants it, for which lines are laid out here. The command is app/cli/new.py; the fields come from
models/shapes.py.
"""

import keyword
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import jinja2

from models.errors import DeclarationError, PayloadError
from models.shapes import Field, Shape
from state.tables import NAME
from streams.subjects import Handler, SubjectTable

LINE = 120
MAX_NAME = 32
MAX_SUBJECT = 80
INSTANT = "2026-03-01T09:00:00Z"
SAMPLES = {"str": '"ana"', "int": "1", "float": "0.5", "bool": "True", "dt.datetime": f'"{INSTANT}"', "Any": "None"}

_SUBJECT = re.compile(r"[A-Za-z0-9_.-]+")
_TAKEN_NAMES = frozenset({"attrs", "asyncio", "aware", "ctx", "dt", "event", "filled", "lane_of", "row", "run_handler"})
_TAKEN_CLASSES = frozenset({"Any", "Context", "Policy", "SubjectTable", "Table"})


@attrs.frozen(kw_only=True)
class Names:
    """What the parts of a new handler are called."""

    subject: str
    name: str
    table: str
    event: str
    row: str
    constant: str


@attrs.frozen(kw_only=True)
class Draft:
    """What a new handler is made of; ``module`` is its dotted name, and ``sampled`` the messages its fields are of."""

    names: Names
    shape: Shape
    sampled: int
    module: str
    is_plugin: bool


def names_for(subject: str, *, name: str | None = None, table: str | None = None) -> Names:
    """Chooses the names that are not given: ``signals.streak.broken`` is ``streak_broken`` of table ``streaks``.

    Raises:
        DeclarationError: a name can't be used, or none can be made of the subject; names the argument.
    """
    if len(subject) > MAX_SUBJECT or not _SUBJECT.fullmatch(subject):
        wanted = f"at most {MAX_SUBJECT} letters, digits, dots, '-' and '_'"
        raise DeclarationError("SUBJECT", f"expected {wanted}, got {subject!r}")
    tokens = [re.sub(r"[^a-z0-9_]", "_", token.lower()) for token in subject.split(".")[1:]]
    name = _checked("--name", name or "_".join(tokens))
    table = _checked("--table", table or (tokens[0] if tokens[0].endswith("s") else f"{tokens[0]}s"))
    constant = table.upper()
    event = _class_name(name, {constant}, "Event")
    return Names(
        subject=subject,
        name=name,
        table=table,
        event=event,
        row=_class_name(_singular(table), {constant, event}, "Row"),
        constant=constant,
    )


def _checked(option: str, name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise DeclarationError(option, f"expected {NAME.pattern}, at most {MAX_NAME} characters, got {name!r}")
    if keyword.iskeyword(name) or name in _TAKEN_NAMES or name == "subjects":
        raise DeclarationError(option, f"{name!r} means something else in the module: give another name")
    return name


def _singular(table: str) -> str:
    if table.endswith("ies") and len(table) > 3:
        return f"{table[:-3]}y"
    return table[:-1] if table.endswith("s") and not table.endswith("ss") and len(table) > 1 else table


def _class_name(name: str, others: set[str], ending: str) -> str:
    spelled = "".join(word.capitalize() for word in name.split("_"))
    is_taken = spelled in others or spelled in _TAKEN_CLASSES or keyword.iskeyword(spelled)
    return spelled + ending if is_taken else spelled


def lane_field(shape: Shape) -> Field | None:
    """The field that names whom an event is about: ``user_id``, else the first other id; None when there is none."""
    fields = [field for field in shape.fields if field.annotation in ("str", "int") and not field.is_optional]
    named = [field for field in fields if field.name == "user_id"]
    others = [field for field in fields if field.name.endswith("_id") and len(field.name) <= MAX_NAME]
    about = [field for field in others if field.name not in ("event_id", "request_id", "message_id")]
    return next(iter(named + about), None)


def render_module(draft: Draft) -> str:
    """The text of the handler's module."""
    names, shape = draft.names, draft.shape
    key = lane_field(shape)
    uses = {"aware"} if any(field.is_instant for field in shape.fields) else set()
    uses |= {"filled"} if key is not None and key.is_filled else set()
    standard = ["import datetime as dt"] if "aware" in uses else []
    standard += ["from typing import Any"] if any("Any" in field.annotation for field in shape.fields) else []
    kind = ['kind="counters"'] if key is None else []
    policy = "policy=Policy(max_deliver=5, backoff_s=(1, 5, 30))"
    return _render(
        "handler.py.j2",
        names=names,
        key=key,
        whom="" if key is None else key.name.removesuffix("_id"),
        is_plugin=draft.is_plugin,
        standard_imports=standard,
        validators=sorted(uses),
        event_docstring=_event_docstring(draft),
        fields=[_declared(field, is_filled=field is key and field.is_filled) for field in shape.fields],
        remarks=_remarks(shape.left_out),
        row_table=laid_out(f"{names.constant} = Table(", [f'"{names.table}"', names.row, *kind], ")"),
        subject_table=laid_out("subjects = SubjectTable(", _table_arguments(names, key), ")"),
        decorator=laid_out("@subjects.on(", [f'"{names.subject}"', policy], ")"),
    )


def render_test(draft: Draft) -> str:
    """The text of the test of the handler's module."""
    names = draft.names
    key = lane_field(draft.shape)
    used = [names.name] if key is None else [names.constant, names.row, names.name]
    lines = sorted([_imported(draft.module, used), "from streams.testing import run_handler"])
    required = [field for field in draft.shape.fields if not field.is_optional]
    pairs = [f'"{field.name}": {sample_of(field)}' for field in required]
    return _render(
        "test_handler.py.j2",
        names=names,
        key=key,
        key_text='"ana"' if key is None or key.annotation == "str" else '"1"',
        imports="\n".join(lines),
        sample=laid_out("event = {", pairs, "}", indent=4, is_call=False),
    )


def try_out(module: str, payloads: Iterable[bytes]) -> tuple[int, list[str]]:
    """Declares what the text of a module declares, and has it decode payloads.

    Returns:
        How many it decodes and finds the lane of, and what is wrong with the others.

    Raises:
        DeclarationError: the module declares something wrongly.
    """
    namespace: dict[str, Any] = {"__name__": "scaffold"}
    exec(compile(module, "<scaffold>", "exec"), namespace)  # our own text; only identifiers come from outside
    table: SubjectTable = namespace["subjects"]
    handler: Handler = table.handlers[0]
    good, problems = 0, []
    for payload in payloads:
        try:
            handler.key_of(handler.decode(payload))
            good += 1
        except PayloadError as error:
            problems.append(error.reason)
    return good, problems


def sample_of(field: Field) -> str:
    """A value of a field as Python code; it is made up, for what users sent does not belong into a test."""
    first = field.annotation.partition(" | ")[0]
    return SAMPLES.get(first) or ("[]" if first.startswith("list") else "{}")


def laid_out(head: str, parts: Sequence[str], tail: str, *, indent: int = 0, is_call: bool = True) -> str:
    """Code as the formatter lays it out: on one line, with the inside of a call on one line, or with a part a line."""
    one = head + ", ".join(parts) + tail
    if indent + len(one) <= LINE:
        return one
    margin, inner = " " * indent, " " * (indent + 4)
    inside = inner + ", ".join(parts)
    if is_call and len(inside) <= LINE:
        return f"{head}\n{inside}\n{margin}{tail}"
    return "\n".join([head, *(f"{inner}{part}," for part in parts), margin + tail])


def _imported(module: str, names: Sequence[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= LINE:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _table_arguments(names: Names, key: Field | None) -> list[str]:
    arguments = [f'"{names.table}"', f"tables=[{names.constant}]"]
    if key is None:
        return [*arguments, 'order="none"']
    if key.annotation == "int":
        return [*arguments, "key=lane_of"]
    return arguments if key.name == "user_id" else [*arguments, f'key="{key.name}"']


def _event_docstring(draft: Draft) -> str:
    if not draft.sampled:
        return "No message is stored yet: add the fields that the handler needs."
    count = "" if draft.sampled == 1 else f" {draft.sampled}"
    return f"The fields are those of the newest{count} stored message{'s' * (draft.sampled > 1)}."


def _declared(field: Field, *, is_filled: bool) -> str:
    """The line that declares a field."""
    annotation = field.annotation
    if field.is_optional and annotation != "Any":
        annotation += " | None"
    arguments = ["default=None"] if field.is_optional else []
    arguments += ["validator=aware"] if field.is_instant else []
    arguments += ["validator=filled"] if is_filled else []
    if not arguments:
        return f"{field.name}: {annotation}"
    value = "None" if arguments == ["default=None"] else f"attrs.field({', '.join(arguments)})"
    return f"{field.name}: {annotation} = {value}"


def _remarks(left_out: Sequence[str]) -> list[str]:
    """What a comment says of names that are no fields; each is quoted, so that none ends the comment."""
    if not left_out:
        return []
    shown = ", ".join(ascii(name[:MAX_NAME]) for name in left_out[:10])
    more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    return textwrap.wrap(f"Left out, for they can't be fields as they are called: {shown}{more}.", LINE - 6)


def _render(template: str, **facts: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is Python that is rendered
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**facts)
