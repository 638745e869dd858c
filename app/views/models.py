"""The versions of the model over HTTP, and the card of each as JSON or as a page.

Nothing is moved from here: ``models promote``, ``rollback`` and ``demote`` of the command line do. Files are read in a
thread. A card that can't be used is 503 with the reason, a version that is not there is 404.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar, get_type_hints

import attrs
import msgspec
from aiohttp import web

from app.cards import ListedModel, ServedModel, ServedModels, list_models, read_shown_card, render_card
from app.operations import Answer, Operation, Parameter
from models.card import Card, Rollout
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
    listed = [attrs.asdict(one) for one in list_models(registry, aliases)]
    return {"name": registry.name, "aliases": {alias: aliases.get(alias) for alias in ALIASES}, "versions": listed}


def _json(document: object, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(body=body, headers=_NO_STORE | (headers or {}), content_type="application/json")


# What follows is for the OpenAPI document alone.
_CardAnswer = msgspec.defstruct(
    "CardAnswer",
    [
        ("version", str),
        ("aliases", tuple[str, ...]),
        *get_type_hints(Card).items(),
        ("rollouts", tuple[Rollout, ...]),
    ],
    namespace={"__doc__": f"{Card.__doc__}        rollouts: the moves of an alias to this version and away from it."},
)


@attrs.frozen(kw_only=True)
class ModelsAnswer:
    """The versions there are, and which of them answers.

    Args:
        name: of the model; null when no models are looked for.
        aliases: the version that each alias stands for; a shadow is loaded by no process and answers nobody.
        served: what this process answers with in the place of an alias.
        problem: why there are no versions; null otherwise.
    """

    name: str | None
    aliases: dict[str, str | None]
    served: dict[str, ServedModel]
    versions: list[ListedModel]
    problem: str | None


_REFUSED = "The registry, or the card, can't be used; the detail says why."

OPERATIONS = (
    Operation(
        method="GET",
        path="/models",
        tag="models",
        summary="Lists the versions of the model",
        description="A version whose card can't be used is listed with the reason.",
        answers=(Answer(description="Every version, by number.", type=ModelsAnswer),),
        errors={503: _REFUSED},
    ),
    Operation(
        method="GET",
        path="/models/{version}/card",
        tag="models",
        summary="Shows the card of a version",
        description="The Accept header decides between JSON and a page, unless `format` does.",
        parameters=(
            Parameter(name="version", description="A version, or its alias.", example="champion"),
            Parameter(
                name="format",
                where="query",
                type=Literal["json", "html"],
                description="Which of the two it shall be.",
                is_required=False,
            ),
        ),
        answers=(
            Answer(description="The card, and how the version was rolled out.", type=_CardAnswer),
            Answer(description="The same as a page.", type=str, media_type="text/html; charset=utf-8"),
        ),
        errors={
            400: "The format is neither.",
            404: "There is no such version, or no models are looked for.",
            503: _REFUSED,
        },
    ),
)
