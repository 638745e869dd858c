"""``POST /feedback`` and the report on variants: the whole application on a real nats-server, through faults."""

import asyncio
import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

import aiohttp
from harness import wait_until
from service_kit import api, client, publish

from models.codec import encode_json
from models.rows import Reward, RewardDay
from streams.handlers import feedback, generations
from streams.handlers.feedback import MODEL_REWARD_DAYS, PROMPT_REWARD_DAYS, REWARD_DAYS, REWARDS
from streams.testing import LiveApp, live_app

SUBJECT = "feedback.tip.rewarded"
DAY = "2026-03-01"
GIVEN = {
    "user_id": "ada",
    "tip_id": "t:1",
    "request_id": "r",
    "reward": 0.75,
    "prompt_version": "v2",
    "model_version": "7",
    "occurred_at": f"{DAY}T09:00:00Z",
}
ONE = RewardDay(count=1, reward_millionths=750_000, accepted=1)

RATES = {"v1": 0.20, "v2": 0.25, "v3": 0.35}
EACH = 2500


async def post(app: LiveApp, **fields: Any) -> tuple[int, Any]:
    """Sends feedback by a client of its own; status and document."""
    async with aiohttp.ClientSession() as session, session.post(app.url("/feedback"), json=GIVEN | fields) as answer:
        return answer.status, await answer.json(content_type=None)


def counted_once(app: LiveApp) -> bool:
    """Whether all tables have the one reward, and nothing else."""
    days = (app.rows(REWARD_DAYS), app.rows(PROMPT_REWARD_DAYS), app.rows(MODEL_REWARD_DAYS))
    return days == ({DAY: ONE}, {f"{DAY}/v2": ONE}, {f"{DAY}/7": ONE})


def ignored(app: LiveApp) -> int:
    """How many later rewards the one row tells of."""
    (row,) = app.rows(REWARDS).values()
    assert (row.reward, row.user_id) == (0.75, "ada")
    return row.ignored


async def test_feedback_is_stored_before_the_answer_and_counted() -> None:
    """The answer names the sequence at which the stream has the event; its id tells nothing of the user."""
    async with live_app(feedback) as app:
        stored = {"request_id": "r", "tip_id": "t:1", "stored": True, "stream_seq": 1}
        assert await post(app) == (202, stored)
        async with client(app.server_url) as nc:
            message = await nc.jetstream().get_msg("FEEDBACK", 1)
        assert (message.subject, [*(message.headers or {})]) == (SUBJECT, ["Nats-Msg-Id"])
        assert not {"ada", "t:1"} & {*(message.headers or {}).values()}
        await app.quiet()
        assert counted_once(app) and ignored(app) == 0


async def test_feedback_sent_again_is_answered_alike_and_counted_once() -> None:
    """Two clients at once, and one that repeats itself with another reward, get 202 with the first one's sequence."""
    async with live_app(feedback) as app:
        first = await asyncio.gather(*(post(app) for _ in range(20)))
        again = await post(app, reward=0.1, prompt_version="v3")
        assert {(status, answer["stream_seq"]) for status, answer in (*first, again)} == {(202, 1)}
        await app.quiet()
        assert counted_once(app)
        assert len(await app.published(SUBJECT)) == 1


async def test_feedback_that_comes_after_the_window_is_ignored_for_ever() -> None:
    """What the server no longer knows as a repeat is in the stream again, through a restart too, and counts once."""
    async with live_app(feedback) as app:
        await post(app)
        await app.publish(SUBJECT, GIVEN | {"reward": 0.1})
        await app.quiet()
        await app.restart()
        await asyncio.gather(*(app.publish(SUBJECT, GIVEN | {"reward": 1.0}) for _ in range(3)))
        await app.quiet()
        assert counted_once(app) and ignored(app) == 4  # 1 before the restart and 3 after it


async def test_feedback_that_is_delivered_again_is_counted_once() -> None:
    """Messages whose acks were lost come again, before and after a cut, and change no count."""
    async with live_app(feedback) as app:
        with app.drop_acks():
            await post(app)
            await app.publish(SUBJECT, GIVEN)
            await app.quiet()
        await app.redeliver()
        await app.quiet()
        app.cut()
        await app.redeliver()
        await app.quiet()
        assert counted_once(app) and ignored(app) == 1


