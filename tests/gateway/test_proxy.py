"""Our client against the real LiteLLM proxy: what it makes of good answers, of each misbehaviour, and of who leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from harness import wait_until
from llm_kit import TEXT, FakeModel, Reply
from proxy_kit import MOCK_TEXT, Proxy

from models.errors import GatewayError
from prompts.answers import Completion
from prompts.gateway import Gateway, GatewayConfig
from prompts.ledger import ModelTokens, Usage
from prompts.registry import Hints, Messages
from prompts.retries import RetryConfig
from prompts.wire import WireConfig

pytestmark = pytest.mark.timeout(180)  # the first test starts the proxy

MESSAGES = Messages(system="Be brief.", user="Give a tip.")
HINTS = Hints(temperature=0.4, max_tokens=50)
USAGE = Usage(prompt_tokens=11, completion_tokens=7)
MOST = Usage(prompt_tokens=9 + 11 + 64, completion_tokens=50)  # bytes of both messages, and the frame
COST_USD = pytest.approx(11 * 1e-06 + 7 * 2e-06)

CLIENTS = 40
LEAVERS = 12  # 30 % of them


@contextlib.asynccontextmanager
async def asking(
    proxy: Proxy, script: dict[str, list[Reply]] | None = None, *, key: str = "", **wire: float
) -> AsyncIterator[tuple[Gateway, FakeModel]]:
    """A client of the proxy, and the model behind it."""
    wired = WireConfig(url=proxy.url, api_key=key or proxy.key, **wire)
    config = GatewayConfig(wire=wired, retry=RetryConfig(max_retries=1, base_s=0))
    async with FakeModel(proxy.model_port, **(script or {})) as model, Gateway(config) as gateway:
        yield gateway, model


async def ask(gateway: Gateway, *, model: str = "m", user: str = MESSAGES.user, deadline_s: float = 20.0) -> Completion:
    """Asks for a whole answer."""
    messages = Messages(system=MESSAGES.system, user=user)
    return await gateway.complete(messages, model=model, hints=HINTS, deadline_s=deadline_s)


async def listen(gateway: Gateway, *, model: str = "m", deadline_s: float = 20.0) -> tuple[list[str], Completion]:
    """Asks for a stream, and listens to its end."""
    async with gateway.stream(MESSAGES, model=model, hints=HINTS, deadline_s=deadline_s) as answer:
        texts = [text async for text in answer]
        return texts, answer.completion


def tokens(gateway: Gateway, model: str = "m") -> ModelTokens:
    """What the ledger knows of a model."""
    return gateway.ledger.facts().get(model, ModelTokens())


async def test_whole_answer_has_exact_tokens_and_cost(proxy: Proxy) -> None:
    """Tokens are the model's, and the cost is what the proxy's prices make of them."""
    async with asking(proxy) as (gateway, _):
        completion = await ask(gateway)
        assert tokens(gateway) == ModelTokens(calls=1, exact=USAGE)
    assert (completion.text, completion.model, completion.usage) == (TEXT, "m", USAGE)
    assert (completion.cost_usd, completion.is_estimated) == (COST_USD, False)


async def test_stream_has_exact_tokens_and_cost(proxy: Proxy) -> None:
    """The texts come one by one; tokens and cost come with the last event."""
    async with asking(proxy) as (gateway, _):
        texts, completion = await listen(gateway)
        assert tokens(gateway) == ModelTokens(calls=1, exact=USAGE)
    assert (texts[:2], completion.text) == (["Plan", " three"], TEXT)
    assert (completion.usage, completion.cost_usd, completion.is_estimated) == (USAGE, COST_USD, False)


async def test_mock_model_answers_both_ways(proxy: Proxy) -> None:
    """The proxy's own mock gives its text whole and as a stream, counted both times."""
    async with asking(proxy) as (gateway, _):
        whole, (texts, streamed) = await ask(gateway, model="mock"), await listen(gateway, model="mock")
        assert tokens(gateway, "mock").exact == whole.usage.plus(streamed.usage)
        assert (tokens(gateway, "mock").calls, tokens(gateway, "mock").estimated_calls) == (2, 0)
    assert {whole.text, streamed.text, "".join(texts)} == {MOCK_TEXT}


