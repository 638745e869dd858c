"""The decision log's record, and that what a model saw can be made again from the log of events."""

import asyncio
import datetime as dt
import json
from typing import Any

import attrs
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_kit import MemoryRows

from models.decisions import RowRead, ScoreDecided, decode_score_decision, encode_decision, encode_matrix
from models.errors import PayloadError
from models.events import TaskSynced
from models.features import FEATURES, Assembler, Matrix, Moment, ScoreContext
from models.profile_schema import ProfileFeatures
from streams.handlers.signals import USER_SYNC, task_synced

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ASSEMBLER = Assembler(tuple(FEATURES))
INSTANTS = st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2026, 12, 1), timezones=st.just(dt.UTC))
USERS = st.sampled_from(["ana", "bob"])
EVENTS = st.builds(
    TaskSynced,
    user_id=USERS,
    provider=st.sampled_from(["todo", "calendar"]),
    synced_at=INSTANTS,
    task_count=st.none() | st.integers(0, 2**53),
)


@attrs.frozen(kw_only=True)
class Asked:
    """A request of the property below."""

    user_id: str
    now: dt.datetime
    urgency: float | None
    rate: float | None
    offset: int | None


ASKED = st.builds(
    Asked,
    user_id=USERS,
    now=INSTANTS,
    urgency=st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
    rate=st.none() | st.floats(0, 1),
    offset=st.none() | st.integers(-720, 840),
)


def decided(**changes: Any) -> ScoreDecided:
    """A decision on two candidates."""
    matrix = np.array([[1.5, np.nan], [-0.0, 3e38]], dtype=np.float32)
    facts = {
        "request_id": "r-1",
        "user_id": "ana",
        "now": NOON,
        "candidates": ("a", "b"),
        "scores": [0.25, 0.5],
        "matrix": encode_matrix(matrix),
    }
    return ScoreDecided(**facts | changes)


def test_a_decision_survives_the_log() -> None:
    """What is read is what was written: the matrix bit for bit, NaN and negative zero included."""
    read = RowRead(stream="SIGNALS", seq=3, row=msgspec.Raw(b'{"providers":{}}'))
    written = decided(rows={"user_sync": read}, model_version="2", context=ScoreContext(utc_offset_minutes=60))
    found = decode_score_decision(encode_decision(written))
    assert attrs.evolve(found, rows={}) == attrs.evolve(written, rows={})
    assert bytes(found.rows["user_sync"].row) == bytes(read.row)
    matrix = found.read_matrix()
    assert matrix is not None
    assert (matrix.shape, encode_matrix(matrix)) == ((2, 2), written.matrix)


def test_a_decision_without_a_model_has_no_matrix() -> None:
    """The prior saw none."""
    assert decode_score_decision(encode_decision(decided(matrix=None))).read_matrix() is None


@pytest.mark.parametrize("matrix", [b"123", b"\0" * 12], ids=["no-floats", "no-rows"])
def test_a_matrix_that_does_not_fit_its_candidates_is_refused(matrix: bytes) -> None:
    """Bytes that are no row a candidate are named, not guessed at."""
    with pytest.raises(PayloadError, match="bytes are no 2 rows of float32"):
        decided(matrix=matrix).read_matrix()


def moment_of(asked: Asked, row: object | None) -> Moment:
    """The moment of a request."""
    return Moment(
        now=asked.now,
        profile=ProfileFeatures(completion_rate_7d=asked.rate),
        context=ScoreContext(utc_offset_minutes=asked.offset),
        rows={} if row is None else {"user_sync": row},
    )


async def serve(history: list[TaskSynced | Asked]) -> list[tuple[Asked, bytes]]:
    """Runs the events through the handler and answers the requests between them; each decision as it was logged."""
    rows, found, written = MemoryRows([USER_SYNC]), [], {}
    for seq, thing in enumerate(history, 1):
        if isinstance(thing, TaskSynced):
            await rows.run(task_synced, thing, key=thing.user_id, seq=seq)
            written[thing.user_id] = seq
            continue
        stored = rows.rows.get(("user_sync", thing.user_id))
        matrix = matrix_of(thing, None if stored is None else USER_SYNC.decode(stored))
        read = {}
        if stored is not None:
            read["user_sync"] = RowRead(stream="SIGNALS", seq=written[thing.user_id], row=msgspec.Raw(stored))
        entry = decided(
            user_id=thing.user_id,
            now=thing.now,
            candidates=("a",),
            scores=[0.5],
            matrix=encode_matrix(matrix),
            context=ScoreContext(utc_offset_minutes=thing.offset),
            rows=read,
        )
        found.append((thing, encode_decision(entry)))
    return found


def matrix_of(asked: Asked, row: object | None) -> Matrix:
    """The vector of a request."""
    return ASSEMBLER.matrix_of([{"urgency": asked.urgency}], moment_of(asked, row))


async def rebuild(decision: ScoreDecided, asked: Asked, history: list[TaskSynced | Asked]) -> bytes:
    """The vector made again: the handler over the events up to the one that the decision names, then the assembler."""
    rows = MemoryRows([USER_SYNC])
    upto = decision.rows["user_sync"].seq if decision.rows else 0
    for seq, event in enumerate(history[:upto], 1):
        if isinstance(event, TaskSynced):
            await rows.run(task_synced, event, key=event.user_id, seq=seq)
    stored = rows.rows.get(("user_sync", decision.user_id)) if decision.rows else None
    logged = attrs.evolve(asked, now=decision.now, offset=decision.context.utc_offset_minutes)
    return encode_matrix(matrix_of(logged, None if stored is None else USER_SYNC.decode(stored)))


@settings(max_examples=100)
@given(st.lists(EVENTS | ASKED, min_size=1, max_size=12))
def test_the_vector_served_is_the_one_rebuilt_by_replay(history: list[TaskSynced | Asked]) -> None:
    """For any history, the handlers run again up to the logged message give the logged vector bit for bit."""
    for asked, logged in asyncio.run(serve(history)):
        decision = decode_score_decision(logged)
        assert asyncio.run(rebuild(decision, asked, history)) == decision.matrix


def test_a_decision_is_compact() -> None:
    """20 candidates of 24 features are some 3 kB, most of it the matrix as base64."""
    matrix = np.random.default_rng(0).random((20, 24), dtype=np.float32)
    ids = tuple(f"tip-{number}" for number in range(20))
    entry = decided(candidates=ids, scores=matrix[:, 0].tolist(), matrix=encode_matrix(matrix))
    encoded = encode_decision(entry)
    assert len(encoded) < 3_600  # 20 * 24 * 4 / 3 * 4 = 2,560 for the matrix, 20 scores of 20, 20 ids of 9
    assert json.loads(encoded)["candidates"][0] == "tip-0"
