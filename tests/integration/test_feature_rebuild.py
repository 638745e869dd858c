"""What ``POST /score`` logs can be made again from the log of events: the real store, reader, service and handler."""

import asyncio
import datetime as dt
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_kit import artifact, card
from store_kit import commit
from streams_kit import MemoryRows, make_change

from app.scoring import Scoring
from app.user_rows import UserRowReader
from models.codec import decoder_for
from models.decisions import ScoreDecided, decode_score_decision, encode_matrix
from models.events import TaskSynced
from models.features import FEATURES, Assembler, Moment
from models.profile_reader import ProfileReader, UnknownFeatures
from models.profile_schema import PROFILE
from models.scorer import Model, Scorer
from models.scoring import request_decoder
from state.sqlite import SqliteStore
from streams.handlers.signals import USER_SYNC, task_synced

USERS = st.sampled_from(["ana", "ana", "ana", "bob"])  # mostly one, so that most requests have a row to read
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
NOON = dt.datetime(2026, 3, 1, 12)


def instants(first_s: int) -> st.SearchStrategy[dt.datetime]:
    """Mostly within ten seconds, so near to each other that float32 shows each microsecond; of any zone."""
    near = st.integers(0, 10**7).map(lambda us: NOON + dt.timedelta(seconds=first_s, microseconds=us))
    far = st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2026, 12, 1))
    return st.builds(lambda instant, zone: instant.replace(tzinfo=dt.UTC).astimezone(zone), near | near | far, ZONES)


EVENTS = st.fixed_dictionaries(
    {"user_id": USERS, "provider": st.sampled_from(["todo", "calendar"]), "synced_at": instants(0).map(str)},
    optional={"task_count": st.none() | st.integers(0, 2**53)},
)
NUMBERS = st.none() | st.floats(-1e38, 1e38) | st.integers(-(2**53), 2**53)
VALUES = {"float": st.floats(-1e38, 1e38), "int": st.integers(-1000, 2**53 - 1), "bool": st.booleans()}
PROFILES = st.fixed_dictionaries({}, optional={one.name: st.none() | VALUES[one.dtype] for one in PROFILE})
OWN = [name for name, feature in FEATURES.items() if feature.source == "candidate"]
ASSEMBLER = Assembler(tuple(FEATURES))
decode_event = decoder_for(TaskSynced)


@attrs.frozen(kw_only=True)
class Asked:
    """A request, and the instant at which it comes."""

    user_id: str
    now: dt.datetime
    candidates: list[dict[str, float | None]]
    profile: dict[str, Any] | None
    offset: int | None

    def body(self, request_id: str) -> bytes:
        """What is sent."""
        sent = [{"id": str(place), "features": features} for place, features in enumerate(self.candidates)]
        known = {"user_id": self.user_id, "request_id": request_id, "candidates": sent}
        context = {"utc_offset_minutes": self.offset}
        return json.dumps(known | {"profile_features": self.profile, "context": context}).encode()


ASKED = st.builds(
    Asked,
    user_id=USERS,
    now=instants(5).map(lambda instant: instant.astimezone(dt.UTC)),
    candidates=st.lists(st.dictionaries(st.sampled_from(OWN), NUMBERS), min_size=1, max_size=3),
    profile=st.none() | PROFILES,
    offset=st.none() | st.integers(-720, 840),
)
History = Sequence[dict[str, Any] | Asked]
HISTORIES = st.lists(EVENTS | ASKED, min_size=6, max_size=12)


@attrs.define
class Kept:
    """A decision log that keeps what it gets."""

    decisions: list[ScoreDecided] = attrs.field(factory=list)

    def admit(self, request_id: str) -> float | None:
        """All of them."""
        return 1.0

    def write(self, subject: str, payload: bytes) -> bool:
        """Reads it back as whoever rebuilds does."""
        self.decisions.append(decode_score_decision(payload))
        return True