@pytest.mark.parametrize(("key", "model"), [("sk-wrong-key", "m"), ("", "unknown")], ids=["key", "model"])
async def test_wrong_key_or_model_is_refused_at_once(
    proxy: Proxy, key: str, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither is asked for twice, nothing is spent, and the key is in no log and no error."""
    with caplog.at_level(logging.DEBUG):
        async with asking(proxy, key=key) as (gateway, upstream):
            for call in (ask, listen):
                with pytest.raises(GatewayError, match="refused .status 40[01]") as caught:
                    await call(gateway, model=model)
                shown = repr(caught.value) + repr(caught.value.__cause__) + caplog.text
                assert (key or proxy.key) not in shown
            assert (tokens(gateway, model), upstream.seen) == (ModelTokens(), [])


async def test_proxy_that_says_wait_is_asked_again(proxy: Proxy) -> None:
    """A full model is waited for as long as it asks, as far as the deadline allows."""
    full = Reply(status=429, headers={"Retry-After": "0.1"}, body=b'{"error": {"message": "slow down"}}')
    for call in (ask, listen):
        async with asking(proxy, {"m": [full, Reply()]}) as (gateway, upstream):
            await call(gateway)
            assert (tokens(gateway), len(upstream.seen)) == (ModelTokens(calls=1, exact=USAGE), 2)
    never = Reply(status=429, headers={"Retry-After": "60"}, body=b'{"error": {"message": "slow down"}}')
    async with asking(proxy, {"m": [never]}) as (gateway, upstream):
        with pytest.raises(GatewayError, match="rate_limited") as caught:
            await ask(gateway)
        assert (caught.value.retry_after_s, len(upstream.seen)) == (60, 1)


FAULTS = [
    pytest.param(Reply(status=500, body=b'{"error": {"message": "x"}}'), "unavailable", "unavailable", id="500"),
    pytest.param(Reply(status=400, body=b'{"error": {"message": "x"}}'), "refused", "refused", id="400"),
    pytest.param(Reply(cut="before"), "unavailable", "unavailable", id="cut-before"),
    pytest.param(Reply(body=b'{"choices": ['), "unavailable", "bad_answer", id="bad-json"),
    pytest.param(Reply(body=b'data: {"choices": [\n\n'), "unavailable", "unavailable", id="bad-event"),
    pytest.param(Reply(changes={"choices": []}), "bad_answer", "bad_answer", id="no-choices"),
    pytest.param(Reply(text=""), "bad_answer", "bad_answer", id="empty"),
    pytest.param(Reply(text=None), "bad_answer", "bad_answer", id="null"),
    pytest.param(Reply(finish="content_filter"), "bad_answer", "bad_answer", id="filtered"),
]


@pytest.mark.parametrize(("reply", "whole", "streamed"), FAULTS)
async def test_model_that_misbehaves_is_an_error_with_a_reason(
    proxy: Proxy, reply: Reply, whole: str, streamed: str
) -> None:
    """Whatever the proxy makes of it, there is a known reason, and the next model answers."""
    async with asking(proxy, {"m": [reply]}) as (gateway, _):
        for call, reason in ((ask, whole), (listen, streamed)):
            with pytest.raises(GatewayError) as caught:
                await call(gateway)
            assert caught.value.reason == reason
            assert tokens(gateway).calls == 0
        assert (await ask(gateway, model="mock")).text == MOCK_TEXT


WRONG_USAGES = [
    pytest.param({"prompt_tokens": -5, "completion_tokens": 7, "total_tokens": 2}, True, id="negative"),
    pytest.param({"prompt_tokens": 11, "completion_tokens": 0, "total_tokens": 11}, True, id="zero"),
    pytest.param(None, False, id="absent"),
]


@pytest.mark.parametrize(("usage", "is_streamed_too"), WRONG_USAGES)
async def test_wrong_usage_is_an_estimate_within_its_bound(proxy: Proxy, usage: object, is_streamed_too: bool) -> None:
    """The text stands and the count is an upper bound; in a stream the proxy counts itself where the model did not."""
    async with asking(proxy, {"m": [Reply(usage=usage)]}) as (gateway, _):
        completion, (_, streamed) = await ask(gateway), await listen(gateway)
        assert tokens(gateway).most.prompt_tokens == MOST.prompt_tokens * (1 + is_streamed_too)
    assert (completion.text, completion.usage, completion.is_estimated) == (TEXT, MOST, True)
    assert (completion.cost_usd, streamed.text, streamed.is_estimated) == (None, TEXT, is_streamed_too)
    assert streamed.usage.prompt_tokens <= MOST.prompt_tokens


STALLS = [
    pytest.param(Reply(stall="before"), False, id="whole"),
    pytest.param(Reply(stall="before"), True, id="before-the-stream"),
    pytest.param(Reply(stall=2), True, id="within-the-stream"),
]


@pytest.mark.parametrize("limit", ["deadline", "between_bytes"])
@pytest.mark.parametrize(("reply", "is_stream"), STALLS)
async def test_model_that_stalls_is_given_up(proxy: Proxy, reply: Reply, is_stream: bool, limit: str) -> None:
    """At the deadline, or when nothing comes for a while, the call ends as an estimate."""
    wire = {} if limit == "deadline" else {"first_byte_timeout_s": 0.5, "between_bytes_timeout_s": 0.5}
    async with asking(proxy, {"m": [reply]}, **wire) as (gateway, _):
        with pytest.raises(GatewayError, match="timeout"):
            await (listen if is_stream else ask)(gateway, deadline_s=0.5 if limit == "deadline" else 20)
        assert (tokens(gateway).estimated_calls, tokens(gateway).most) == (1, MOST)


async def test_stream_that_is_cut_ends_in_an_error(proxy: Proxy) -> None:
    """After the first text the end of the model's connection is the end of the stream: it is not begun again."""
    gate = asyncio.Event()
    async with asking(proxy, {"m": [Reply(cut=2, gate=gate)]}) as (gateway, upstream):
        with pytest.raises(GatewayError, match="cut"):
            async with gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=20) as answer:
                async for _ in answer:
                    gate.set()
        assert (tokens(gateway).estimated_calls, len(upstream.seen)) == (1, 1)


