"""``POST /generate`` of a real worker: alone, in front of a model, with variants that come while it runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
from generate_kit import GOOD
from harness import wait_until
from llm_kit import FakeModel, Reply
from process_kit import Worker, publish, run_app, synced

SECRET = "sk-this-is-a-secret"
V4 = """---
version: v4
purpose: A test.
variables:
  signals: what the user did
limits:
  max_chars: 200
---
You write tips.
--- user
{% for signal in signals %}
- {{ signal | json }}
{% endfor %}
Write the tip.
"""


async def tip(worker: Worker, **fields: Any) -> Any:
    """The answer to a request that fits."""
    answer = await worker.post("/generate", {"user_id": "ada"} | fields)
    assert answer.status == 200, answer.text
    return answer.json


async def test_a_worker_alone_makes_tips(tmp_path: Path) -> None:
    """LITELLM_URL unset: the template answers, counted as an impression of its variant and a fallback."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        answer = await tip(worker, prompt_version="v2", profile_features={"current_streak_days": 4})
        assert (answer["model"], answer["fallback"], answer["degraded_reason"]) == ("local", "template", "no_gateway")
        assert (answer["prompt_version"], answer["logged"]) == ("v2", True)
        await worker.wait_counts("tipstream-generations", processed=1)
        report = (await worker.get("/prompts/analytics")).json
        assert [(one["version"], one["impressions"], one["fallbacks"]) for one in report["variants"]] == [("v2", 1, 1)]
        assert (await worker.post("/generate", {"user_id": "ada", "prompt_version": "v9"})).status == 422


async def test_a_worker_asks_its_gateway_and_says_how_it_went(tmp_path: Path) -> None:
    """Our tables and the key reach the gateway; the key stands in no answer, log, metric or health."""
    async with FakeModel(tips=[Reply(text=GOOD)]) as model:
        settings = {"LITELLM_URL": model.url, "LITELLM_API_KEY": SECRET, "LOG_LEVEL": "debug"}
        with Worker(tmp_path, **settings) as worker:
            await worker.consume()
            await publish(worker.nats, "signals.task.synced", [synced("ada")])
            await worker.wait_counts("tipstream-signals", processed=1)
            answer = await tip(worker)
            assert (answer["tip"], answer["model"], answer["fallback"]) == (GOOD, "tips", "none")
            assert model.seen[0].headers["Authorization"] == f"Bearer {SECRET}"
            assert "synchronised" in model.seen[0].body["messages"][1]["content"]
            metrics = (await worker.get("/metrics")).text
            assert 'tipstream_llm_tokens_total{counted="yes",kind="prompt",model="tips"} 11.0' in metrics
            assert 'tipstream_generations_total{fallback="none",version="v1"} 1.0' in metrics
            health = await worker.health()
            assert health["prompts"]["gateway"] == {"open_models": [], "refused_models": {}, "running": 0, "waiting": 0}
            said = json.dumps([answer, health, worker.logs, worker.noise]) + metrics
            assert SECRET not in said + (await run_app("settings", worker=worker)).out


async def test_a_gateway_that_is_down_is_left_alone_and_told(tmp_path: Path) -> None:
    """Tips come all the same; after some failures the model is not asked any more, and /health says so."""
    with Worker(tmp_path, NATS_URL="", LITELLM_URL="http://127.0.0.1:9") as worker:
        await worker.start()
        reasons = [(await tip(worker, signals=[f"s{number}"]))["degraded_reason"] for number in range(8)]
        assert reasons[0] == "connect" and reasons[-1] == "open"
        health = await worker.health()
        assert health["prompts"]["gateway"]["open_models"] == ["tips"]
        assert "gateway: model tips failed lately and is left alone" in health["reasons"]


async def test_a_variant_that_is_added_answers_without_a_restart(tmp_path: Path) -> None:
    """A file in PROMPTS_DIR is all that it takes; a client that leaves a stream ends the call of its model."""
    (tmp_path / "prompts").mkdir()
    gate = asyncio.Event()
    async with FakeModel(tips=[Reply(text=GOOD), Reply(text=GOOD, stall=2, gate=gate)]) as model:
        with Worker(tmp_path, NATS_URL="", LITELLM_URL=model.url, PROMPTS_DIR=str(tmp_path / "prompts")) as worker:
            await worker.start()
            (tmp_path / "prompts" / "v4.j2").write_text(V4)
            await worker.wait_health(lambda health: "v4" in health["prompts"]["versions"], what="v4 is served")
            assert (await tip(worker, prompt_version="v4", signals=["x"]))["prompt_version"] == "v4"
            body = {"user_id": "ada", "prompt_version": "v4", "stream": True, "signals": ["y"]}
            async with aiohttp.ClientSession(worker.http) as session:
                response = await session.post("/generate", json=body)
                assert (await response.content.readline()) == b"event: tip\n"
                response.close()
            await wait_until(lambda: model.endings("left"), what="the model sees its client leave")


async def test_an_orderly_stop_answers_those_who_wait_for_a_model(tmp_path: Path) -> None:
    """SIGTERM while the model stalls: the tip is made here, and the worker ends with 0."""
    async with FakeModel(tips=[Reply(stall="before")]) as model:
        with Worker(tmp_path, NATS_URL="", LITELLM_URL=model.url) as worker:
            await worker.start()
            waiting = asyncio.create_task(tip(worker))
            await wait_until(lambda: model.seen, what="the model is asked")
            code = await worker.stop()
            assert ((await waiting)["degraded_reason"], code) == ("stopping", 0)