def profiles() -> ProfileReader:
    """The reader of profiles; nobody counts here."""
    return ProfileReader(unknown=UnknownFeatures(lambda name: None), outside=lambda name: None)


def scorer_of_all() -> Scorer:
    """A scorer whose model reads every feature there is."""
    decode = request_decoder(ASSEMBLER)
    model = Model(
        version="1",
        card=card(artifact()),
        predict=lambda rows: [0.5] * len(rows),
        assembler=ASSEMBLER,
        decode=decode,
        row_s=0,
    )
    scorer = Scorer()
    scorer.model = model
    return scorer


async def run_event(rows: MemoryRows, payload: bytes, seq: int) -> list[tuple[str, str, bytes | None]]:
    """Runs the real handler on a message; the rows that it wrote."""
    event = decode_event(payload)
    effects = await rows.run(task_synced, event, key=event.user_id, seq=seq)
    return [(*place, row) for place, row in effects.puts.items()] if effects else []


async def serve(history: History, folder: Path) -> list[ScoreDecided]:
    """Commits the events of a history to a real store, and answers the requests between them; what was logged."""
    clock: list[dt.datetime] = []
    kept, rows, reader = Kept(), MemoryRows([USER_SYNC]), UserRowReader(folder / "state.db")
    scoring = Scoring(scorer_of_all(), reader, profiles().read, kept, now=lambda: clock[-1])
    store = SqliteStore(folder / "state.db")
    try:
        for seq, thing in enumerate(history, 1):
            if isinstance(thing, Asked):
                clock.append(thing.now)
                await scoring.answer(thing.body(str(seq)), request_id="unused", deadline=1e12)
            else:
                puts = await run_event(rows, json.dumps(thing).encode(), seq)
                commit(store, make_change(seq, puts=puts))
    finally:
        store.close()
        reader.close()
    return kept.decisions


async def rebuild(decision: ScoreDecided, history: History) -> tuple[bytes | None, bytes]:
    """The row and the matrix made again, from the events up to the logged message, and from what was sent."""
    rows, read = MemoryRows([USER_SYNC]), decision.rows.get("user_sync")
    for seq, thing in enumerate(history[: read.seq if read else 0], 1):
        if not isinstance(thing, Asked):
            await run_event(rows, json.dumps(thing).encode(), seq)
    row = rows.rows.get(("user_sync", decision.user_id))
    asked = history[int(decision.request_id) - 1]
    assert isinstance(asked, Asked), "a decision is that of a request"
    moment = Moment(
        now=decision.now,
        profile=profiles().read(json.dumps(asked.profile).encode()),
        context=decision.context,
        rows={} if row is None else {"user_sync": USER_SYNC.decode(row)},
    )
    return row, encode_matrix(ASSEMBLER.matrix_of(asked.candidates, moment))


@settings(max_examples=40)
@given(HISTORIES)
def test_what_was_served_is_rebuilt_bit_for_bit(history: History) -> None:
    """For any history: the handler run again up to the logged message gives the logged row and the logged matrix."""
    with tempfile.TemporaryDirectory() as folder:
        decisions = asyncio.run(serve(history, Path(folder)))
    assert len(decisions) == sum(isinstance(thing, Asked) for thing in history)
    for decision in decisions:
        row, matrix = asyncio.run(rebuild(decision, history))
        assert matrix == decision.matrix
        assert row == (bytes(decision.rows["user_sync"].row) if decision.rows else None)


@settings(max_examples=20)
@given(HISTORIES)
def test_a_decision_names_the_newest_message_of_its_user(history: History) -> None:
    """What was committed before a request is what it reads: the logged sequence is that of the user's last event."""
    with tempfile.TemporaryDirectory() as folder:
        decisions = asyncio.run(serve(history, Path(folder)))
    for decision in decisions:
        before = enumerate(history[: int(decision.request_id) - 1], 1)
        own = [seq for seq, thing in before if isinstance(thing, dict) and thing["user_id"] == decision.user_id]
        assert [read.seq for read in decision.rows.values()] == own[-1:]
