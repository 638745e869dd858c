"""``POST /feedback`` of a real worker: stored before the answer, and the first reward of a tip counts for ever."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
from process_kit import Worker, run_app

GOOD: dict[str, Any] = {"user_id": "ada", "tip_id": "t:1", "request_id": "r", "reward": 1.0, "prompt_version": "v2"}
NOON = "2026-03-01T12:00:00Z"


async def counts(worker: Worker, key: str = "2026-03-01") -> Any:
    """The counts of a day."""
    answer = await worker.get(f"/state/reward_days/{key}")
    return answer.json["row"] if answer.status == 200 else None


async def test_first_reward_counts_through_repeats_and_a_restart(tmp_path: Path) -> None:
    """Two clients at once, a repeat, another reward and a restart: one reward, exactly."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        body = GOOD | {"occurred_at": NOON}
        answers = await asyncio.gather(*(worker.post("/feedback", body) for _ in range(8)))
        assert {answer.status for answer in answers} == {202}
        assert {answer.json["stream_seq"] for answer in answers} == {1}
        assert answers[0].json == {"request_id": "r", "tip_id": "t:1", "stored": True, "stream_seq": 1}
        await worker.wait_counts("tipstream-feedback", processed=1)
        assert await worker.stop() == 0
        await worker.consume()
        for request, tip in (("r:t", "1"), ("r", "t:1")):  # another tip, whose ids only look alike; then the same one
            assert (await worker.post("/feedback", body | {"request_id": request, "tip_id": tip})).status == 202
        await worker.wait_counts("tipstream-feedback", processed=1)
        assert await counts(worker) == {"count": 2, "reward_millionths": 2_000_000, "accepted": 2}
        sent = await run_app("send", "feedback.tip.rewarded", json.dumps(body | {"reward": 0.0}), worker=worker)
        assert sent.code == 0  # past the server's window of duplicates, as after a day
        await worker.wait_counts("tipstream-feedback", processed=2)
        assert await counts(worker) == {"count": 2, "reward_millionths": 2_000_000, "accepted": 2}


async def test_without_nats_nothing_is_said_to_be_stored(tmp_path: Path) -> None:
    """503 with Retry-After, for a disabled NATS as for one that is gone."""
    with Worker(tmp_path, NATS_URL="") as worker:
        await worker.start()
        answer = await worker.post("/feedback", GOOD)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "send the same again" in answer.json["detail"]


async def test_bad_feedback_is_refused_by_path(tmp_path: Path) -> None:
    """Each flaw names its field; nothing of it reaches a stream."""
    flaws = {
        "reward: expected a number from 0 to 1, got 1.5": {"reward": 1.5},
        "reward: expected float, got str": {"reward": "1"},
        "tip_id: expected [A-Za-z0-9._:-]{1,128}, got 'a b'": {"tip_id": "a b"},
        "occurred_at: expected an instant with a zone (RFC 3339), got 2026-03-01T12:00:00": {
            "occurred_at": "2026-03-01T12:00:00"
        },
        "request_id: expected str, got null": {"request_id": None},
    }
    with Worker(tmp_path) as worker:
        await worker.consume()
        for detail, changes in flaws.items():
            answer = await worker.post("/feedback", GOOD | changes)
            assert (answer.status, answer.json["detail"]) == (422, detail)
        assert (await worker.post("/feedback", GOOD)).json["stream_seq"] == 1


async def test_a_simulated_week_finds_the_variant_that_is_best(tmp_path: Path) -> None:
    """Tips of three variants are answered and rewarded through HTTP; the report names the truly best one."""
    rates = {"v1": 0.15, "v2": 0.60, "v3": 0.25}
    with Worker(tmp_path, DEFAULT_PROMPT_VERSION="v1,v2,v3") as worker:
        await worker.consume()
        async with aiohttp.ClientSession(worker.http) as session:
            for start in range(0, 600, 60):
                await asyncio.gather(*(tip_and_reward(session, user, rates) for user in range(start, start + 60)))
        await worker.wait_idle()
        await worker.wait_counts("tipstream-generations", processed=600)
        report = (await worker.get("/prompts/analytics")).json
        assert (report["best"], report["is_apart"], report["denominator"]) == ("v2", True, "impressions")
        assert sum(one["impressions"] for one in report["variants"]) == 600
        for one in report["variants"]:
            assert one["interval"]["low"] <= rates[one["version"]] <= one["interval"]["high"]
        shown = await run_app("prompts", "report", worker=worker)
        assert "v2 is best" in shown.out


async def tip_and_reward(session: aiohttp.ClientSession, user: int, rates: dict[str, float]) -> None:
    """One user gets a tip, and accepts it as its variant's rate says; by what chance depends on the user alone."""
    async with session.post("/generate", json={"user_id": f"u{user}"}) as response:
        tip = await response.json()
    is_accepted = random.Random(user).random() < rates[tip["prompt_version"]]
    reward = {name: tip[name] for name in ("request_id", "tip_id", "prompt_version")}
    reward |= {"user_id": f"u{user}", "reward": float(is_accepted)}
    async with session.post("/feedback", json=reward) as response:
        assert response.status == 202, await response.text()
