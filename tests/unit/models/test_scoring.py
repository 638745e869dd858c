"""Requests of ``POST /score``: what fits, and how each flaw is named."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError
from models.features import Assembler
from models.scoring import MAX_CANDIDATES, request_decoder, unknown_names

WHOLE_NUMBERS = st.integers() | st.integers(-(10**400), 10**400)  # no float holds most of the latter
ANY_JSON = st.recursive(
    st.none() | st.booleans() | WHOLE_NUMBERS | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ASSEMBLER = Assembler(["urgency", "hour_local"])
decode = request_decoder(ASSEMBLER)


def body(**changes: Any) -> bytes:
    """A request with these fields instead of those that fit."""
    fitting = {"user_id": "ada", "candidates": [{"id": "a", "features": {"urgency": 0.5}}]}
    return json.dumps({name: value for name, value in (fitting | changes).items() if value is not ...}).encode()


def candidates(*ids: str, **features: Any) -> list[Any]:
    """Candidates of these ids with these features."""
    return [{"id": id_, "features": features} for id_ in ids]


def problem_of(payload: bytes) -> str:
    """Why a body is refused."""
    with pytest.raises(PayloadError) as caught:
        decode(payload)
    return caught.value.reason


def test_a_request_keeps_the_order_of_its_candidates() -> None:
    """Ids and features come out as they were sent; a feature that is absent or null is missing."""
    sent = [
        {"id": "b", "features": {"urgency": 1}},
        {"id": "a", "features": {}},
        {"id": "c", "features": {"urgency": None}},
    ]
    asked = decode(body(candidates=sent, request_id="r-1", context={"utc_offset_minutes": 60}))
    assert (asked.user_id, asked.request_id, asked.ids) == ("ada", "r-1", ("b", "a", "c"))
    assert [features.urgency for features in asked.features] == [1, None, None]  # type: ignore[attr-defined]
    assert asked.context.utc_offset_minutes == 60


@pytest.mark.parametrize("absent", ["context", "profile_features", "request_id"])
def test_null_is_as_good_as_absent(absent: str) -> None:
    """A client may send null for what it does not have."""
    assert decode(body(**{absent: None})) == decode(body())


def test_what_nobody_knows_is_ignored() -> None:
    """Unknown fields, features and keys of the context change nothing."""
    sent = [{"id": "a", "features": {"urgency": 0.5}, "text": "…"}]
    asked = decode(body(candidates=sent, context={"surface": "web"}, trace={"a": [1]}))
    assert asked == decode(body())
    sent[0]["features"] = {"urgency": 0.5, "mood": "blue"}
    named = decode(body(candidates=sent))
    assert list(map(msgspec.structs.asdict, named.features)) == list(map(msgspec.structs.asdict, asked.features))


@pytest.mark.parametrize(
    ("sent", "names"),
    [
        pytest.param([{"urgency": 1}, {}], [], id="none"),
        pytest.param([{"novelty": 1}], [], id="declared, and read by another model"),
        pytest.param([{"mood": 1, "urgency": 2}, {"sky": "b", "mood": []}, {"urgency": 3}], ["mood", "sky"], id="two"),
        pytest.param([{"urgency": 1}, {"urgency": 1}, {"hour_local": []}], ["hour_local"], id="no candidate's"),
    ],
)
def test_a_request_tells_the_names_that_are_not_declared(sent: list[dict[str, Any]], names: list[str]) -> None:
    """Each once, in the order of the request; whatever they hold, the others are read as without them."""
    payload = body(candidates=[{"id": str(place), "features": features} for place, features in enumerate(sent)])
    asked = decode(payload)
    assert [features.urgency for features in asked.features] == [one.get("urgency") for one in sent]  # type: ignore[attr-defined]
    assert asked.has_unknown is bool(names)
    assert unknown_names(payload, asked) == names


undeclared = st.text().filter(lambda name: name not in ASSEMBLER.candidate_features.__struct_fields__)


@given(st.lists(st.dictionaries(undeclared, st.none() | st.integers() | st.lists(st.text())), min_size=1, max_size=5))
def test_names_that_are_not_declared_change_nothing(others: list[dict[str, Any]]) -> None:
    """Whatever they are and hold, each is told once, and the candidates are read as without them."""
    sent = [{"id": str(place), "features": {"urgency": place} | other} for place, other in enumerate(others)]
    payload = body(candidates=sent)
    asked = decode(payload)
    assert [features.urgency for features in asked.features] == list(range(len(others)))  # type: ignore[attr-defined]
    assert sorted(unknown_names(payload, asked)) == sorted({name for other in others for name in other})


def test_unknown_names_that_are_no_text_stay_unnamed() -> None:
    """Such a name is passed over like any other by who answers, so it is no reason to refuse the request."""
    payload = body().replace(b'"urgency"', b'"\xff": 1, "urgency"')
    asked = decode(payload)
    assert (asked.has_unknown, unknown_names(payload, asked)) == (True, [])


def test_profile_features_are_passed_on_as_they_were_sent() -> None:
    """Their schema is another module's: any JSON goes through."""
    asked = decode(body(profile_features={"completion_rate_7d": "x"}))
    assert msgspec.json.decode(asked.profile_features) == {"completion_rate_7d": "x"}


