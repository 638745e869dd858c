"""``POST /score`` of a real worker: models that move under load, damaged ones, the decision log, and bad requests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from process_kit import PATIENCE_S, PATIENT, Worker, connect, publish, run_app, synced
from registry_kit import NOW, artifact, card, filled_registry

from models.decisions import ScoreDecided, decode_score_decision
from models.features import Moment
from models.profile_schema import ProfileFeatures
from models.scorer import load_model

CANDIDATES: list[Any] = [{"id": f"tip-{number}", "features": {"tip_length_chars": number / 8}} for number in range(8)]
BODY: dict[str, Any] = {"user_id": "ada", "candidates": CANDIDATES}


def expected(version: int) -> list[float]:
    """The scores of a version of ``filled_registry`` for BODY, of a user without a row."""
    model = load_model(str(version), artifact(version), card(artifact(version)))
    candidates = [candidate["features"] for candidate in CANDIDATES]
    return model.predict(model.assembler.matrix_of(candidates, Moment(now=NOW, profile=ProfileFeatures())))


async def serves(worker: Worker, version: str, reason: str | None = None) -> None:
    """Waits until a version serves, and the health has this reason."""

    def is_so(health: Any) -> bool:
        model = health["model"]
        return bool(model["version"] == version and (model["reason"] is None) == (reason is None)) and (
            reason is None or reason in model["reason"]
        )

    await worker.wait_health(is_so, what=f"version {version} serves, {reason}")


async def decisions(worker: Worker, count: int) -> list[ScoreDecided]:
    """The first decisions in the stream."""
    client = await connect(worker.nats)
    try:
        subscription = await client.jetstream().subscribe("decisions.score", ordered_consumer=True)
        return [decode_score_decision((await subscription.next_msg(PATIENCE_S)).data) for _ in range(count)]
    finally:
        await client.close()


async def keep_scoring(worker: Worker, until: asyncio.Event) -> list[Any]:
    """Scores over one connection until it is told to stop; every answer."""
    answers = []
    async with aiohttp.ClientSession() as session:
        while not until.is_set():
            async with session.post(f"{worker.http}/score", json=BODY, headers=PATIENT) as response:
                assert response.status == 200, await response.text()
                answers.append(await response.json())
    return answers


async def test_a_promotion_under_load_drops_and_mixes_no_answer(tmp_path: Path) -> None:
    """While connections keep scoring, the alias moves: each answer's scores are those of the version it names."""
    registry = filled_registry(tmp_path / "models", 2)
    registry.promote("1", now=NOW)
    by_version = {str(version): expected(version) for version in (1, 2)}
    with Worker(tmp_path, MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.start()
        await serves(worker, "1")
        enough = asyncio.Event()
        clients = [asyncio.create_task(keep_scoring(worker, enough)) for _ in range(8)]
        for version in ("2", "1", "2"):
            moved = await run_app("models", "promote", version, "--reason", "a test", worker=worker)
            assert moved.code == 0, moved.err
            await serves(worker, version)
        enough.set()
        answers = [answer for found in await asyncio.gather(*clients) for answer in found]
    for answer in answers:
        assert [one["score"] for one in answer["scores"]] == by_version[answer["model_version"]]
    assert {answer["model_version"] for answer in answers} == {"1", "2"}


async def test_the_first_answer_after_a_start_is_the_champions(tmp_path: Path) -> None:
    """A worker that says that it is ready has loaded what the alias names."""
    filled_registry(tmp_path / "models", 1).promote("1", now=NOW)
    with Worker(tmp_path, MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.start()
        answer = await worker.post("/score", BODY, **PATIENT)
    assert (answer.json["model_version"], answer.json["degraded_reason"]) == ("1", None)


async def test_a_tampered_version_is_refused_and_the_old_model_goes_on(tmp_path: Path) -> None:
    """Neither a command nor a hand that moves the alias makes a changed artifact serve."""
    registry = filled_registry(tmp_path / "models", 2)
    registry.promote("1", now=NOW)
    file = registry.folder / "versions" / "2" / "model.ubj"
    file.write_bytes(file.read_bytes()[:-9] + b"tampered}")
    with Worker(tmp_path, MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.start()
        await serves(worker, "1")
        refused = await run_app("models", "promote", "2", "--reason", "a test", worker=worker)
        assert (refused.code, "its SHA-256 is" in refused.err) == (1, True)
        (registry.folder / "aliases.json").write_text('{"champion": "2"}')
        await serves(worker, "1", reason="it was changed or cut off, or is that of another card; version 1 goes on")
        answer = (await worker.post("/score", BODY, **PATIENT)).json
        assert (answer["model_version"], answer["degraded"]) == ("1", False)
        card_of_2 = await worker.get("/models/2/card")
        assert (card_of_2.status, card_of_2.json["artifact_hash"]) == (200, registry.read_card("2").artifact_hash)


async def test_the_decision_log_holds_what_was_answered(tmp_path: Path) -> None:
    """The row that was read is there with its message, and the vector is made again of what the log holds."""
    filled_registry(tmp_path / "models", 1).promote("1", now=NOW)
    with Worker(tmp_path, MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.task.synced", [synced("ada")])
        await worker.wait_counts("tipstream-signals", processed=1)
        await serves(worker, "1")
        answer = (await worker.post("/score", BODY | {"request_id": "r-1"}, **PATIENT)).json
        [decision] = await decisions(worker, 1)
    assert (decision.request_id, decision.model_version) == ("r-1", "1")
    assert decision.scores == [one["score"] for one in answer["scores"]]
    assert (decision.rows["user_sync"].stream, decision.rows["user_sync"].seq) == ("SIGNALS", 1)
    model = load_model("1", artifact(1), card(artifact(1)))
    matrix = decision.read_matrix()
    assert matrix is not None
    assert model.predict(matrix) == decision.scores


async def test_names_that_nobody_declares_are_counted_in_both_places(tmp_path: Path) -> None:
    """Profile and candidate features alike; the answer is what it would be without them."""
    unknown = {"candidates": [{"id": "a", "features": {"mood": 1}}], "profile_features": {"sky": 1}}
    with Worker(tmp_path, NATS_URL="", MODEL_REGISTRY="none") as worker:
        await worker.start()
        assert (await worker.post("/score", BODY | unknown)).status == 200
        shown = (await worker.get("/metrics")).text
    assert 'tipstream_candidate_features_unknown_total{feature="mood"} 1.0' in shown
    assert 'tipstream_profile_features_unknown_total{feature="sky"} 1.0' in shown


async def test_without_a_model_or_nats_the_prior_answers(tmp_path: Path) -> None:
    """Both are told in the answer; neither makes it fail."""
    with Worker(tmp_path, NATS_URL="") as worker:
        await worker.start()
        answer = (await worker.post("/score", BODY)).json
        assert {one["score"] for one in answer["scores"]} == {0.5}
        assert (answer["degraded_reason"], answer["logged"], answer["propensity"]) == ("no_model", False, None)


def sent(text: str) -> bytes:
    """A body whose first feature is this text."""
    return json.dumps(BODY).replace("0.0", text, 1).encode()


BAD = {
    "empty": (b"", 400, "body: not valid JSON"),
    "nan": (sent("NaN"), 400, "body: not valid JSON"),
    "infinity": (sent("Infinity"), 400, "body: not valid JSON"),
    "deep": (sent("[" * 100_000), 422, "candidates[0].features.tip_length_chars: expected float"),
    "no-user": (json.dumps({"candidates": CANDIDATES}).encode(), 422, "user_id: missing"),
    "no-candidates": (b'{"user_id": "ada", "candidates": []}', 422, "candidates: expected 1 to 1000, got 0"),
    "1001": (
        json.dumps({"user_id": "ada", "candidates": [{"id": str(n), "features": {}} for n in range(1001)]}).encode(),
        422,
        "candidates: expected 1 to 1000, got 1001",
    ),
    "duplicate": (
        json.dumps({"user_id": "ada", "candidates": [*CANDIDATES, CANDIDATES[2]]}).encode(),
        422,
        "candidates[8].id: the same as candidates[2].id",
    ),
    "unread-feature-as-string": (
        json.dumps(BODY).replace("0.0", '0.0, "novelty": "x"', 1).encode(),
        422,
        "candidates[0].features.novelty: expected float",
    ),
    "no-float": (sent("1e999"), 422, "candidates[0].features.tip_length_chars: number out of range"),
    "deep-and-unknown": (
        json.dumps(BODY).replace('"ada"', '"ada", "trace": ' + '{"a":' * 100_000, 1).encode(),
        400,
        "body: not valid JSON",
    ),
    "number-as-string": (sent('"1"'), 422, "candidates[0].features.tip_length_chars: expected float"),
    "nested": (sent('{"value": 1}'), 422, "candidates[0].features.tip_length_chars: expected float"),
    "5-MB": (b'{"user_id": "' + b"x" * 5_000_000 + b'"}', 413, "Maximum request body size"),
}


async def test_bad_requests_are_refused_by_path_and_nothing_is_lost(tmp_path: Path) -> None:
    """Each flaw has its status and names its field; the worker answers the next good request as before."""
    filled_registry(tmp_path / "models", 1).promote("1", now=NOW)
    with Worker(tmp_path, NATS_URL="", MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.start()
        await serves(worker, "1")
        for name, (body, status, detail) in BAD.items():
            answer = await worker.post("/score", body)
            assert (answer.status, answer.json["detail"][: len(detail)]) == (status, detail), name
        other = await worker.post("/score", BODY, **{"Content-Type": "text/plain"})
        assert (other.status, other.json["detail"]) == (415, "Content-Type: expected application/json, got text/plain")
        late = await worker.post("/score", BODY, **{"X-Deadline-Ms": "soon"})
        assert (late.status, late.json["detail"][:13]) == (400, "X-Deadline-Ms")
        assert (await worker.post("/score", BODY, **PATIENT)).json["model_version"] == "1"


@pytest.mark.parametrize("scope", ["health", "score"])
async def test_a_token_opens_the_route_of_its_scope(tmp_path: Path, scope: str) -> None:
    """A token without the scope "score" is refused."""
    token = "0123456789abcdef"
    with Worker(tmp_path, NATS_URL="", API_TOKENS=f"recommender:{token}:{scope}") as worker:
        await worker.start()
        answer = await worker.post("/score", BODY, Authorization=f"Bearer {token}")
        assert answer.status == (200 if scope == "score" else 403)
