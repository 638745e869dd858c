"""The OpenAPI document: valid, true to the router, and the same for every route in what all have in common."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from app.main import build
from app.middleware import OPEN_ROUTES
from app.openapi import openapi_document, operations_of
from app.operations import Answer, Body, Operation, Parameter
from app.plugins import plugin_of
from app.settings import load_settings

TOKENS = "ops:0123456789abcdef"
GREET = Operation(
    method="POST",
    path="/greetings/{language}",
    tag="greetings",
    summary="Greets",
    parameters=(Parameter(name="language", description="Which.", example="en"),),
    body=Body(type=dict[str, int], example={"a": 1}, description="Whom."),
    answers=(
        Answer(description="JSON.", type=dict[str, int], example={"a": 1}, headers={"Vary": "Accept"}),
        Answer(description="A page.", type=str, media_type="text/html"),
        Answer(description="Nothing.", status=204, media_type=None),
    ),
    errors={422: "A field does not fit."},
)


def document_of(tmp_path: Path, *plugins: web.RouteTableDef, **settings: str) -> dict[str, Any]:
    """The document of an app with these plugins and settings."""
    env = {"NATS_URL": "", "STATE_DIR": str(tmp_path), **settings}
    brought = [plugin_of(routes, name=f"plugin{number}") for number, routes in enumerate(plugins)]
    return build(load_settings(env), plugins=brought).openapi()


def made_of(*operations: Operation, has_tokens: bool = False) -> dict[str, Any]:
    """The document of these operations."""
    return openapi_document(operations, version="1.2.3", has_tokens=has_tokens)


def declared_in(document: dict[str, Any]) -> set[tuple[str, str]]:
    """The method and path of every operation."""
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


@pytest.mark.parametrize("tokens", ["", TOKENS], ids=["open", "tokens"])
def test_document_is_valid(tmp_path: Path, tokens: str) -> None:
    """An independent validator of OpenAPI 3.1 has nothing to say against it, examples apart."""
    document = document_of(tmp_path, API_TOKENS=tokens)
    validate(document)
    assert document["openapi"] == "3.1.0" and document["servers"] == [{"url": "/"}]


def test_document_has_the_routes_that_the_router_has(tmp_path: Path) -> None:
    """No route lacks an operation that says what it answers, and none is described that is not there."""
    app = build(load_settings({"NATS_URL": "", "STATE_DIR": str(tmp_path)}), plugins=[])
    routes = {(route.method, route.resource.canonical) for route in app.http.router.routes() if route.resource}
    described = {(operation.method, operation.path) for operation in operations_of(app.plugins) if operation.answers}
    assert described == {(method, path) for method, path in routes if method != "HEAD"}


def test_document_has_examples_that_fit_their_schemas(tmp_path: Path) -> None:
    """Every example of a body, a parameter or an answer is one that its schema lets through."""
    document = document_of(tmp_path, API_TOKENS=TOKENS)
    found = list(examples_in(document["paths"]))
    assert len(found) > 20
    for schema, example in found:
        OAS31Validator(schema | {"components": document["components"]}).validate(example)


def examples_in(node: Any) -> Any:
    """Each pair of a schema and its example below a part of a document."""
    if isinstance(node, dict):
        if "schema" in node and "example" in node:
            yield node["schema"], node["example"]
        for inner in node.values():
            yield from examples_in(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from examples_in(inner)


def test_document_names_its_schemas_for_clients(tmp_path: Path) -> None:
    """A name becomes a type of a client's code, so none begins like a private one of ours."""
    assert [name for name in document_of(tmp_path)["components"]["schemas"] if not name[0].isupper()] == []


def test_document_gives_every_operation_an_id_of_its_own(tmp_path: Path) -> None:
    """Programs that make clients name a function after it."""
    paths = document_of(tmp_path)["paths"].values()
    ids = [operation["operationId"] for methods in paths for operation in methods.values()]
    assert len(set(ids)) == len(ids) and "get_state_table_key" in ids