async def leave_or_listen(gateway: Gateway, heard: list[int], number: int) -> str | None:
    """Listens to a stream; the first ones leave after the first text."""
    async with gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=50) as answer:
        text = await anext(answer)
        heard.append(number)
        if number < LEAVERS:
            return None
        return text + "".join([more async for more in answer])


async def test_clients_that_leave_streams_end_the_models_work(proxy: Proxy) -> None:
    """30 % leave: the model sees each of them go, the others are counted exactly, and the estimates hold."""
    gate, heard = asyncio.Event(), list[int]()
    async with asking(proxy, {"m": [Reply(pause=2, gate=gate)]}) as (gateway, upstream):
        tasks = [asyncio.create_task(leave_or_listen(gateway, heard, number)) for number in range(CLIENTS)]
        await wait_until(lambda: len(heard) == CLIENTS, 30)
        await wait_until(lambda: len(upstream.endings("left")) == LEAVERS, 30)
        gate.set()
        texts = await asyncio.gather(*tasks)
        counted = tokens(gateway)
        spent = sum(seen.deltas for seen in upstream.endings("left"))
    stayers = CLIENTS - LEAVERS
    assert texts.count(TEXT) == len(upstream.endings("answered")) == stayers
    assert (counted.calls, counted.estimated_calls) == (stayers, LEAVERS)
    assert counted.exact == Usage(prompt_tokens=11 * stayers, completion_tokens=7 * stayers)
    assert counted.least.completion_tokens <= spent <= counted.most.completion_tokens == 50 * LEAVERS
    assert counted.least.prompt_tokens <= 11 * LEAVERS <= counted.most.prompt_tokens


async def test_clients_that_leave_whole_answers_are_within_the_estimate(proxy: Proxy) -> None:
    """30 % are cancelled: the proxy lets the model go on for them, which the bound of the estimate allows for."""
    gate = asyncio.Event()
    async with asking(proxy, {"m": [Reply(hold=gate)]}) as (gateway, upstream):
        tasks = [asyncio.create_task(ask(gateway, user=f"Tip {number:2}.")) for number in range(CLIENTS)]
        await wait_until(lambda: len(upstream.seen) == CLIENTS, 30)
        for task in tasks[:LEAVERS]:
            task.cancel()
        await asyncio.wait(tasks[:LEAVERS])
        gate.set()
        completions = await asyncio.gather(*tasks[LEAVERS:])
        await wait_until(lambda: not upstream.endings(None), 30)
        counted = tokens(gateway)
    stayers = CLIENTS - LEAVERS
    assert [completion.usage for completion in completions] == [USAGE] * stayers
    assert (counted.calls, counted.estimated_calls) == (stayers, LEAVERS)
    assert counted.exact == Usage(prompt_tokens=11 * stayers, completion_tokens=7 * stayers)
    assert counted.least.total_tokens <= 18 * LEAVERS <= counted.most.total_tokens
