"""``POST /generate`` of a real worker in front of the real LiteLLM proxy: in every case a valid tip."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from generate_kit import GOOD
from harness import wait_until
from llm_kit import FakeModel, Reply
from process_kit import Worker
from proxy_kit import Proxy

pytestmark = pytest.mark.timeout(180)  # the first test starts the proxy

USAGE = {"prompt_tokens": 11, "completion_tokens": 7}


def worker_for(proxy: Proxy, folder: Path, **settings: str) -> Worker:
    """A worker that asks the proxy."""
    own = {"NATS_URL": "", "LITELLM_URL": proxy.url, "LITELLM_API_KEY": proxy.key, "LLM_MODEL": "m"}
    return Worker(folder, **own | settings)


async def tip(worker: Worker, **fields: Any) -> Any:
    """The answer to a request that fits."""
    answer = await worker.post("/generate", {"user_id": "ada"} | fields, **{"X-Deadline-Ms": "10000"})
    assert answer.status == 200, answer.text
    return answer.json


async def events(worker: Worker, **fields: Any) -> list[tuple[str, Any]]:
    """The events of a streamed answer."""
    answer = await worker.post("/generate", {"user_id": "ada", "stream": True} | fields)
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n") if block.startswith("event")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_tips_come_through_the_proxy_whole_and_streamed(proxy: Proxy, tmp_path: Path) -> None:
    """With tokens and cost as the proxy counts them; a stream's deltas add up to its tip."""
    async with FakeModel(proxy.model_port, m=[Reply(text=GOOD)]):
        with worker_for(proxy, tmp_path) as worker:
            await worker.start()
            answer = await tip(worker)
            assert (answer["tip"], answer["fallback"], answer["usage"]) == (GOOD, "none", USAGE)
            assert answer["cost_usd"] == pytest.approx(11 * 1e-06 + 7 * 2e-06)
            streamed = await events(worker, signals=["another prompt"])
    assert [name for name, _ in streamed][-1] == "done"
    assert "".join(data["delta"] for name, data in streamed if name == "tip") == GOOD
    assert (streamed[-1][1]["tip"], streamed[-1][1]["usage"]) == (GOOD, USAGE)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(status=429), id="429"),
        pytest.param(Reply(cut=2), id="cut"),
        pytest.param(Reply(body=b"{no json"), id="bad-json"),
        pytest.param(Reply(text=GOOD, usage={"prompt_tokens": -1}), id="wrong-usage"),
        pytest.param(Reply(text="Buy 17 apples."), id="wrong-number"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_valid_tip_comes_whatever_the_model_does(
    proxy: Proxy, tmp_path: Path, reply: Reply, stream: bool
) -> None:
    """By the model where its text can be shown, else by the template; what a stream said wrongly is replaced."""
    async with FakeModel(proxy.model_port, m=[reply]):
        with worker_for(proxy, tmp_path) as worker:
            await worker.start()
            if stream:
                found = await events(worker)
                assert [name for name, _ in found].count("replace") <= 1
                answer = found[-1][1]
            else:
                answer = await tip(worker)
    is_shown = reply.text == GOOD
    assert answer["fallback"] == ("none" if is_shown else "template")
    assert answer["tip"] == GOOD if is_shown else answer["degraded_reason"]
    assert 0 < len(answer["tip"]) <= 240


async def test_a_wrong_key_is_told_and_stands_nowhere(proxy: Proxy, tmp_path: Path) -> None:
    """The template answers, and the key is in no log."""
    with worker_for(proxy, tmp_path, LITELLM_API_KEY="sk-wrong-and-secret") as worker:
        await worker.start()
        answer = await tip(worker)
        assert (answer["fallback"], answer["degraded_reason"]) == ("template", "refused")
        assert "sk-wrong" not in json.dumps([answer, worker.logs, worker.noise, await worker.health()])


async def test_clients_that_leave_are_counted_as_estimates(proxy: Proxy, tmp_path: Path) -> None:
    """The ledger is exact for the answers that were read to their end, and bounded for the one that was left."""
    async with FakeModel(proxy.model_port, m=[Reply(text=GOOD), Reply(text=GOOD), Reply(text=GOOD, stall=2)]) as model:
        with worker_for(proxy, tmp_path) as worker:
            await worker.start()
            for signal in ("a", "b"):
                await events(worker, signals=[signal])
            async with aiohttp.ClientSession(worker.http) as session:
                response = await session.post("/generate", json={"user_id": "ada", "stream": True, "signals": ["c"]})
                assert await response.content.readline() == b"event: tip\n"
                response.close()
            await wait_until(lambda: model.endings("left"), what="the model sees its client leave")
            shown = (await worker.get("/metrics")).text
    assert 'tipstream_llm_tokens_total{counted="yes",kind="prompt",model="m"} 22.0' in shown  # 2 * 11
    assert 'tipstream_llm_tokens_total{counted="yes",kind="completion",model="m"} 14.0' in shown  # 2 * 7
    assert 'tipstream_llm_tokens_total{counted="no",kind="completion",model="m"} 120.0' in shown  # max_tokens of v1
