"""What every HTTP request passes on its way to a view, outermost first: id, measurement, errors, tokens.

This module owns the limits of a request and the one place where HTTP catches every error. It refuses requests without a
token once tokens are configured, and never decides by the raw path, only by the route that matched. Problem documents
are made in app/problems.py; views are in app/views/.
"""

import hmac
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from app.ids import new_id
from app.problems import problem_of, problem_response, unknown_problem
from models.codec import is_id

# Set as web.Application(client_max_size=BODY_LIMIT_BYTES): a view that reads a longer body answers 413.
BODY_LIMIT_BYTES = 2 * 1024 * 1024
# Set as web.AppRunner(app, max_line_size=LINE_LIMIT_BYTES): a key of 10 kB is 30 kB when each byte is percent-encoded.
LINE_LIMIT_BYTES = 64 * 1024

UNMATCHED = "unmatched"
OPEN_ROUTES = frozenset({"/health/live", "/health/ready"})
REQUEST_ID = web.RequestKey("request_id", str)

# What proxies log for a request whose client left; nobody receives it, but the request histogram counts it.
_CLIENT_GONE = 499

_log = logging.getLogger(__name__)


class Token(Protocol):
    """A configured API token; no ``scopes`` means all of them."""

    @property
    def name(self) -> str:
        """Whom the token was given to."""

    @property
    def token(self) -> str:
        """The secret itself."""

    @property
    def scopes(self) -> frozenset[str]:
        """First path segments of the routes it opens."""


class RequestObserver(Protocol):
    """Whoever counts requests."""

    def observe_request(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Takes note of an answered request; ``route`` is a template or ``unmatched``."""


def middlewares(*, observer: RequestObserver, tokens: Sequence[Token]) -> list[Middleware]:
    """Lists the application's middlewares in order; without tokens every route is open."""
    chain = [carry_request_id, _measure(observer), answer_errors]
    return [*chain, _check_token(tokens)] if tokens else chain


def route_template(request: web.Request) -> str:
    """The template of the route that matched, as it was declared; never a piece of the path itself."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


def find_token(tokens: Sequence[Token], authorization: str | None) -> Token | None:
    """Finds the token of an Authorization header; compares it with each one, so that time tells nothing."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    given = secret.strip().encode("utf-8", "surrogateescape")
    found = None
    for token in tokens:
        if hmac.compare_digest(token.token.encode(), given):
            found = token
    return found


@web.middleware
async def carry_request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Accepts a valid X-Request-Id or mints one, and echoes it.

    A view that streams has sent its headers before this one sees them: it echoes ``request[REQUEST_ID]`` itself.
    """
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if is_id(given) else new_id()
    response = await handler(request)
    if not response.prepared:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    return response


def _measure(observer: RequestObserver) -> Middleware:
    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        start = time.perf_counter()
        response = await handler(request)
        observer.observe_request(
            method=request.method,
            route=route_template(request),
            status=response.status,
            duration_s=time.perf_counter() - start,
        )
        return response

    return measure


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers any error with a problem document, so that the middlewares outside see responses only.

    Cancellation passes. An error after the first byte of a response closes the connection, as the only way left to say
    so; a client that has left is no error.
    """
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            return web.Response(status=error.status, headers=error.headers, body=error.body)
        return _answer(request, error)
    except Exception as error:
        if isinstance(error, (ConnectionError, web.RequestPayloadError)) and _is_client_gone(request):
            return web.Response(status=_CLIENT_GONE)
        return _answer(request, error)


def _answer(request: web.Request, error: Exception) -> web.Response:
    """Logs what a person must see, and makes the response; the log names the route, never the path: keys are data."""
    where = f"{request.method} {route_template(request)}"
    request_id = request.get(REQUEST_ID)
    problem = problem_of(error)
    if problem is None:
        problem = unknown_problem(new_id())
        _log.error("%s failed, error_id=%s request_id=%s", where, problem.error_id, request_id, exc_info=error)
    elif problem.status >= 500:
        _log.warning("%s answered %d, request_id=%s: %s", where, problem.status, request_id, error)
    if request.writer.output_size:
        request.protocol.force_close()
    return problem_response(problem, request_id=request_id)


def _is_client_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _check_token(tokens: Sequence[Token]) -> Middleware:
    @web.middleware
    async def check_token(request: web.Request, handler: Handler) -> web.StreamResponse:
        template = route_template(request)
        if template not in OPEN_ROUTES:
            _require(tokens, request, template)
        return await handler(request)

    return check_token


def _require(tokens: Sequence[Token], request: web.Request, template: str) -> None:
    """Raises 401 or 403 (RFC 6750, section 3) unless the request may use the route.

    A path that no route matches has no scope; whoever has any token learns that it is not there.
    """
    authorization = request.headers.get("Authorization")
    token = find_token(tokens, authorization)
    if token is None:
        challenge = 'Bearer realm="tipstream"' + (', error="invalid_token"' if authorization else "")
        detail = "this token is not known" if authorization else "send a token: Authorization: Bearer <token>"
        raise web.HTTPUnauthorized(text=detail, headers={"WWW-Authenticate": challenge})
    scope = template.split("/")[1] if template != UNMATCHED else None
    if token.scopes and scope is not None and scope not in token.scopes:
        challenge = f'Bearer realm="tipstream", error="insufficient_scope", scope="{scope}"'
        detail = f'the token "{token.name}" does not have the scope "{scope}"'
        raise web.HTTPForbidden(text=detail, headers={"WWW-Authenticate": challenge})
