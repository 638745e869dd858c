"""What the OpenAPI document says of a route: the records that a view module writes beside its routes.

This module owns the records and knows no route. Each module of app/views/ has a tuple ``OPERATIONS`` with one operation
a route; app/main.py hands it to the plugin that brings the routes, and app/openapi.py makes the document of them all.
A test compares the document with the router, so that a route without an operation fails. An example, whole::

    @attrs.frozen(kw_only=True)
    class Greeting:
        '''What somebody is greeted with.

        Args:
            name: who it was.
            warmth: 0 is cold.
        '''

        name: str = attrs.field(validator=filled)
        warmth: float = attrs.field(validator=between(0, 1))

    OPERATIONS = (
        Operation(
            method="POST",
            path="/greetings/{language}",
            tag="greetings",
            summary="Greets somebody",
            description="The greeting is kept under the request's id.",
            parameters=(Parameter(name="language", description="As in RFC 5646.", example="en"),),
            body=Body(type=Greeting, example={"name": "Ada", "warmth": 0.5}),
            answers=(Answer(description="The greeting.", type=Greeting, example={"name": "Ada", "warmth": 0.5}),),
            errors={422: "A field of the body is missing or mistyped; the detail names its path."},
        ),
    )

A type is whatever msgspec knows: attrs classes, Structs, ``dict[str, float | None]``, ``Annotated[str, Meta(…)]``. The
limits of a field are read from its validators (app/openapi_schemas.py). Added to every operation, and not to be said
again: X-Request-Id, 500, with tokens 401 and 403, and with a body 400 and 413.
"""

from collections.abc import Mapping
from typing import Literal

import attrs

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]
Where = Literal["path", "query", "header"]
JSON = "application/json"


@attrs.frozen(kw_only=True)
class Parameter:
    """A part of the path, of the query, or a header.

    Args:
        is_required: as it must be for a part of the path.
    """

    name: str
    description: str
    where: Where = "path"
    type: object = str
    example: object = None
    is_required: bool = True


@attrs.frozen(kw_only=True)
class Body:
    """The JSON that a request carries."""

    type: object
    example: object
    description: str = ""


@attrs.frozen(kw_only=True)
class Answer:
    """An answer that is no problem document; two of one status differ in their media type.

    Args:
        type: of the JSON in it, or of the text; None says nothing of the body.
        media_type: None for an answer without a body.
        headers: their names, and what they say.
    """

    description: str
    status: int = 200
    type: object = None
    example: object = None
    media_type: str | None = JSON
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path.

    Args:
        path: as OpenAPI spells it: ``/state/{table}/{key}``.
        tag: the heading it stands under.
        answers: none stands for a route of a plugin, of which nobody knows what it answers.
        errors: statuses that are answered with a problem document, and when.
        is_open: it needs no token.
    """

    method: Method
    path: str
    summary: str
    tag: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    answers: tuple[Answer, ...]
    errors: Mapping[int, str] = attrs.field(factory=dict)
    is_open: bool = False
