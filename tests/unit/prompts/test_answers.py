"""What is believed of an answer: its text, its count of tokens, its cost, and how it ended."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import GatewayError
from prompts.answers import Answer, Collected, decode_answer, usage_of
from prompts.ledger import Usage

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ["choices", "message", "delta", "content", "finish_reason", "usage", "error", "model", "code", "cost"]
ODD = st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner) | st.lists(inner, max_size=2))


def body(**changes: Any) -> bytes:
    """A whole answer, changed."""
    choice = {"message": {"content": "Do it."}, "finish_reason": "stop"}
    return json.dumps({"model": "m-1", "choices": [choice], "usage": USAGE} | changes).encode()


def choice(content: object, finish: str | None = "stop") -> list[object]:
    """The choices of a whole answer."""
    return [{"message": {"content": content}, "finish_reason": finish}]


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """The data of an event."""
    return json.dumps({"choices": [{"delta": {"content": content}, "finish_reason": finish}]} | more).encode()


def test_answer_is_read_whole() -> None:
    """Text, model, tokens and the cost of the header come out as they went in."""
    usage = Usage(prompt_tokens=11, completion_tokens=7)
    expected = Answer(text="Do it.", model="m-1", usage=usage, cost_usd=2.5e-05, is_cut=False)
    assert decode_answer(body(), cost_header="2.5e-05") == expected


def test_answer_says_that_it_ran_into_its_limit() -> None:
    """What ended by its length is cut."""
    assert decode_answer(body(choices=choice("Do", "length")), cost_header=None).is_cut


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        pytest.param({"choices": []}, "choices: expected at least one", id="no-choice"),
        pytest.param({"choices": None}, "choices: expected at least one", id="no-choices"),
        pytest.param({"choices": "x"}, "choices: expected array, got str", id="wrong-type"),
        pytest.param({"choices": choice(7)}, "choices[0].message.content: expected str | null, got int", id="number"),
        pytest.param({"choices": choice(None)}, "the text is empty", id="null"),
        pytest.param({"choices": choice(" \n")}, "the text is empty", id="blank"),
        pytest.param({"choices": [{}]}, "the text is empty", id="no-message"),
        pytest.param({"choices": choice("x", "content_filter")}, "withheld by a content filter", id="filtered"),
    ],
)
def test_answer_without_text_is_refused(changes: dict[str, Any], detail: str) -> None:
    """An answer that has nothing to show is an error that says what is missing."""
    with pytest.raises(GatewayError) as caught:
        decode_answer(body(**changes), cost_header=None)
    assert caught.value.reason == "bad_answer"
    assert caught.value.detail.replace("array | null", "array") == detail


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b'"\\ud800"', b"[" * 100_000, b"<html>"])
def test_answer_that_is_no_json_is_refused(content: bytes) -> None:
    """Whatever came instead of an answer, the error is the same kind."""
    with pytest.raises(GatewayError, match="bad_answer"):
        decode_answer(content, cost_header=None)


@given(ODD, ODD)
def test_answer_of_any_json_is_text_or_an_error(choices: object, usage: object) -> None:
    """No JSON at all gets past with anything but a text, a plausible count and a cost that is a number."""
    content = json.dumps({"choices": choices, "usage": usage}).encode()
    for is_stream in (False, True):
        try:
            if is_stream:
                collected = Collected()
                collected.feed(content)
                answer = collected.answer()
            else:
                answer = decode_answer(content, cost_header=None)
        except GatewayError:
            continue
        assert answer.text.strip()
        assert answer.cost_usd is None or answer.cost_usd >= 0


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="absent"),
        pytest.param([], id="list"),
        pytest.param({}, id="empty"),
        pytest.param(dict.fromkeys(USAGE, 0), id="zero"),
        pytest.param(USAGE | {"prompt_tokens": -5, "total_tokens": 2}, id="negative"),
        pytest.param(USAGE | {"total_tokens": 99}, id="not-adding-up"),
        pytest.param(USAGE | {"total_tokens": None}, id="total-null"),
        pytest.param(USAGE | {"completion_tokens": 7.5}, id="fraction"),
        pytest.param(USAGE | {"completion_tokens": True}, id="boolean"),
        pytest.param(USAGE | {"completion_tokens": "7"}, id="text"),
        pytest.param({"prompt_tokens": 10**30, "completion_tokens": 1}, id="huge"),
    ],
)
def test_usage_that_can_not_be_right_is_dropped_with_its_cost(raw: object) -> None:
    """The text stands; neither the count nor the cost that was made from it does."""
    answer = decode_answer(body(usage=raw), cost_header="0.5")
    assert (answer.text, answer.usage, answer.cost_usd) == ("Do it.", None, None)


def test_usage_without_a_total_is_taken() -> None:
    """The total is ours to sum."""
    assert usage_of({"prompt_tokens": 2, "completion_tokens": 3}) == Usage(prompt_tokens=2, completion_tokens=3)


@pytest.mark.parametrize(
    ("header", "cost", "expected"),
    [
        pytest.param("0.0", None, 0.0, id="free"),
        pytest.param(None, 2e-05, 2e-05, id="in-the-usage"),
        pytest.param("None", "0.5", 0.5, id="header-unknown"),
        pytest.param(None, None, None, id="unknown"),
        pytest.param("nan", "inf", None, id="no-number"),
        pytest.param("-1", None, None, id="negative"),
        pytest.param(None, 10**400, None, id="beyond-all-floats"),
        pytest.param("x", [1], None, id="nonsense"),
    ],
)
def test_cost_is_the_gateways_or_unknown(header: str | None, cost: object, expected: float | None) -> None:
    """The header comes first, then the usage; what is no amount of money is not known."""
    assert decode_answer(body(usage=USAGE | {"cost": cost}), cost_header=header).cost_usd == expected


@pytest.mark.parametrize("model", [None, "", "two words", "x" * 200, "a\n"])
def test_model_that_is_no_name_is_left_out(model: str | None) -> None:
    """What may not stand in a log or a label is not taken for a name."""
    assert decode_answer(body(model=model), cost_header=None).model is None


def test_stream_is_collected() -> None:
    """Texts are joined in order; the last usage and the end that the model gave count."""
    collected = Collected()
    events = [chunk("Do ", model="m-1"), chunk("it."), chunk(None, "stop"), chunk(usage=USAGE, choices=[])]
    assert [collected.feed(event) for event in events] == ["Do ", "it.", "", ""]
    assert collected.is_whole
    answer = collected.answer()
    assert (answer.text, answer.model, answer.usage) == ("Do it.", "m-1", usage_of(USAGE))


def test_stream_is_whole_when_it_says_so() -> None:
    """Without an end from the model, the mark at the end of the stream is enough; before it there is no whole."""
    collected = Collected()
    collected.feed(chunk("Do"))
    assert (collected.is_whole, collected.is_done) == (False, False)
    assert collected.feed(b" [DONE] ") == ""
    assert (collected.is_whole, collected.is_done) == (True, True)


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        pytest.param({"code": "429", "message": "secret"}, "rate_limited", "status 429", id="text"),
        pytest.param({"code": 503}, "unavailable", "status 503", id="number"),
        pytest.param({"code": "x"}, "unavailable", "status 500", id="unknown"),
        pytest.param("gone", "unavailable", "status 500", id="no-object"),
    ],
)
def test_error_within_a_stream_is_what_its_code_says(error: object, reason: str, detail: str) -> None:
    """An error event before any text is as the same status would be; after a text the stream is cut."""
    event = json.dumps({"error": error}).encode()
    with pytest.raises(GatewayError) as before:
        Collected().feed(event)
    assert (before.value.reason, before.value.detail) == (reason, detail)
    begun = Collected()
    begun.feed(chunk("Do"))
    with pytest.raises(GatewayError) as after:
        begun.feed(event)
    assert (after.value.reason, after.value.may_retry) == ("cut", False)
