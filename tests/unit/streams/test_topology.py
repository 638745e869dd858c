"""Streams and durables as data, and how far a server differs."""

import attrs
import pytest

from models.errors import DeclarationError
from streams.topology import (
    HEADER_BUDGET_BYTES,
    STREAMS,
    ConsumerSpec,
    Difference,
    StreamSpec,
    consumer_config,
    dangers,
    differences,
    is_publishable,
    stream_config,
    stream_of,
)

SPEC = ConsumerSpec(
    durable="tipstream-signals", table="signals", stream="SIGNALS", subjects=("signals.a", "signals.b"), ack_wait_s=2.5
)
CONFIG = consumer_config(SPEC, store_id="s1")


def _spec(name: str) -> StreamSpec:
    return next(spec for spec in STREAMS if spec.name == name)


@pytest.mark.parametrize(
    ("subjects", "name"),
    [
        pytest.param(["signals.task.synced"], "SIGNALS", id="one"),
        pytest.param(["signals.a", "signals.*.b", "signals.x.>"], "SIGNALS", id="patterns"),
        pytest.param(["feedback.>"], "FEEDBACK", id="whole-stream"),
        pytest.param(["deadletters.redrive.x"], "DEAD_LETTERS", id="private"),
    ],
)
def test_stream_of_subjects_is_the_one_that_has_them_all(subjects: list[str], name: str) -> None:
    """Subjects and patterns find the stream that covers them."""
    assert stream_of(subjects, STREAMS, "here") == _spec(name)


@pytest.mark.parametrize(
    ("subjects", "problem"),
    [
        pytest.param(
            ["orders.new"],
            r"subject 'orders.new': no stream has it "
            r"\(there is signals.>, feedback.>, timers.>, deadletters.>, decisions.>\)",
            id="nowhere",
        ),
        pytest.param(["signals"], "subject 'signals': no stream has it", id="prefix-alone"),
        pytest.param(
            ["*.tip"],
            r"subject '\*.tip': lies in several streams \(SIGNALS, FEEDBACK, TIMERS, DEAD_LETTERS, DECISIONS\)",
            id="too-wide",
        ),
        pytest.param([">"], "subject '>': lies in several streams", id="everything"),
        pytest.param(
            ["signals.a", "feedback.b"], "subjects: expected all in one stream, got FEEDBACK, SIGNALS", id="two-streams"
        ),
        pytest.param(
            ["timers.a.b", "signals.a"], "subjects: expected all in one stream, got SIGNALS, TIMERS", id="timers-too"
        ),
        pytest.param([], "subjects: expected all in one stream, got none", id="no-subject"),
    ],
)
def test_stream_of_subjects_without_one_home_is_a_declaration_error(subjects: list[str], problem: str) -> None:
    """A table whose subjects lie nowhere or in several streams is named with what there is."""
    with pytest.raises(DeclarationError, match=f"^here: {problem}"):
        stream_of(subjects, STREAMS, "here")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        pytest.param("signals.nudge.due", True, id="signals"),
        pytest.param("feedback.x", True, id="feedback"),
        pytest.param("decisions.score", True, id="decisions"),
        pytest.param("deadletters.x", False, id="dead-letters"),
        pytest.param("timers.a.b", False, id="timers"),
        pytest.param("signals", False, id="prefix-alone"),
        pytest.param("$JS.API.STREAM.DELETE.SIGNALS", False, id="api"),
    ],
)
def test_publishable_are_the_subjects_of_public_streams(subject: str, expected: bool) -> None:
    """Handlers may publish to the public streams and to nothing else."""
    assert is_publishable(subject, STREAMS) is expected


def test_stream_config_of_a_public_stream_keeps_everything() -> None:
    """On disk, without an age, refusing rather than dropping, with room for the headers of a dead letter."""
    assert stream_config(_spec("SIGNALS"), replicas=3, max_payload_bytes=1_048_576) == {
        "name": "SIGNALS",
        "subjects": ["signals.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "num_replicas": 3,
        "duplicate_window": 600 * 10**9,  # ten minutes
        "max_msg_size": 1_048_576 - HEADER_BUDGET_BYTES,
        "allow_direct": True,
        "deny_delete": False,
    }


def test_stream_config_of_timers_is_that_of_any_events() -> None:
    """Handlers may not publish there, yet a dead letter of what lies there must fit as everywhere."""
    timers, signals = (
        stream_config(attrs.evolve(_spec(name), name="X", subjects=("x",)), replicas=1, max_payload_bytes=20_000)
        for name in ("TIMERS", "SIGNALS")
    )
    assert timers == signals


def test_stream_config_of_dead_letters_differs_in_size_and_deletion() -> None:
    """Dead letters take a whole payload beside their headers, and no single one can be deleted."""
    public, private = (
        stream_config(attrs.evolve(spec, name="X", subjects=("x",)), replicas=1, max_payload_bytes=20_000)
        for spec in (_spec("SIGNALS"), _spec("DEAD_LETTERS"))
    )
    assert private == public | {"max_msg_size": -1, "deny_delete": True}


def test_stream_config_of_decisions_is_that_of_a_bounded_log() -> None:
    """Beyond 1 GiB the oldest decisions go, and batches are stored whole or not at all; all else is as elsewhere."""
    signals, decisions = (
        stream_config(attrs.evolve(_spec(name), name="X", subjects=("x",)), replicas=1, max_payload_bytes=20_000)
        for name in ("SIGNALS", "DECISIONS")
    )
    assert decisions == signals | {"discard": "old", "max_bytes": 1024**3, "allow_atomic": True}


def test_consumer_config_leaves_the_limit_of_deliveries_to_us() -> None:
    """No limit on the server, explicit acks, filters of the table, and whose it is in the metadata."""
    expected = {
        "durable_name": "tipstream-signals",
        "name": "tipstream-signals",
        "filter_subjects": ["signals.a", "signals.b"],
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 2_500_000_000,
        "max_deliver": -1,
        "max_ack_pending": 1000,
        "max_waiting": 128,
        "inactive_threshold": 0,
        "backoff": [],
        "headers_only": False,
        "metadata": {"tipstream_store": "s1", "tipstream_table": "signals"},
    }
    assert expected == CONFIG


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({}, id="equal"),
        pytest.param({"num_replicas": 0, "replay_policy": "instant"}, id="more-than-declared"),
        pytest.param({"filter_subjects": ["signals.b", "signals.a"]}, id="another-order"),
        pytest.param({"inactive_threshold": None}, id="empty-left-out"),
        pytest.param({"deliver_policy": "by_start_sequence", "opt_start_seq": 9}, id="another-first-position"),
        pytest.param({"deliver_policy": None}, id="no-first-position"),
        pytest.param({"metadata": CONFIG["metadata"] | {"_nats.ver": "2.15"}}, id="server-metadata"),  # type: ignore[operator]
    ],
)
def test_differences_ignore_what_only_the_server_knows(found: dict[str, object]) -> None:
    """Defaults that the server adds or leaves out, the order of filters, and where it began are no difference."""
    assert differences(CONFIG, CONFIG | found) == ()


