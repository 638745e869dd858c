"""From a body to an answer: what it says of the model, of the log and of what was not to be had."""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from registry_kit import artifact, card
from store_kit import commit
from streams_kit import make_change

from app.scoring import Scoring
from app.user_rows import UserRowReader
from models.decisions import ScoreDecided, decode_score_decision
from models.errors import RequestError
from models.features import FEATURES, Feature
from models.profile_reader import NO_PROFILE, ProfileReader, UnknownFeatures
from models.scorer import MAX_WAITING_ROWS, Scorer, load_model
from models.scoring import UNKNOWN_EVERY
from state.sqlite import SqliteStore

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
FAR = 1e12
ROW = b'{"providers":{"todo":{"synced_at":"2026-03-01T09:00:00Z"}}}'


@attrs.define
class Decisions:
    """A decision log that keeps what it gets, at a rate, or takes nothing."""

    rate: float | None = 1.0
    takes: bool = True
    written: list[ScoreDecided] = attrs.field(factory=list)

    def admit(self, request_id: str) -> float | None:
        """The rate, whatever the id."""
        return self.rate

    def write(self, subject: str, payload: bytes) -> bool:
        """Keeps it."""
        assert subject == "decisions.score"
        if self.takes:
            self.written.append(decode_score_decision(payload))
        return self.takes


@attrs.define
class Service:
    """A scoring service over a store in a folder."""

    folder: Path
    has_model: bool = True
    decisions: Decisions = attrs.field(factory=Decisions)
    declared: Mapping[str, Feature] = FEATURES
    unknown: list[str] = attrs.field(factory=list)
    degraded: list[str] = attrs.field(factory=list)
    waiting_rows: int = 0
    changes: dict[str, Any] = attrs.field(factory=dict)

    async def answer(self, *, deadline: float = FAR, **changes: Any) -> Any:
        """The answer to a request with these fields."""
        scorer = Scorer()
        scorer.waiting_rows = self.waiting_rows
        if self.has_model:
            loaded = load_model("4", artifact(), card(artifact()), self.declared)
            scorer.model = attrs.evolve(loaded, **self.changes)
        rows = UserRowReader(self.folder / "state.db")
        reader = ProfileReader(unknown=UnknownFeatures(self.unknown.append), outside=lambda name: None)
        scoring = Scoring(scorer, rows, reader.read, self.decisions, now=lambda: NOW)
        body = {"user_id": "ana", "candidates": [{"id": "a", "features": {"tip_length_chars": 0.75}}]} | changes
        try:
            return json.loads(await scoring.answer(json.dumps(body).encode(), request_id="minted", deadline=deadline))
        finally:
            self.degraded += scoring.degraded_counts.elements()
            rows.close()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A service with a model and without a store."""
    return Service(tmp_path)


async def test_an_answer_says_how_it_came_about(service: Service) -> None:
    """Scores in request order, the model's version, a logged decision with its propensity, and no degradation."""
    sent = [{"id": name, "features": {"tip_length_chars": value}} for name, value in (("b", 0.9), ("a", 0.1))]
    answer = await service.answer(candidates=sent, request_id="r-9")
    assert [one["id"] for one in answer["scores"]] == ["b", "a"]
    assert all(0 <= one["score"] <= 1 for one in answer["scores"])
    assert {name: answer[name] for name in answer if name != "scores"} == {
        "request_id": "r-9",
        "model_version": "4",
        "policy": "greedy",
        "propensity": 1.0,
        "degraded": False,
        "degraded_reason": None,
        "logged": True,
        "simulated": True,
    }


async def test_the_decision_holds_what_the_model_saw(service: Service) -> None:
    """Instant, rows with their message, matrix and scores: enough to make the vector again."""
    store = SqliteStore(service.folder / "state.db")
    commit(store, make_change(7, puts=[("user_sync", "ana", ROW)]))
    answer = await service.answer(profile_features={"acceptance_rate_30d": 0.5}, context={"utc_offset_minutes": 60})
    store.close()
    [entry] = service.decisions.written
    assert (entry.request_id, entry.user_id, entry.now, entry.sample_rate) == ("minted", "ana", NOW, 1.0)
    assert (entry.rows["user_sync"].seq, bytes(entry.rows["user_sync"].row)) == (7, ROW)
    assert entry.scores == [one["score"] for one in answer["scores"]]
    assert entry.context.utc_offset_minutes == 60
    model = load_model("4", artifact(), card(artifact()))
    matrix = entry.read_matrix()
    assert matrix is not None
    assert matrix.tolist() == [[0.75, 0.5, 3.0]]  # synchronised three hours before NOW
    assert model.card.feature_hash == entry.feature_hash


async def test_without_a_model_the_prior_answers(service: Service) -> None:
    """Each candidate gets the documented constant, the answer says why, and the decision is logged without a matrix."""
    service.has_model = False
    answer = await service.answer()
    assert answer["scores"] == [{"id": "a", "score": 0.5}]
    assert (answer["model_version"], answer["degraded"], answer["degraded_reason"]) == (None, True, "no_model")
    assert (answer["simulated"], answer["logged"]) == (False, True)
    assert service.decisions.written[0].read_matrix() is None