async def test_feedback_of_many_tips_is_exact() -> None:
    """Rewards of many tips by many clients at once, each sent twice and the worker cut, sum up exactly."""
    rng = random.Random(5)
    amounts = [rng.randrange(1_000_001) for _ in range(150)]
    async with live_app(feedback) as app:

        async def send(tip: int) -> None:
            async def is_stored() -> bool:  # a client that gets a 503 sends the same again
                return (await post(app, tip_id=f"t{tip}", reward=amounts[tip] / 1_000_000))[0] == 202

            await wait_until(is_stored)

        await asyncio.gather(*(send(tip) for tip in [*range(150), *range(150)]))
        app.cut()
        await app.quiet()
        day = app.rows(REWARD_DAYS)[DAY]
        accepted = sum(amount >= 500_000 for amount in amounts)
        assert day == RewardDay(count=150, reward_millionths=sum(amounts), accepted=accepted)


async def test_feedback_without_nats_is_503_and_counted_once_it_is_back() -> None:
    """While the server is away the client is told to try again, and the same again is then stored, once."""
    async with live_app(feedback) as app:
        await app.kill_server()
        async with app.session.post(app.url("/feedback"), json=GIVEN) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "send the same again" in (await answer.json(content_type=None))["detail"]
        await app.restart_server()

        async def is_stored() -> bool:
            return (await post(app))[0] == 202

        await wait_until(is_stored, what="connected anew")
        await app.quiet()
        assert counted_once(app)


async def test_feedback_that_the_stream_refuses_is_503() -> None:
    """A full stream stores nothing, and the answer does not say that it did."""
    async with live_app(feedback) as app:
        await post(app)
        async with client(app.server_url) as nc:
            config = (await api(nc, "STREAM.INFO.FEEDBACK"))["config"]
            await api(nc, "STREAM.UPDATE.FEEDBACK", config | {"max_msgs": 1})
        status, problem = await post(app, tip_id="another")
        assert (status, problem["title"]) == (503, "Service Unavailable")
        await app.quiet()
        assert counted_once(app)


def week(rng: random.Random) -> Iterator[tuple[bytes, bytes | None]]:
    """Answers of three variants over a week, each with its reward, if there is one, by simulated users."""
    start = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    for n in range(EACH * len(RATES)):
        version = f"v{n % 3 + 1}"
        ids = {"user_id": f"u{n % 500}", "request_id": f"r{n}", "tip_id": f"t{n}", "prompt_version": version}
        common = ids | {"occurred_at": start + dt.timedelta(seconds=n * 80)}  # 7,500 in 6.9 days
        decided = common | {"latency_ms": rng.expovariate(1 / 800), "cost_usd": 0.001}
        is_accepted = rng.random() < RATES[version]
        has_reward = is_accepted or rng.random() < 0.5
        yield encode_json(decided), encode_json(common | {"reward": float(is_accepted)}) if has_reward else None


async def test_report_on_a_simulated_week_finds_the_truly_best_variant() -> None:
    """Of three variants with known rates the best one is named, its interval apart, and each interval has its rate."""
    events = list(week(random.Random(11)))
    async with live_app(feedback, generations) as app, client(app.server_url) as nc:
        await publish(nc, [decided for decided, _ in events], subject="decisions.generate", at_once=250)
        await publish(nc, [reward for _, reward in events if reward], subject=SUBJECT, at_once=250)
        await app.quiet(30)
        report = await (await app.get("/prompts/analytics?from=2026-03-02&to=2026-03-08")).json()
    assert (report["best"], report["is_apart"], report["denominator"]) == ("v3", True, "impressions")
    assert report["summary"].startswith("v3 is best: ")
    for one in report["variants"]:
        assert one["interval"]["low"] <= RATES[one["version"]] <= one["interval"]["high"]
        assert (one["impressions"], one["trials"]) == (EACH, EACH)
        assert one["cost_per_accepted_usd"] == 0.001 * EACH / one["accepted"]


async def test_reward_rows_are_shown_by_their_key() -> None:
    """Which reward counts can be looked up over HTTP, by the length of the request's id, both ids, colons kept."""
    async with live_app(feedback) as app:
        await post(app)
        await app.quiet()
        found = await (await app.get("/state/rewards/1:r:t:1")).json()
    assert found["row"]["reward"] == 0.75
    assert set(found["row"]) == {field.name for field in Reward.__attrs_attrs__}  # type: ignore[attr-defined]  # attrs'
