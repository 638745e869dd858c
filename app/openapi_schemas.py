"""JSON Schemas of our types, with what their validators and docstrings say.

msgspec makes the schemas; an attrs class's validators and the ``Args:`` of its docstring are unknown to it, and are
added here. A validator that promises something in words of JSON Schema has a line in ``promises``; any other one only
makes the schema looser than the code is, never wrong. app/openapi.py puts the schemas into the document.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from models.codec import ID_PATTERN, Between, aware, filled, identifier

Json = dict[str, Any]
REF = "#/components/schemas/{name}"

_ARGUMENT = re.compile(r"^(?P<name>\w+): (?P<text>.*(?:\n\s+.*)*)", re.MULTILINE)
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_OF_TEXTS = frozenset({"minLength", "maxLength", "pattern", "format"})
_COMPARISONS = {">=": "minimum", "<=": "maximum", ">": "exclusiveMinimum", "<": "exclusiveMaximum"}


@attrs.frozen(kw_only=True)
class Schemas:
    """The schema of each type that was asked for, in order, and those of the classes that they refer to."""

    of_types: tuple[Json, ...]
    components: Mapping[str, Json]


def schemas_of(requests: Sequence[object], answers: Sequence[object]) -> Schemas:
    """Makes the schemas of what requests carry, and then of what they are answered with.

    A class that is found in answers alone has all its fields in every answer, so it requires them, but for those whose
    default is msgspec.UNSET.
    """
    types = [*requests, *answers]
    classes = _classes_in(types)
    sent = set(_classes_in(requests))
    schemas, components = msgspec.json.schema_components(
        [*types, *classes], ref_template=REF, schema_hook=_schema_of_custom
    )
    for cls, reference in zip(classes, schemas[len(types) :], strict=True):
        component = components[reference["$ref"].rpartition("/")[2]]
        _describe(component, cls)
        if attrs.has(cls):
            _limit(component, cls)
            if cls not in sent:
                _require_all(component, cls)
    return Schemas(of_types=schemas[: len(types)], components=dict(sorted(components.items())))


def _schema_of_custom(cls: type) -> Json:
    if cls is object:
        return {"description": "Any JSON."}
    raise NotImplementedError  # as msgspec asks for; it names the type


def promises(validator: object) -> Json:
    """What holds, in words of JSON Schema, for each value that a validator lets through."""
    if validator is filled:
        return {"minLength": 1}
    if validator is identifier:
        return {"pattern": f"^{ID_PATTERN}$"}
    if validator is aware:
        return {"format": "date-time"}
    if isinstance(validator, Between):
        return {"minimum": validator.low, "maximum": validator.high}
    if isinstance(pattern := getattr(validator, "pattern", None), re.Pattern):  # attrs.validators.matches_re
        return {"pattern": f"^(?:{pattern.pattern})$"}
    if word := _COMPARISONS.get(getattr(validator, "compare_op", "")):  # attrs.validators.ge and the like
        return {word: getattr(validator, "bound", None)}
    inner = [getattr(validator, "validator", None), *getattr(validator, "_validators", ())]  # optional, and_
    return {word: value for one in inner if one is not None for word, value in promises(one).items()}


def _limit(component: Json, cls: type) -> None:
    properties = component["properties"]
    component["properties"] = {field.name: properties[field.name] for field in attrs.fields(cls)}  # in our order
    for field in attrs.fields(cls):
        found = promises(field.validator)
        for branch in _branches(properties[field.name]):
            kinds = {"number": _OF_NUMBERS, "integer": _OF_NUMBERS, "string": _OF_TEXTS}.get(branch.get("type", ""), ())
            branch.update({word: value for word, value in found.items() if word in kinds})


def _branches(schema: Json) -> Iterator[Json]:
    """A schema, or those that it is any of: a limit of numbers is none of the null beside them."""
    yield from schema.get("anyOf", (schema,))


def _require_all(component: Json, cls: type) -> None:
    component["required"] = [field.name for field in attrs.fields(cls) if field.default is not msgspec.UNSET]
    for schema in component["properties"].values():
        schema.pop("default", None)


def _describe(component: Json, cls: type) -> None:
    """Takes the docstring apart: the text is of the class, and each argument of a field."""
    component.pop("description", None)
    doc, _, arguments = inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")
    if doc and not doc.startswith(f"{cls.__name__}("):
        component["description"] = doc.strip()
    for argument in _ARGUMENT.finditer(inspect.cleandoc(arguments)):
        if argument["name"] in component.get("properties", {}):
            text = " ".join(argument["text"].split())
            component["properties"][argument["name"]]["description"] = text[:1].upper() + text[1:]


def _classes_in(types: Iterable[object]) -> list[type]:
    """Every class with fields that the types hold, each once."""
    found: dict[type, None] = {}
    waiting: list[object] = list(msgspec.inspect.multi_type_info(types))
    while waiting:
        one = waiting.pop(0)
        cls = getattr(one, "cls", None)
        if hasattr(one, "fields") and cls is not None:
            if cls in found:
                continue
            found[cls] = None
            waiting.extend(field.type for field in one.fields)
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(inner := getattr(one, name, None), msgspec.inspect.Type):
                waiting.append(inner)
        waiting.extend((*getattr(one, "item_types", ()), *getattr(one, "types", ())))
    return list(found)