async def test_past_the_deadline_no_model_is_named(service: Service) -> None:
    """Scores that a model did not give are not said to be its."""
    answer = await service.answer(deadline=0.0)
    assert (answer["model_version"], answer["degraded_reason"]) == (None, "deadline")
    assert service.decisions.written[0].feature_hash is None


async def test_without_room_no_features_are_made(service: Service) -> None:
    """What is refused for those that wait already costs them no more time than its answer does."""
    service.waiting_rows, service.changes = MAX_WAITING_ROWS, {"assembler": None}
    answer = await service.answer()
    assert (answer["scores"], answer["degraded_reason"]) == ([{"id": "a", "score": 0.5}], "overloaded")
    assert (answer["logged"], service.decisions.written[0].model_version) == (True, None)


async def test_a_degraded_answer_is_counted_by_its_reason(service: Service) -> None:
    """An answer of the model is none; the constant of a late request is one, and so is that of one without a model."""
    await service.answer()
    await service.answer(deadline=0.0)
    service.has_model = False
    await service.answer()
    assert service.degraded == ["deadline", "no_model"]


@pytest.mark.parametrize(
    "decisions",
    [pytest.param(Decisions(rate=None), id="sampled-out"), pytest.param(Decisions(takes=False), id="full")],
)
async def test_an_answer_that_is_not_logged_says_so(service: Service, decisions: Decisions) -> None:
    """It carries no propensity either: nothing may be learned from what nobody can look up."""
    service.decisions = decisions
    answer = await service.answer()
    assert (answer["logged"], answer["propensity"]) == (False, None)


async def test_a_store_that_can_not_be_read_is_told_and_scored_without(service: Service) -> None:
    """The features of our tables are missing then; the model's scores are better than none."""
    (service.folder / "state.db").write_bytes(b"no database at all, and long enough to be one" * 100)
    answer = await service.answer()
    assert (answer["degraded"], answer["degraded_reason"], answer["model_version"]) == (True, "state_unreadable", "4")
    assert service.decisions.written[0].rows == {}


@pytest.mark.parametrize("has_model", [True, False], ids=["model", "no model"])
async def test_unknown_candidate_features_are_told_of_a_sample(tmp_path: Path, *, has_model: bool) -> None:
    """Of every 61 requests with any the first is looked at; requests without any do not count."""
    scorer, told = Scorer(), list[list[str]]()
    scorer.model = load_model("4", artifact(), card(artifact())) if has_model else None
    rows = UserRowReader(tmp_path / "state.db")
    note = told.append
    scoring = Scoring(scorer, rows, lambda _: NO_PROFILE, Decisions(), note_unknown=note)  # type: ignore[arg-type]  # a list
    for features in ("{}", *['{"mood": 1}'] * UNKNOWN_EVERY, "{}", '{"sky": 1, "mood": 1}', '{"sky": 1}'):
        body = f'{{"user_id": "ana", "candidates": [{{"id": "a", "features": {features}}}]}}'
        await scoring.answer(body.encode(), request_id="minted", deadline=FAR)
    rows.close()
    assert told == [["mood"], ["sky", "mood"]]


async def test_a_feature_that_fails_is_told_and_scored_without(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The model scores without the value, the decision log has NaN for it, and the log names the feature."""
    broken = attrs.evolve(FEATURES["acceptance_rate_30d"], value=lambda at: "x")
    service.declared = {**FEATURES, broken.name: broken}
    answer = await service.answer()
    assert (answer["degraded"], answer["degraded_reason"], answer["model_version"]) == (True, "feature_failed", "4")
    matrix = service.decisions.written[0].read_matrix()
    assert matrix is not None and np.array_equal(matrix, [[0.75, np.nan, np.nan]], equal_nan=True)
    assert [record.fields for record in caplog.records] == [{"feature": broken.name}]  # type: ignore[attr-defined]


async def test_unknown_profile_features_are_counted(service: Service) -> None:
    """They change nothing else."""
    assert (await service.answer(profile_features={"mood": 1}))["degraded"] is False
    assert service.unknown == ["mood"]


RATE, TEXT = {"completion_rate_7d": "x"}, [{"id": "a", "features": {"urgency": "1"}}]
FLAWS = {
    "profile": ({"profile_features": RATE}, "profile_features.completion_rate_7d: expected float | null, got str"),
    "profile-list": ({"profile_features": []}, "profile_features: expected object | null, got array"),
    "no-candidates": ({"candidates": []}, "candidates: expected 1 to 1000, got 0"),
    "feature": ({"candidates": TEXT}, "candidates[0].features.urgency: expected float | null, got str"),
}


@pytest.mark.parametrize("has_model", [True, False], ids=["model", "no-model"])
@pytest.mark.parametrize(("changes", "detail"), FLAWS.values(), ids=FLAWS)
async def test_a_flaw_is_refused_by_path(
    service: Service, has_model: bool, changes: dict[str, Any], detail: str
) -> None:
    """With a model and without one, the same body is refused with the same path; nothing is logged."""
    service.has_model = has_model
    with pytest.raises(RequestError) as caught:
        await service.answer(**changes)
    assert (caught.value.status, caught.value.detail) == (422, detail)
    assert service.decisions.written == []
