"""The OpenAPI document and the page that shows it to a person.

Both are made when they are first asked for, for no plugin joins a running app. The page is one file without a script:
it works where nothing else can be reached, and its policy lets a browser load nothing. app/openapi.py makes the
document, app/docs_page.py the page.
"""

import asyncio
import functools
from collections.abc import Callable

import msgspec
from aiohttp import web

from app.docs_page import content_security_policy, render_page
from app.openapi_schemas import Json
from app.operations import Answer, Operation

_PAGES = 8


def docs_routes(document: Callable[[], Json]) -> web.RouteTableDef:
    """The routes ``/openapi.json`` and ``/docs``.

    Args:
        document: makes the OpenAPI document; it is called once.
    """
    routes = web.RouteTableDef()
    made = functools.cache(document)
    encoded = functools.cache(lambda: msgspec.json.encode(made()))
    page = functools.lru_cache(_PAGES)(lambda origin: render_page(made(), origin))

    @routes.get("/openapi.json")
    async def show_document(_: web.Request) -> web.Response:
        body = await asyncio.to_thread(encoded)
        return web.Response(body=body, headers=_NO_CACHE, content_type="application/json")

    @routes.get("/docs")
    async def show_page(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(page, f"{request.scheme}://{request.host}")
        policy = {
            "Content-Security-Policy": content_security_policy(),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(text=text, headers=_NO_CACHE | policy, content_type="text/html")

    return routes


_NO_CACHE = {"Cache-Control": "no-cache"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/openapi.json",
        tag="documentation",
        summary="Shows this document",
        description="OpenAPI 3.1 of every route, those of plugins among them.",
        answers=(Answer(description="The document.", type=dict[str, object]),),
    ),
    Operation(
        method="GET",
        path="/docs",
        tag="documentation",
        summary="Shows this document as a page",
        description="One page without scripts, which loads nothing from anywhere.",
        answers=(
            Answer(
                description="The page.",
                type=str,
                media_type="text/html; charset=utf-8",
                headers={"Content-Security-Policy": "Lets the browser load nothing."},
            ),
        ),
    ),
)