FLAWS = {
    "user-missing": (body(user_id=...), "user_id: missing"),
    "user-null": (body(user_id=None), "user_id: expected str, got null"),
    "user-number": (body(user_id=7), "user_id: expected str, got int"),
    "user-empty": (body(user_id=""), "user_id: expected [A-Za-z0-9._:-]{1,128}, got ''"),
    "user-long": (body(user_id="x" * 200), "user_id: expected [A-Za-z0-9._:-]{1,128}, got 'xxxx"),
    "request-id": (body(request_id="a b"), "request_id: expected [A-Za-z0-9._:-]{1,128}, got 'a b'"),
    "candidates-missing": (body(candidates=...), "candidates: missing"),
    "candidates-object": (body(candidates={}), "candidates: expected array, got object"),
    "candidates-empty": (body(candidates=[]), "candidates: expected 1 to 1000, got 0"),
    "candidates-1001": (
        body(candidates=candidates(*map(str, range(MAX_CANDIDATES + 1)))),
        "candidates: expected 1 to 1000, got 1001",
    ),
    "candidate-number": (body(candidates=[1]), "candidates[0]: expected object, got int"),
    "id-missing": (body(candidates=[{"features": {}}]), "candidates[0].id: missing"),
    "id-bad": (body(candidates=candidates("a", "b\n", "c")), "candidates[1].id: expected"),
    "id-of-lines": (body(candidates=candidates("a", "b\nc")), "candidates[1].id: expected"),
    "id-twice": (body(candidates=candidates("a", "b", "c", "b")), "candidates[3].id: the same as candidates[1].id"),
    "features-missing": (body(candidates=[{"id": "a"}]), "candidates[0].features: missing"),
    "features-list": (body(candidates=[{"id": "a", "features": []}]), "candidates[0].features: expected object"),
    "number-as-string": (
        body(candidates=candidates("a", "b", urgency="0.5")),
        "candidates[0].features.urgency: expected float | null, got str",
    ),
    "bool-for-a-number": (body(candidates=candidates("a", urgency=True)), "candidates[0].features.urgency: expected"),
    "nested-object": (body(candidates=candidates("a", urgency={"v": 1})), "candidates[0].features.urgency: expected"),
    "unread-but-declared": (
        body(candidates=candidates("a", novelty="x")),
        "candidates[0].features.novelty: expected float | null, got str",
    ),
    "beyond-float32": (body(candidates=candidates("a", urgency=1e39)), "candidates[0].features.urgency: expected"),
    "offset": (body(context={"utc_offset_minutes": 900}), "context.utc_offset_minutes: expected a number from -720 to"),
    "a-list": (b"[]", "payload: expected object, got array"),
}


@pytest.mark.parametrize(("payload", "problem"), FLAWS.values(), ids=FLAWS)
def test_a_flaw_is_named_by_its_path(payload: bytes, problem: str) -> None:
    """Whoever sent it reads which field it is, and what was expected."""
    assert problem_of(payload).startswith(problem), problem_of(payload)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(body().replace(b"0.5", b"NaN"), id="nan"),
        pytest.param(body().replace(b"0.5", b"Infinity"), id="infinity"),
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"user_id": "ada"', id="cut"),
        pytest.param(body(mood=0).replace(b"0}", b'{"a":' * 50_000), id="deep-in-an-unknown-field"),
        pytest.param(b'{"user_id": "\xff"}', id="no-utf8"),
        pytest.param(body().decode().encode("utf-16"), id="utf-16"),
        pytest.param(b"\xef\xbb\xbf" + body(), id="byte-order-mark"),
        pytest.param(body().replace(b"ada", b"\\ud800"), id="half-a-character"),
        pytest.param(body() + b"{}", id="two-documents"),
    ],
)
def test_what_is_no_json_is_told_so(payload: bytes) -> None:
    """NaN and infinity are none, nor is a text of other bytes or one that is nested without an end."""
    assert problem_of(payload).startswith("payload: not valid JSON")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" + b"0" * 400], ids=["large", "low", "digits"])
def test_a_number_that_no_float_holds_is_named(number: bytes) -> None:
    """It would be infinite, which no feature is."""
    found = problem_of(body().replace(b"0.5", number))
    assert found == "candidates[0].features.urgency: number out of range"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda value: json.dumps(value).encode(), id="body"),
        pytest.param(lambda value: body(candidates=value), id="candidates"),
        pytest.param(lambda value: body(candidates=candidates("a", urgency=value)), id="feature"),
        pytest.param(lambda value: body(context={"utc_offset_minutes": value}), id="offset"),
    ],
)
@given(value=ANY_JSON)
def test_any_json_is_answered_by_a_request_or_a_reason(place: Callable[[Any], bytes], value: Any) -> None:
    """Nothing that a client can send, wherever it stands, makes another error than the one that names its flaw."""
    try:
        decode(place(value))
    except PayloadError as error:
        assert error.reason
