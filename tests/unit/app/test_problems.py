"""Problem documents: status, headers and what may be said."""

import json
from pathlib import Path

import pytest
from aiohttp import web

from app.problems import Problem, problem_of, problem_response, unknown_problem
from models.errors import PromptUnknown, RequestError, Retry, StoreCorrupt, StoreError, StoreUnwritable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError(422, "no"), 422),
        (StoreError(Path("/secret/state.db"), "gone"), 503),
        (StoreUnwritable(Path("/secret/state.db"), "full"), 503),
        (StoreCorrupt(Path("/secret/state.db"), "damaged"), 503),
        (web.RequestPayloadError("bad chunk"), 400),
        (web.HTTPNotFound(), 404),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405),
        (web.HTTPRequestEntityTooLarge(max_size=10), 413),
    ],
    ids=["request", "store", "store-full", "store-corrupt", "payload", "404", "405", "413"],
)
def test_problem_of_a_known_error_has_its_status(error: Exception, status: int) -> None:
    """The status is the error's own, or that of its nearest class in the table."""
    problem = problem_of(error)
    assert problem is not None and problem.status == status


@pytest.mark.parametrize(
    "error", [ValueError("x"), Retry("x"), KeyError("x")], ids=["builtin", "of-a-handler", "lookup"]
)
def test_problem_of_an_unknown_error_is_none(error: Exception) -> None:
    """An error that is not in the table has no document of its own, so that its text can't leak."""
    assert problem_of(error) is None


def test_problem_of_a_store_error_asks_to_retry_and_names_no_path() -> None:
    """A store that can't be used is worth a retry after a second; where it lies is nobody's business."""
    problem = problem_of(StoreUnwritable(Path("/secret/state.db"), "disk full"))
    assert problem is not None and dict(problem.headers) == {"Retry-After": "1"}
    assert "secret" not in problem.detail


def test_problem_of_http_error_keeps_headers_but_not_the_content_type() -> None:
    """405 keeps Allow, while the type of aiohttp's text body does not overwrite the document's."""
    problem = problem_of(web.HTTPMethodNotAllowed("PUT", ["GET", "HEAD"]))
    assert problem is not None and dict(problem.headers) == {"Allow": "GET,HEAD"}


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (web.HTTPForbidden(text="not with this token"), "not with this token"),
        (web.HTTPNotFound(), "there is nothing at this path"),
        (web.HTTPGone(), "Gone"),
    ],
    ids=["own-text", "our-words", "reason"],
)
def test_problem_of_http_error_says_what_is_known(error: web.HTTPException, detail: str) -> None:
    """The detail is the error's own text where it says more than the status, then our words, then the reason."""
    problem = problem_of(error)
    assert problem is not None and problem.detail == detail


def test_problem_response_has_exactly_the_members_of_the_contract() -> None:
    """The document has type, title, status, detail and request_id, in that order, with the RFC's media type."""
    response = problem_response(Problem(status=422, detail="no"), request_id="r-1")
    assert (response.status, response.content_type) == (422, "application/problem+json")
    assert isinstance(response.body, bytes)
    assert list(json.loads(response.body).items()) == [
        ("type", "about:blank"),
        ("title", "Unprocessable Entity"),
        ("status", 422),
        ("detail", "no"),
        ("request_id", "r-1"),
    ]


def test_problem_response_of_an_unknown_error_carries_its_id() -> None:
    """The reader gets the id to ask for, and 500."""
    response = problem_response(unknown_problem("e-1"), request_id=None)
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert (response.status, document["error_id"], document["request_id"]) == (500, "e-1", None)


def test_problem_response_encodes_a_lone_surrogate() -> None:
    """A detail that quotes an undecodable request still makes a document."""
    response = problem_response(Problem(status=400, detail="got \udcff"), request_id=None)
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["detail"] == "got \udcff"


def test_problem_title_of_a_status_without_a_name_is_general() -> None:
    """A status that no RFC names gets a title all the same."""
    assert Problem(status=499, detail="").title == "Error"


def test_problem_of_an_unknown_prompt_names_the_known_ones() -> None:
    """The caller learns what it may ask for, and what it asked for is not repeated."""
    problem = problem_of(PromptUnknown("v9", ["v1", "v2"]))
    assert problem == Problem(status=422, detail="prompt_version: expected one of v1, v2")
