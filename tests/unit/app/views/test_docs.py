"""``/openapi.json`` and ``/docs``, on a real aiohttp server."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from app.openapi import openapi_document
from app.views.docs import OPERATIONS, docs_routes

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


class Document:
    """A maker of the document that knows how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, Any]:
        self.count += 1
        return openapi_document(OPERATIONS, version="1.2.3", has_tokens=False)


async def client_of(aiohttp_client: Client, document: Document) -> TestClient[web.Request, web.Application]:
    """A client of a server that shows this document."""
    app = web.Application()
    app.add_routes(docs_routes(document))
    return await aiohttp_client(app)


async def test_openapi_json_is_the_document_made_once(aiohttp_client: Client) -> None:
    """Every answer is the same document as JSON."""
    document = Document()
    client = await client_of(aiohttp_client, document)
    for _ in range(3):
        answer = await client.get("/openapi.json")
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert (await answer.json())["info"]["version"] == "1.2.3"
    assert document.count == 1


async def test_docs_is_a_page_that_may_load_nothing(aiohttp_client: Client) -> None:
    """It is HTML under a policy that forbids all but its own style."""
    answer = await (await client_of(aiohttp_client, Document())).get("/docs")
    assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_docs_calls_the_address_that_it_was_asked_at(aiohttp_client: Client) -> None:
    """The commands on the page have the caller's Host, for shells quoted and for HTML escaped."""
    client = await client_of(aiohttp_client, Document())
    for host, shown in (("tips.example:8", "curl http://tips.example:8/docs"), ("a'<b>", "&lt;b&gt;/docs")):
        text = await (await client.get("/docs", headers={"Host": host})).text()
        assert shown in text and "<b>" not in text