def test_differences_know_the_single_filter() -> None:
    """The server spells one filter as a field of its own."""
    wanted = consumer_config(attrs.evolve(SPEC, subjects=("signals.a",)), store_id="s1")
    found = wanted | {"filter_subjects": None, "filter_subject": "signals.a"}
    assert differences(wanted, found) == ()
    other = differences(wanted, found | {"filter_subject": "signals.b"})
    assert other == (Difference(field="filter_subjects", wanted=["signals.a"], found=["signals.b"]),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("ack_wait", 1, id="number"),
        pytest.param("max_deliver", 5, id="limit"),
        pytest.param("inactive_threshold", 7, id="set-where-empty-is-declared"),
        pytest.param("ack_policy", None, id="missing"),
        pytest.param("backoff", [30_000_000_000], id="backoff"),
        pytest.param("headers_only", True, id="headers-only"),
        pytest.param("filter_subjects", ["signals.a"], id="fewer-filters"),
        pytest.param("filter_subjects", None, id="no-filter"),
        pytest.param("metadata", None, id="no-metadata"),
    ],
)
def test_differences_name_field_and_both_values(field: str, value: object) -> None:
    """What differs is told with what is declared and what the server has."""
    found = differences(CONFIG, CONFIG | {field: value})
    assert found == (Difference(field=field, wanted=CONFIG[field], found=value),)
    assert str(found[0]) == f"{field}: {value!r} instead of {CONFIG[field]!r}"


def test_differences_show_our_metadata_only() -> None:
    """Another store's mark is a difference; what others keep in the metadata is not shown."""
    found = CONFIG | {"metadata": {"tipstream_store": "s2", "team": "x"}}
    (difference,) = differences(CONFIG, found)
    assert difference.found == {"tipstream_store": "s2", "tipstream_table": None}


@pytest.mark.parametrize(
    ("field", "value", "danger"),
    [
        pytest.param("ack_policy", "none", "ack_policy 'none' instead of 'explicit'", id="no-acks"),
        pytest.param("ack_policy", "all", "ack_policy 'all' instead of 'explicit'", id="acks-of-all-before"),
        pytest.param("ack_policy", None, "ack_policy None instead of 'explicit'", id="acks-unknown"),
        pytest.param("max_deliver", 5, "max_deliver 5, which drops messages without a word", id="limit"),
        pytest.param("backoff", [1, 2], "backoff [1, 2]", id="backoff"),
        pytest.param("inactive_threshold", 7, "inactive_threshold 7", id="goes-by-itself"),
        pytest.param("headers_only", True, "headers_only, which leaves the payloads out", id="no-payloads"),
    ],
)
def test_dangers_name_what_loses_messages(field: str, value: object, danger: str) -> None:
    """A durable with such a setting is better left alone, and the sentence says which one it is."""
    assert dangers(CONFIG | {field: value}, is_push=False) == [danger]


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({}, id="as-declared"),
        pytest.param({"backoff": None, "inactive_threshold": 0, "headers_only": False}, id="said-to-be-off"),
        pytest.param({"ack_wait": 1, "max_ack_pending": 5, "filter_subjects": ["signals.a"]}, id="other-drift"),
        pytest.param({"deliver_policy": "new"}, id="first-position"),
    ],
)
def test_dangers_are_no_mere_differences(found: dict[str, object]) -> None:
    """What only slows a durable down, or has it see fewer subjects, is drift and no danger."""
    assert dangers(CONFIG | found, is_push=False) == []


def test_dangers_take_an_unnamed_limit_for_none() -> None:
    """A server that leaves max_deliver out has no limit."""
    config = {field: value for field, value in CONFIG.items() if field != "max_deliver"}
    assert dangers(config, is_push=False) == []


def test_differences_of_a_stream_compare_its_subjects_in_any_order() -> None:
    """Stream subjects are a set: their order is no difference, a missing one is."""
    wanted = stream_config(StreamSpec(name="S", subjects=("a", "b")), replicas=1, max_payload_bytes=20_000)
    assert differences(wanted, wanted | {"subjects": ["b", "a"]}) == ()
    assert [str(d) for d in differences(wanted, wanted | {"subjects": ["a"]})] == [
        "subjects: ['a'] instead of ['a', 'b']"
    ]
