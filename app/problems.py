"""Errors as RFC 9457 problem documents.

This module owns the one table from error class to HTTP status, and the form of the document. It catches nothing:
app/middleware.py does, and sends what is made here. Nothing of an unknown error, and no path of this machine, goes into
a document: the answer carries an id, and the log has the rest under that id.
"""

import http
import json
from collections.abc import Mapping

import attrs
import msgspec
from aiohttp import web

from models.errors import BrokerError, PromptUnknown, RequestError, StoreError

CONTENT_TYPE = "application/problem+json"


@attrs.frozen(kw_only=True)
class Problem:
    """What a failed request is answered with; ``headers`` go with the document, the rest is in it.

    ``error_id`` is set for an unknown error alone: the log has the error under it.
    """

    status: int
    detail: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    error_id: str | None = None

    @property
    def title(self) -> str:
        """The status in words; ``type`` is about:blank, so RFC 9457 (section 4.2.1) asks for just this."""
        return title_of(self.status)


@attrs.frozen(kw_only=True)
class ProblemDocument:
    """What every failed request is answered with (RFC 9457).

    Args:
        title: the status in words.
        detail: what is wrong, and where.
        request_id: the id of the answer's X-Request-Id.
        error_id: of an error that nobody foresaw; the log has it under this id.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None
    error_id: str | msgspec.UnsetType = msgspec.UNSET


# The one table. RequestError and aiohttp's HTTPException bring a status of their own; any other class is unknown: 500.
PROBLEMS: Mapping[type[BaseException], Problem] = {
    StoreError: Problem(
        status=503, detail="the store can't be used at the moment; /health says why", headers={"Retry-After": "1"}
    ),
    BrokerError: Problem(
        status=503,
        detail="NATS can't be used at the moment, and nothing is known to be stored: send the same again",
        headers={"Retry-After": "1"},
    ),
    web.RequestPayloadError: Problem(status=400, detail="the body ends early, or is not encoded as its headers say"),
}

_HTTP_DETAILS: Mapping[int, str] = {
    404: "there is nothing at this path",
    405: "this path does not take that method; the Allow header names those it takes",
}


def title_of(status: int) -> str:
    """A status in words."""
    known = {known.value: known.phrase for known in http.HTTPStatus}
    return known.get(status, "Error")


def problem_of(error: BaseException) -> Problem | None:
    """Finds the answer to an error along its class's ancestors, or None when the error is unknown."""
    if isinstance(error, RequestError):
        return Problem(status=error.status, detail=error.detail)
    if isinstance(error, PromptUnknown):
        return Problem(status=422, detail=f"prompt_version: expected one of {', '.join(error.known)}")
    if isinstance(error, web.HTTPException):
        return _problem_of_http(error)
    return next((PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS), None)


def unknown_problem(error_id: str) -> Problem:
    """The answer to an error that nobody foresaw."""
    return Problem(
        status=500, detail="something went wrong here; the log has it under error_id", headers={}, error_id=error_id
    )


def problem_response(problem: Problem, *, request_id: str | None) -> web.Response:
    """Encodes a problem as the response to the request of that id."""
    document = ProblemDocument(
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        request_id=request_id,
        error_id=msgspec.UNSET if problem.error_id is None else problem.error_id,
    )
    # json escapes what is not ASCII, lone surrogates of an undecodable request among it; other encoders refuse those.
    facts = attrs.asdict(document, filter=lambda _, value: value is not msgspec.UNSET)
    body = json.dumps(facts).encode()
    return web.Response(status=problem.status, body=body, headers=problem.headers, content_type=CONTENT_TYPE)


def _problem_of_http(error: web.HTTPException) -> Problem:
    """Keeps status, headers (Allow, WWW-Authenticate) and any text that says more than the status does."""
    says_more = error.text is not None and error.text != f"{error.status}: {error.reason}"
    detail = error.text if says_more else _HTTP_DETAILS.get(error.status, error.reason)
    body_headers = ("content-type", "content-length")
    headers = {name: value for name, value in error.headers.items() if name.lower() not in body_headers}
    return Problem(status=error.status, detail=detail or error.reason, headers=headers)
