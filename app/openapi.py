"""The OpenAPI 3.1 document of all routes, made from their operations (app/operations.py).

This module owns the document's form, and what every route has in common: the id, the problem documents and the tokens.
A route of a plugin that says nothing of itself is described by its path, its method and its handler's docstring.
Schemas come from app/openapi_schemas.py; app/views/docs.py answers with the document and shows it as a page.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

from aiohttp import hdrs, web

from app.middleware import BODY_LIMIT_BYTES
from app.openapi_schemas import Json, schemas_of
from app.operations import JSON, Answer, Body, Method, Operation, Parameter
from app.plugins import Plugin
from app.problems import CONTENT_TYPE, ProblemDocument, title_of

TOKEN = "token"
PLUGIN_METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""What the document says of a plugin's route that takes every method."""

_INFO = "Reacts to events on NATS JetStream with exactly-once effects, and answers a recommender over HTTP."
_ERRORS = "Every error is a problem document (RFC 9457) whose detail says what is wrong."
_IDS = "An X-Request-Id of 1 to 128 letters, digits or any of . _ : - is kept; any other request is given one."
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "How to send a token (RFC 6750)."},
    403: {"WWW-Authenticate": "Which scope the token lacks (RFC 6750)."},
    503: {"Retry-After": "Seconds after which the same request may go through."},
}


def openapi_document(operations: Sequence[Operation], *, version: str, has_tokens: bool) -> Json:
    """Makes the document.

    Args:
        version: of the application.
        has_tokens: whether API_TOKENS is set, without which every route is open.
    """
    schemas = _Schemas(operations)
    paths: Json = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas, has_tokens)
    components: Json = {"schemas": schemas.components}
    if has_tokens:
        what = "A token of API_TOKENS; one that has scopes opens the paths whose first segment is among them."
        components["securitySchemes"] = {TOKEN: {"type": "http", "scheme": "bearer", "description": what}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tipstream", "version": version, "description": f"{_INFO}\n\n{_ERRORS} {_IDS}"},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": components,
    }


def operations_of(plugins: Iterable[Plugin]) -> list[Operation]:
    """The operations of all routes, in order: those that a plugin describes, then the rest of its routes."""
    found: list[Operation] = []
    for plugin in plugins:
        found += plugin.operations
        known = {(operation.method, operation.path) for operation in plugin.operations}
        derived = (one for routes in plugin.routes for route in routes for one in _derive(route, plugin.name))
        found += [one for one in derived if (one.method, one.path) not in known]
    return found


class _Schemas:
    """The schema of each type that operations name, found again by the object that named it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        sent: list[Body | Parameter] = [parameter for one in operations for parameter in one.parameters]
        sent += [one.body for one in operations if one.body]
        answers = [answer for one in operations for answer in one.answers if answer.type is not None]
        made = schemas_of([one.type for one in sent], [*(one.type for one in answers), ProblemDocument])
        *schemas, self.problem = made.of_types
        self._by_id = {id(one): schema for one, schema in zip((*sent, *answers), schemas, strict=True)}
        self.components = made.components

    def of(self, one: Parameter | Body | Answer) -> Json:
        return self._by_id[id(one)]


def _operation(operation: Operation, schemas: _Schemas, has_tokens: bool) -> Json:
    words = re.findall(r"[A-Za-z0-9]+", operation.path)
    made: Json = {
        "operationId": "_".join((operation.method.lower(), *words)),
        "tags": [operation.tag],
        "summary": operation.summary,
    }
    if operation.description:
        made["description"] = operation.description
    if operation.parameters:
        made["parameters"] = [_parameter(one, schemas) for one in operation.parameters]
    if body := operation.body:
        content = {JSON: {"schema": schemas.of(body), "example": body.example}}
        made["requestBody"] = {"required": True, "content": content}
        if body.description:
            made["requestBody"]["description"] = body.description
    is_closed = has_tokens and not operation.is_open
    answers: dict[int, Json] = {}
    for answer in operation.answers:  # several of one status differ in their media type
        known, more = answers.setdefault(answer.status, {}), _answer(answer, schemas)
        answers[answer.status] = more | known | {"content": known.get("content", {}) | more.get("content", {})}
    for status, when in _errors(operation, is_closed).items():
        answers[status] = _problem(status, when, schemas)
    made["responses"] = {str(status): answers[status] for status in sorted(answers)}
    if not operation.answers:
        made["responses"]["default"] = {"description": "What the plugin answers."}
    if has_tokens:
        made["security"] = [{TOKEN: [operation.path.split("/")[1]]}] if is_closed else []
    return made


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    made = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.is_required,
        "description": parameter.description,
        "schema": schemas.of(parameter),
    }
    return made if parameter.example is None else made | {"example": parameter.example}


def _answer(answer: Answer, schemas: _Schemas) -> Json:
    made: Json = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.media_type is not None:
        content: Json = {} if answer.type is None else {"schema": schemas.of(answer)}
        if answer.example is not None:
            content["example"] = answer.example
        made["content"] = {answer.media_type: content}
    return made


def _errors(operation: Operation, is_closed: bool) -> dict[int, str]:
    common = {500: "Something that nobody foresaw; the log has it under the document's `error_id`."}
    if operation.body:
        common[400] = "The body ends early, or is not encoded as its headers say."
        common[413] = f"The body is longer than {BODY_LIMIT_BYTES} bytes."
    if is_closed:
        common[401] = "There is no token, or one that is not known."
        common[403] = "The token does not have the scope of this path."
    return common | dict(operation.errors)


def _problem(status: int, when: str, schemas: _Schemas) -> Json:
    example = {"type": "about:blank", "title": title_of(status), "status": status, "detail": when, "request_id": "r-1"}
    return {
        "description": when,
        "headers": _headers(_PROBLEM_HEADERS.get(status, {})),
        "content": {CONTENT_TYPE: {"schema": schemas.problem, "example": example}},
    }


def _headers(headers: Mapping[str, str]) -> Json:
    said = {"X-Request-Id": "The id that the request came with, or was given."} | dict(headers)
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in said.items()}


def _derive(definition: web.AbstractRouteDef, name: str) -> Iterator[Operation]:
    """Describes a plugin's route; aiohttp itself says what its path matches."""
    for route in definition.register(web.UrlDispatcher()):
        resource = route.resource
        path = resource.canonical if resource else ""
        facts = resource.get_info() if resource else {}
        names = list(facts["pattern"].groupindex) if "pattern" in facts else []
        if "prefix" in facts:
            path, names = f"{path}/{{file}}", ["file"]
        doc = inspect.getdoc(route.handler) or ""
        summary, _, description = doc.partition("\n")
        for method in _methods(route):
            yield Operation(
                method=method,
                path=path,
                tag=name,
                summary=summary.removesuffix(".") or f"A route of the plugin {name}",
                description=description.strip(),
                parameters=tuple(Parameter(name=one, description="A part of the path.") for one in names),
                answers=(),
            )


def _methods(route: web.AbstractRoute) -> list[Method]:
    """The methods that a route takes; HEAD comes with GET and is not said."""
    known: tuple[Method, ...] = get_args(Method)
    if route.method != hdrs.METH_ANY:
        return [method for method in known if method == route.method and method != hdrs.METH_HEAD]
    if isinstance(route.handler, type) and issubclass(route.handler, web.View):
        return [method for method in known if hasattr(route.handler, method.lower())]
    return list(PLUGIN_METHODS)
