"""The versions of the model over HTTP, and the card of each as JSON or as a page.

Nothing is moved from here: ``models promote`` and ``models rollback`` of the command line do. Files are read in a
thread. A card that can't be used is 503 with the reason, a version that is not there is 404.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar

import attrs
import msgspec
from aiohttp import web

from app.cards import ServedModels, list_models, read_shown_card, render_card
from models.errors import ModelError, ModelUnknown, RequestError
from models.registry import ALIASES, Registry

T = TypeVar("T")
Format = Literal["json", "html"]

NO_REGISTRY = "no models are looked for: MODEL_REGISTRY is none"

# The page is text and one style; whatever somebody wrote into a card, a browser loads and runs nothing.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
_NO_STORE = {"Cache-Control": "no-store"}
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


def models_routes(registry: Registry | None, served: Callable[[], ServedModels]) -> web.RouteTableDef:
    """The routes ``/models`` and ``/models/{version}/card``; a version may be named by its alias.

    Args:
        registry: None when no models are looked for.
        served: what this process answers with at the moment; called on the loop, so it must not wait.
    """
    routes = web.RouteTableDef()

    @routes.get("/models")
    async def show_models(_: web.Request) -> web.Response:
        now = {alias: attrs.asdict(one) for alias, one in served().items()}
        if registry is None:
            return _json({"name": None, "aliases": {}, "served": now, "versions": [], "problem": NO_REGISTRY})
        found = await _read(lambda: _models(registry))
        return _json(found | {"served": now, "problem": None})

    @routes.get("/models/{version}/card")
    async def show_card(request: web.Request) -> web.Response:
        if registry is None:
            raise RequestError(404, NO_REGISTRY)
        kind = wanted_format(request.query.get("format"), request.headers.get("Accept", ""))
        name = request.match_info["version"]
        vary = {"Vary": "Accept"}
        if kind == "html":
            page = await _read(lambda: render_card(read_shown_card(registry, name)))
            return web.Response(text=page, headers=_NO_STORE | vary | _PAGE_HEADERS, content_type="text/html")
        return _json(await _read(lambda: read_shown_card(registry, name).document()), vary)

    return routes


def wanted_format(asked: str | None, accept: str) -> Format:
    """What the query asks for, else HTML for who would rather have that than JSON by the Accept header.

    Raises:
        RequestError: 400; the format is neither.
    """
    if asked is None:
        return "html" if _quality(accept, "text/html") > _quality(accept, "application/json") else "json"
    if asked not in ("json", "html"):
        raise RequestError(400, "format: expected json or html")
    return "html" if asked == "html" else "json"


def _quality(accept: str, content_type: str) -> float:
    """How much a type is wanted (RFC 9110, section 12.5.1), by its full name alone; a browser names text/html."""
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if name == content_type:
            found = [match[1] for match in map(_QUALITY.fullmatch, parameters) if match]
            return float(found[0]) if found else 1.0
    return 0.0


async def _read(read: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(read)
    except ModelError as error:
        _refuse(error)


def _refuse(error: ModelError) -> NoReturn:
    raise RequestError(404 if isinstance(error, ModelUnknown) else 503, str(error)) from error


def _models(registry: Registry) -> dict[str, object]:
    aliases = registry.aliases()
    listed = [attrs.asdict(one) for one in list_models(registry)]
    return {"name": registry.name, "aliases": {alias: aliases.get(alias) for alias in ALIASES}, "versions": listed}


def _json(document: object, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(body=body, headers=_NO_STORE | (headers or {}), content_type="application/json")
