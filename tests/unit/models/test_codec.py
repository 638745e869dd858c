"""Bytes become typed records or an error that names the path of the field."""

import datetime as dt
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codec import aware, between, decoder_for, encode_json, filled, is_id
from models.errors import PayloadError


@attrs.frozen(kw_only=True)
class Part:
    id: str = attrs.field(validator=filled)
    weight: float | None = attrs.field(default=None, validator=between(-1, 2.5))


@attrs.frozen(kw_only=True)
class Whole:
    name: str
    at: dt.datetime | None = attrs.field(default=None, validator=aware)
    parts: list[Part] = attrs.field(factory=list)
    by_day: dict[dt.date, int] = attrs.field(factory=dict)
    count: int | None = attrs.field(default=None, validator=between(0, 2**53))


decode = decoder_for(Whole)


def _reason(call: Callable[[], object]) -> str:
    with pytest.raises(PayloadError) as caught:
        call()
    assert caught.value.__cause__ is not None
    return caught.value.reason


def test_decoder_fills_defaults_and_ignores_unknown_fields() -> None:
    """Fields that we do not know are dropped, missing optional ones take their defaults, at every level."""
    assert decode(b'{"name":"n","more":[1],"parts":[{"id":"a","x":null}]}') == Whole(name="n", parts=[Part(id="a")])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"{}", "name: missing", id="missing"),
        pytest.param(b'{"name":"n","parts":[{"id":"a"},{}]}', "parts[1].id: missing", id="missing-nested"),
        pytest.param(b'{"name":7}', "name: expected str, got int", id="mistyped"),
        pytest.param(b'{"name":null}', "name: expected str, got null", id="null"),
        pytest.param(
            b'{"name":"n","parts":[{"id":"a","weight":"1"}]}',
            "parts[0].weight: expected float | null, got str",
            id="mistyped-nested",
        ),
        pytest.param(b"[]", "payload: expected object, got array", id="whole-document"),
        pytest.param(
            b'{"name":"n","parts":[{"id":""}]}', "parts[0].id: expected at least one character", id="validator-nested"
        ),
        pytest.param(
            b'{"name":"n","at":"2026-01-01T00:00:00"}',
            "at: expected an instant with a zone (RFC 3339), got 2026-01-01T00:00:00",
            id="naive-time",
        ),
        pytest.param(
            b'{"name":"n","at":"0001-01-01T00:00:00+05:00"}',
            "at: expected an instant within the years 1 to 9999 of UTC, got 0001-01-01T00:00:00+05:00",
            id="time-before-all-utc",
        ),
        pytest.param(
            b'{"name":"n","parts":[{"id":"a","weight":1e999}]}',
            "parts[0].weight: number out of range",
            id="number-beyond-all-floats",
        ),
        pytest.param(
            b'{"name":"n","count":1' + b"0" * 400 + b"}",
            "count: expected a number from 0 to 9.0072e+15, got 1" + "0" * 39,
            id="whole-number-beyond-all-floats",
        ),
        pytest.param(b'{"name":"n","by_day":{"x":1}}', "by_day (a key): invalid RFC3339 encoded date", id="dict-key"),
        pytest.param(
            b'{"name":"n","by_day":{"2026-01-01":"x"}}', "by_day[...]: expected int, got str", id="dict-value"
        ),
    ],
)
def test_decoder_names_the_path_of_what_does_not_fit(payload: bytes, reason: str) -> None:
    """The reason is the path of the field, then what is wrong with it."""
    assert _reason(lambda: decode(payload)) == reason


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="binary"),
        pytest.param(b'{"name":"\xff"}', id="invalid-utf8"),
        pytest.param(b'{"name":"\\ud800"}', id="lone-surrogate"),
        pytest.param(b'{"name":"n"', id="truncated"),
        pytest.param(b'{"name":"n"}x', id="trailing"),
        pytest.param(b'{"name":"n","x":NaN}', id="nan"),
        pytest.param(b'{"name":"n","x":' + b"[" * 100_000, id="deep"),
    ],
)
def test_decoder_refuses_what_is_no_json(payload: bytes) -> None:
    """Bytes that are no JSON are a payload error of the whole document."""
    assert _reason(lambda: decode(payload)).startswith("payload: not valid JSON (")


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: encode_json({"name": text, "at": text})))
def test_decoder_raises_payload_errors_only(payload: bytes) -> None:
    """Whatever the bytes are, the answer is a record or a PayloadError."""
    try:
        assert isinstance(decode(payload), Whole)
    except PayloadError as error:
        assert ": " in error.reason


@given(
    st.builds(
        Whole,
        name=st.text(),
        at=st.none() | st.datetimes(timezones=st.just(dt.UTC)),
        parts=st.lists(st.builds(Part, id=st.text(min_size=1), weight=st.none() | st.floats(-1, 2.5)), max_size=3),
        by_day=st.dictionaries(st.dates(), st.integers(), max_size=3),
    )
)
def test_codec_reads_back_what_it_wrote(whole: Whole) -> None:
    """Encoding and decoding a record gives an equal one, with NUL, emoji, big integers and any instant."""
    assert decode(encode_json(whole)) == whole


@pytest.mark.parametrize("weight", [-1, 0.0, 2.5, None])
def test_between_takes_its_bounds_and_none(weight: float | None) -> None:
    """Both bounds are included, and an absent number passes."""
    assert Part(id="a", weight=weight).weight == weight


@pytest.mark.parametrize("weight", [-1.001, 2.501, float("nan"), float("inf"), -float("inf")])
def test_between_refuses_what_lies_outside_or_nowhere(weight: float) -> None:
    """Numbers outside the bounds, NaN and the infinities are refused with the field, the bounds and the value."""
    with pytest.raises(ValueError, match=r"^weight: expected a number from -1 to 2.5, got "):
        Part(id="a", weight=weight)


def test_aware_takes_any_zone_and_none() -> None:
    """An instant of any zone passes, and an absent one."""
    at = dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-11)))
    assert (Whole(name="n", at=at).at, Whole(name="n").at) == (at, None)


@pytest.mark.parametrize("text", ["a", "A-Z.0_9:x", "x" * 128], ids=["one", "every-mark", "longest"])
def test_id_in_the_allowed_form_is_valid(text: str) -> None:
    """1 to 128 letters, digits and ``._:-`` are an id."""
    assert is_id(text)


@pytest.mark.parametrize(
    "text",
    ["", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: b", "é", "٣", "a/b", "\x00"],
    ids=["empty", "too-long", "space", "newline", "header", "accent", "digit-of-another-script", "slash", "nul"],
)
def test_id_in_another_form_is_not_valid(text: str) -> None:
    """Anything that could break a header, a log line or a subject is refused."""
    assert not is_id(text)