def test_document_with_tokens_says_what_each_route_asks_for(tmp_path: Path) -> None:
    """A closed route names its scope and may answer 401 and 403; the open ones are those of the middleware."""
    document = document_of(tmp_path, API_TOKENS=TOKENS)
    state = document["paths"]["/state/{table}/{key}"]["get"]
    assert state["security"] == [{"token": ["state"]}] and {"401", "403"} <= set(state["responses"])
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert {path for path, methods in document["paths"].items() if methods.get("get", {}).get("security") == []} == set(
        OPEN_ROUTES
    )


def test_document_without_tokens_asks_for_none(tmp_path: Path) -> None:
    """Then no route has a scheme, and none answers 401."""
    document = document_of(tmp_path)
    assert "securitySchemes" not in document["components"]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "401" not in document["paths"]["/health"]["get"]["responses"]


def test_operation_with_a_body_may_be_too_long_and_have_errors_of_its_own() -> None:
    """To the errors that are declared come those that every body may cause, all as problem documents."""
    made = made_of(GREET)["paths"]["/greetings/{language}"]["post"]
    assert made["requestBody"]["description"] == "Whom."
    assert list(made["responses"]) == ["200", "204", "400", "413", "422", "500"]
    assert made["responses"]["422"]["description"] == "A field does not fit."
    assert list(made["responses"]["422"]["content"]) == ["application/problem+json"]


def test_answers_of_one_status_differ_in_their_media_type() -> None:
    """They are one response with two contents; an answer without a body has none."""
    responses = made_of(GREET)["paths"]["/greetings/{language}"]["post"]["responses"]
    assert list(responses["200"]["content"]) == ["application/json", "text/html"]
    assert set(responses["200"]["headers"]) == {"X-Request-Id", "Vary"}
    assert responses["204"]["content"] == {}


class Both(web.View):
    """Does two things."""

    async def get(self) -> web.Response:
        return web.Response()

    async def delete(self) -> web.Response:
        return web.Response()


def test_document_describes_routes_of_plugins_by_their_docstrings(tmp_path: Path) -> None:
    """Path, method, parameters and docstring are those of the handler; what it answers is left open."""
    routes = web.RouteTableDef()

    @routes.get("/streaks/{user_id:[^/]{1,20}}/{n}")
    async def show(_: web.Request) -> web.Response:
        """Shows a streak.

        More of it.
        """
        return web.Response()

    document = document_of(tmp_path, routes)
    made = document["paths"]["/streaks/{user_id}/{n}"]["get"]
    assert (made["tags"], made["summary"], made["description"]) == (["plugin0"], "Shows a streak", "More of it.")
    assert [parameter["name"] for parameter in made["parameters"]] == ["user_id", "n"]
    assert made["responses"]["default"] == {"description": "What the plugin answers."}
    validate(document)


def test_document_lists_the_methods_of_any_kind_of_route(tmp_path: Path) -> None:
    """A view has the methods of its class, a route of all methods the usual ones, a folder GET; HEAD is not said."""
    routes = web.RouteTableDef()
    routes.view("/both")(Both)
    routes.static("/files", tmp_path)

    async def anything(_: web.Request) -> web.Response:
        return web.Response()

    routes.route("*", "/any")(anything)
    document = document_of(tmp_path, routes)
    found = {pair for pair in declared_in(document) if pair[1].startswith(("/both", "/files", "/any"))}
    assert {("GET", "/both"), ("DELETE", "/both"), ("GET", "/files/{file}")} < found
    assert {method for method, path in found if path == "/any"} == {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert document["paths"]["/any"]["put"]["summary"] == "A route of the plugin plugin0"


def test_document_takes_a_plugins_own_operation_before_its_docstring() -> None:
    """A route that its plugin describes appears once, as described."""
    routes = web.RouteTableDef()

    @routes.post("/greetings/{language}")
    async def greet(_: web.Request) -> web.Response:
        """Is not read."""
        return web.Response()

    plugin = plugin_of(routes, name="greetings")
    plugin.operations = (GREET,)
    assert operations_of([plugin]) == [GREET]
