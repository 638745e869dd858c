"""Calls as a whole: answers, deadlines, asking again, sharing, streams, leaving, and a key that is never shown."""

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import HOST, free_port, wait_until
from llm_kit import END, TEXT, FakeModel, Reply

from models.errors import GatewayError
from prompts.answers import Completion
from prompts.breaker import BreakerConfig
from prompts.gateway import Gateway, GatewayConfig, GatewayHealth
from prompts.ledger import NOTHING, ModelTokens, Usage
from prompts.registry import Hints, Messages
from prompts.retries import RetryConfig
from prompts.wire import WireConfig

KEY = "sk-very-secret"
MESSAGES = Messages(system="Be brief.", user="Give a tip.")
HINTS = Hints(temperature=0.4, max_tokens=50)
USAGE = Usage(prompt_tokens=11, completion_tokens=7)
MOST = Usage(prompt_tokens=9 + 11 + 64, completion_tokens=50)  # bytes of both messages, and the frame
AT_ONCE = RetryConfig(max_retries=2, base_s=0, limit_s=0)


def config_of(url: str, *, wire: dict[str, Any] | None = None, **limits: Any) -> GatewayConfig:
    """A configuration that asks again at once, and keeps no model alone."""
    breaker = BreakerConfig(failures_in_row=100, window=1000)
    limits = {"retry": AT_ONCE, "breaker": breaker} | limits
    return GatewayConfig(wire=WireConfig(url=url, api_key=KEY, **(wire or {})), **limits)


@contextlib.asynccontextmanager
async def between(
    script: dict[str, list[Reply]] | None = None, **limits: Any
) -> AsyncIterator[tuple[Gateway, FakeModel]]:
    """A gateway client and the server that it asks."""
    async with FakeModel(**(script or {})) as model, Gateway(config_of(model.url, **limits)) as gateway:
        yield gateway, model


async def ask(gateway: Gateway, *, user: str = MESSAGES.user, deadline_s: float = 10.0) -> Completion:
    """Asks model "m" for a whole answer."""
    messages = Messages(system=MESSAGES.system, user=user)
    return await gateway.complete(messages, model="m", hints=HINTS, deadline_s=deadline_s)


async def listen(gateway: Gateway, *, deadline_s: float = 10.0) -> tuple[list[str], Completion]:
    """Asks model "m" for a stream, and listens to its end."""
    async with gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=deadline_s) as answer:
        texts = [text async for text in answer]
        return texts, answer.completion


async def failure(gateway: Gateway, *, is_stream: bool = False, deadline_s: float = 10.0) -> GatewayError:
    """Asks in vain."""
    with pytest.raises(GatewayError) as caught:
        await (listen(gateway, deadline_s=deadline_s) if is_stream else ask(gateway, deadline_s=deadline_s))
    return caught.value


def tokens(gateway: Gateway) -> ModelTokens:
    """What the ledger knows of model "m"."""
    return gateway.ledger.facts().get("m", ModelTokens())


async def test_complete_gives_text_tokens_and_cost() -> None:
    """A whole answer comes with what it spent, and the ledger has the same."""
    async with between({"m": [Reply(headers={"x-litellm-response-cost": "0.25"})]}) as (gateway, model):
        completion = await ask(gateway)
        assert tokens(gateway) == ModelTokens(calls=1, exact=USAGE)
    assert completion == Completion(text=TEXT, model="m", usage=USAGE, cost_usd=0.25)
    assert model.seen[0].body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Give a tip."}],
        "max_tokens": 50,
        "temperature": 0.4,
    }


async def test_complete_bounds_an_answer_that_the_hints_leave_open() -> None:
    """Without hints the temperature is the model's, and the length is ours: so there is a bound on the cost."""
    async with between(max_tokens=33) as (gateway, model):
        await gateway.complete(MESSAGES, model="m", hints=Hints(), deadline_s=10)
    assert (model.seen[0].body["max_tokens"], "temperature" in model.seen[0].body) == (33, False)


async def test_stream_gives_texts_and_then_the_completion() -> None:
    """The texts are the whole text, in order; tokens and cost come with the end."""
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "cost": 0.5}
    async with between({"m": [Reply(usage=usage)]}) as (gateway, model):
        texts, completion = await listen(gateway)
        assert tokens(gateway) == ModelTokens(calls=1, exact=USAGE)
    assert (texts[:2], "".join(texts), completion.text) == (["Plan", " three"], TEXT, TEXT)
    assert (completion.usage, completion.cost_usd, completion.is_estimated) == (USAGE, 0.5, False)
    assert model.seen[0].body["stream_options"] == {"include_usage": True}


async def test_stream_has_no_completion_before_its_end() -> None:
    """What is not whole can't be taken for it."""
    async with (
        between({"m": [Reply(stall=1)]}) as (gateway, _),
        gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=9) as answer,
    ):
        with pytest.raises(AssertionError, match="the stream has not ended"):
            _ = answer.completion


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -5, "completion_tokens": 7}, "x"])
async def test_answer_with_a_wrong_count_is_an_estimate(usage: object, is_stream: bool) -> None:
    """The text stands; the count is an upper bound and says so, and the cost is not known."""
    async with between({"m": [Reply(usage=usage, headers={"x-litellm-response-cost": "1"})]}) as (gateway, _):
        completion = (await listen(gateway))[1] if is_stream else await ask(gateway)
        assert (tokens(gateway).estimated_calls, tokens(gateway).most) == (1, MOST)
    assert (completion.text, completion.usage, completion.is_estimated) == (TEXT, MOST, True)
    assert completion.cost_usd is None


AGAIN = [
    pytest.param(Reply(status=429), id="429"),
    pytest.param(Reply(status=502), id="502"),
    pytest.param(Reply(status=503), id="503"),
    pytest.param(Reply(status=504), id="504"),
    pytest.param(Reply(cut="before"), id="cut-before"),
]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reply", AGAIN)
async def test_gateway_asks_again_where_that_may_help(reply: Reply, is_stream: bool) -> None:
    """Two failures that may pass are followed by an answer; nobody notices."""
    async with between({"m": [reply, reply, Reply()]}) as (gateway, model):
        completion = (await listen(gateway))[1] if is_stream else await ask(gateway)
    assert (completion.text, len(model.seen)) == (TEXT, 3)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_gateway_gives_up_after_its_retries(is_stream: bool) -> None:
    """A third failure stands, under its own reason."""
    async with between({"m": [Reply(status=503)]}) as (gateway, model):
        error = await failure(gateway, is_stream=is_stream)
    assert (error.reason, error.may_retry, len(model.seen)) == ("unavailable", True, 3)


ONCE = [
    pytest.param(Reply(status=400), "refused", id="400"),
    pytest.param(Reply(status=401), "refused", id="401"),
    pytest.param(Reply(status=500), "unavailable", id="500"),
    pytest.param(Reply(body=b'{"choices": ['), "bad_answer", id="bad-json"),
    pytest.param(Reply(changes={"choices": []}), "bad_answer", id="no-choices"),
    pytest.param(Reply(text=""), "bad_answer", id="empty"),
    pytest.param(Reply(finish="content_filter"), "bad_answer", id="filtered"),
]


@pytest.mark.parametrize(("reply", "reason"), ONCE)
async def test_complete_asks_once_where_asking_again_would_not_help(reply: Reply, reason: str) -> None:
    """What will not pass is told at once."""
    async with between({"m": [reply]}) as (gateway, model):
        assert (await failure(gateway)).reason == reason
    assert len(model.seen) == 1


STREAMED_ONCE = [
    pytest.param(Reply(body=b"data: {\n\n"), "bad_answer", id="bad-json"),
    pytest.param(Reply(text=""), "bad_answer", id="empty"),
    pytest.param(Reply(text="", usage="x"), "bad_answer", id="empty-wrong-usage"),
    pytest.param(Reply(cut=2), "cut", id="cut"),
    pytest.param(Reply(finish=None, is_ended=False), "cut", id="no-end"),
    pytest.param(Reply(finish="content_filter"), "bad_answer", id="filtered"),
    pytest.param(Reply(body=b'data: {"error": {"code": "400"}}\n\n'), "refused", id="error-event"),
]


@pytest.mark.parametrize(("reply", "reason"), STREAMED_ONCE)
async def test_stream_that_breaks_is_not_asked_for_again(reply: Reply, reason: str) -> None:
    """After the first text, or after what can't be read, the failure stands."""
    async with between({"m": [reply]}) as (gateway, model):
        error = await failure(gateway, is_stream=True)
        assert (error.reason, error.may_retry) == (reason, False)
    assert len(model.seen) == 1


@pytest.mark.parametrize("body", [b"", b": ping\n\n", b'data: {"error": {"code": 503}}\n\n'])
async def test_stream_without_a_text_is_asked_for_again(body: bytes) -> None:
    """A stream that ended before anything was seen of it may be asked for again."""
    async with between({"m": [Reply(body=body), Reply()]}) as (gateway, model):
        assert "".join((await listen(gateway))[0]) == TEXT
    assert len(model.seen) == 2


async def test_stream_leaves_its_connection_to_the_next() -> None:
    """A stream that was listened to is waited for a moment, so that the next one uses the same connection."""
    gate = asyncio.Event()
    async with between({"m": [Reply(pause=END, gate=gate)]}) as (gateway, model):
        for _ in range(3):
            gate.clear()
            async with gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=9) as answer:
                assert "".join([text async for text in answer]) == TEXT
                gate.set()
    assert len({seen.peer for seen in model.seen}) == 1


@pytest.mark.parametrize("reply", [Reply(is_ended=False), Reply(finish=None), Reply(stall=END), Reply(cut=END)])
async def test_stream_is_whole_when_its_end_is_known(reply: Reply) -> None:
    """Either sign of the end is enough, and a server that then holds the line keeps nobody."""
    async with between({"m": [reply]}) as (gateway, _):
        assert (await listen(gateway))[1].text == TEXT


async def test_gateway_that_is_down_is_told_in_time() -> None:
    """Nobody listens: after its retries the reason is that there is no connection, and nothing was spent."""
    async with Gateway(config_of(f"http://{HOST}:{free_port()}")) as gateway:
        error = await failure(gateway)
        assert (error.reason, error.detail, tokens(gateway)) == ("connect", "Connection refused", ModelTokens())


async def test_gateway_waits_as_long_as_it_is_asked_to() -> None:
    """A wait that fits before the deadline is waited for, and then there is an answer."""
    async with between({"m": [Reply(status=429, headers={"Retry-After": "0.1"}), Reply()]}) as (gateway, model):
        assert (await ask(gateway)).text == TEXT
    assert len(model.seen) == 2


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_gateway_does_not_wait_beyond_the_deadline(is_stream: bool) -> None:
    """When the gateway asks for more time than there is, the failure is told at once."""
    async with between({"m": [Reply(status=429, headers={"Retry-After": "30"})]}) as (gateway, model):
        error = await failure(gateway, is_stream=is_stream, deadline_s=20)
    assert (error.reason, error.retry_after_s, len(model.seen)) == ("rate_limited", 30, 1)


STALLS = [
    pytest.param(Reply(stall="before"), False, id="whole"),
    pytest.param(Reply(stall="before"), True, id="before-the-stream"),
    pytest.param(Reply(stall=2), True, id="within-the-stream"),
]


@pytest.mark.parametrize(("reply", "is_stream"), STALLS)
async def test_gateway_ends_at_the_deadline(reply: Reply, is_stream: bool) -> None:
    """A call that is not through by then is given up: its connection is closed, and it is an estimate."""
    async with between({"m": [reply]}) as (gateway, model):
        error = await failure(gateway, is_stream=is_stream, deadline_s=0.5)
        assert (error.reason, error.detail[:15]) == ("timeout", "no whole answer")
        await wait_until(lambda: model.endings("left"))
        assert (tokens(gateway).estimated_calls, tokens(gateway).most) == (1, MOST)


async def test_gateway_has_a_longest_time_of_its_own() -> None:
    """A deadline beyond the longest time of a call does not prolong it."""
    async with between({"m": [Reply(stall="before")]}, timeout_s=0.05) as (gateway, _):
        assert (await failure(gateway)).detail == "no whole answer within 0.05 s"


@pytest.mark.parametrize(
    ("reply", "is_stream"),
    [(Reply(stall="before"), False), (Reply(stall="before"), True), (Reply(stall=2), True)],
    ids=["whole", "before-the-stream", "within-the-stream"],
)
async def test_gateway_gives_up_a_silent_gateway(reply: Reply, is_stream: bool) -> None:
    """Long before the deadline, an answer that doesn't begin or doesn't go on is given up."""
    wire = {"first_byte_timeout_s": 0.1, "between_bytes_timeout_s": 0.1}
    async with between({"m": [reply]}, wire=wire) as (gateway, model):
        assert (await failure(gateway, is_stream=is_stream, deadline_s=50)).reason == "timeout"
    assert len(model.seen) <= 1


@pytest.mark.parametrize(("is_stream", "deadline_s"), [(False, 0.2), (True, 0.2), (False, 10), (True, 10)])
async def test_gateway_leaves_a_model_alone_that_fails(is_stream: bool, deadline_s: float) -> None:
    """After some calls that ran out of time or were cut, the next ones fail at once; other models are asked."""
    breaker = BreakerConfig(failures_in_row=3, open_s=60)
    reply = Reply(stall="before") if deadline_s < 1 else Reply(cut=0, body=b"x" * (not is_stream))
    async with between({"m": [reply]}, breaker=breaker, retry=RetryConfig(max_retries=0)) as (gateway, model):
        for _ in range(3):
            assert (await failure(gateway, is_stream=is_stream, deadline_s=deadline_s)).reason != "open"
        assert (await failure(gateway, is_stream=is_stream)).reason == "open"
        assert gateway.health() == GatewayHealth(open_models=("m",), refused_models={}, running=0, waiting=0)
        assert (await gateway.complete(MESSAGES, model="other", hints=HINTS, deadline_s=9)).text == TEXT
    assert [seen.body["model"] for seen in model.seen][-1] == "other"
    assert len(model.seen) <= 4


async def test_gateway_refuses_more_than_runs_and_waits() -> None:
    """With one place and one in the queue, the third call is told at once that there are too many."""
    hold = asyncio.Event()
    async with between({"m": [Reply(hold=hold)]}, max_concurrent=1, max_waiting=1) as (gateway, _):
        tasks = [asyncio.create_task(ask(gateway, user=f"{number}")) for number in range(2)]
        await wait_until(
            lambda: gateway.health() == GatewayHealth(open_models=(), refused_models={}, running=1, waiting=1)
        )
        assert (await failure(gateway, is_stream=True)).reason == "overloaded"
        hold.set()
        assert [(await task).text for task in tasks] == [TEXT, TEXT]


async def test_identical_prompts_in_flight_share_a_call() -> None:
    """Of five who ask the same, one pays; all get the text, and the ledger has one call."""
    hold = asyncio.Event()
    async with between({"m": [Reply(hold=hold)]}) as (gateway, model):
        tasks = [asyncio.create_task(ask(gateway)) for _ in range(5)]
        await wait_until(lambda: model.seen)
        hold.set()
        completions = [await task for task in tasks]
        assert tokens(gateway).calls == len(model.seen) == 1
    assert {completion.text for completion in completions} == {TEXT}
    paid = [completion for completion in completions if not completion.cached]
    assert [completion.usage for completion in paid] == [USAGE]
    assert {(one.usage, one.cost_usd) for one in completions if one.cached} == {(NOTHING, 0.0)}


async def test_identical_prompts_in_flight_share_a_failure() -> None:
    """Each of those who share a call that fails has an error of its own, with the same reason."""
    hold = asyncio.Event()
    async with between({"m": [Reply(status=400, hold=hold)]}) as (gateway, model):
        tasks = [asyncio.create_task(ask(gateway)) for _ in range(3)]
        await wait_until(lambda: model.seen)
        hold.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error.reason for error in errors if isinstance(error, GatewayError)] == ["refused"] * 3
    assert len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("change", [{"user": "Other."}, {"model": "other"}, {"hints": Hints(max_tokens=50)}])
async def test_prompts_that_differ_share_nothing(change: dict[str, Any]) -> None:
    """Another text, model or hint is another call, although an answer is kept."""
    async with between(cache_s=60) as (gateway, model):
        await ask(gateway)
        messages = Messages(system=MESSAGES.system, user=change.pop("user", MESSAGES.user))
        asked = {"model": "m", "hints": HINTS} | change
        assert not (await gateway.complete(messages, **asked, deadline_s=9)).cached
    assert len(model.seen) == 2


async def test_answers_are_kept_when_asked_to() -> None:
    """With a cache the second who asks has the answer at once, at no cost; failures are not kept."""
    async with between({"m": [Reply(status=400), Reply()]}, cache_s=60) as (gateway, model):
        await failure(gateway)
        first, second = await ask(gateway), await ask(gateway)
    assert (first.cached, second.cached, second.text, second.usage) == (False, True, TEXT, NOTHING)
    assert len(model.seen) == 2


async def test_answers_are_not_kept_by_default() -> None:
    """Without a cache each is asked for."""
    async with between() as (gateway, model):
        assert [(await ask(gateway)).cached for _ in range(2)] == [False, False]
    assert len(model.seen) == 2


async def test_caller_that_leaves_ends_its_call() -> None:
    """Cancelling the caller closes the connection, and what was spent is an estimate."""
    async with between({"m": [Reply(stall="before")]}) as (gateway, model):
        task = asyncio.create_task(ask(gateway))
        await wait_until(lambda: model.seen)
        task.cancel()
        await asyncio.wait({task})
        assert (tokens(gateway).estimated_calls, tokens(gateway).least) == (1, NOTHING)
        await wait_until(lambda: model.endings("left"))


async def test_caller_that_leaves_keeps_nobody_else_from_the_answer() -> None:
    """One of two who share a call may leave; the other has the answer, and pays."""
    hold = asyncio.Event()
    async with between({"m": [Reply(hold=hold)]}) as (gateway, model):
        first, second = (asyncio.create_task(ask(gateway)) for _ in range(2))
        await wait_until(lambda: model.seen)
        first.cancel()
        hold.set()
        completion = await second
        assert (completion.text, completion.cached, tokens(gateway).calls) == (TEXT, False, 1)


@pytest.mark.parametrize("way", ["break", "error", "cancel"])
async def test_listener_that_leaves_ends_the_stream(way: str) -> None:
    """However a stream is left, its connection is closed, and the ledger has an estimate that has begun."""

    async def leave(gateway: Gateway) -> None:
        async with gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=9) as answer:
            async for _ in answer:
                if way == "break":
                    break
                if way == "error":
                    raise ConnectionResetError
                asyncio.current_task().cancel()  # type: ignore[union-attr]

    async with between({"m": [Reply(stall=2)]}) as (gateway, model):
        await asyncio.gather(asyncio.create_task(leave(gateway)), return_exceptions=True)
        begun = Usage(prompt_tokens=1, completion_tokens=1)
        assert tokens(gateway) == ModelTokens(estimated_calls=1, least=begun, most=MOST)
        assert gateway.health() == GatewayHealth(open_models=(), refused_models={}, running=0, waiting=0)
        await wait_until(lambda: model.endings("left"))


async def test_gateway_that_is_closed_ends_its_calls() -> None:
    """Whoever still waits when the client is closed is told, and the connection is closed."""
    async with FakeModel(m=[Reply(stall="before")]) as model:
        async with Gateway(config_of(model.url)) as gateway:
            task = asyncio.create_task(ask(gateway))
            await wait_until(lambda: model.seen)
        with pytest.raises(GatewayError, match="timeout"):
            await task
        await wait_until(lambda: model.endings("left"))


LEAKS = [
    Reply(status=401, body=json.dumps({"error": {"message": KEY, "type": KEY, "code": KEY}}).encode()),
    Reply(status=500, body=KEY.encode()),
    Reply(body=KEY.encode()),
    Reply(body=b'data: {"error": {"message": "' + KEY.encode() + b'"}}\n\n'),
    Reply(changes={"choices": KEY}),
    Reply(cut="before"),
    Reply(stall="before"),
]


def everything(error: BaseException | None) -> str:
    """All that a log or a debugger could show of an error and of those behind it."""
    if error is None:
        return ""
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + repr(vars(error))
    return shown + everything(error.__cause__) + everything(None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reply", LEAKS)
async def test_key_is_nowhere_to_be_seen(reply: Reply, is_stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, also with a gateway that repeats it: no log, error, health or record has the key."""
    breaker = BreakerConfig(failures_in_row=1, open_s=60)
    with caplog.at_level(logging.DEBUG):
        async with between({"m": [reply]}, breaker=breaker) as (gateway, model):
            error = await failure(gateway, is_stream=is_stream, deadline_s=1 if reply.stall else 10)
            shown = [everything(error), repr(gateway.health()), repr(gateway.ledger.facts()), repr(vars(gateway))]
        shown += [config_of(model.url).__repr__()] + [repr(vars(record)) for record in caplog.records]
    assert model.seen[0].headers["Authorization"].endswith(KEY)
    assert [text for text in shown if KEY in text] == []


async def test_answer_that_breaks_off_has_an_error_of_every_time() -> None:
    """A listener that asks on after a failure has the failure again, and it counts once."""
    async with (
        between({"m": [Reply(cut=2)]}) as (gateway, _),
        gateway.stream(MESSAGES, model="m", hints=HINTS, deadline_s=9) as answer,
    ):
        for _ in range(2):
            with pytest.raises(GatewayError, match="cut"):
                _ = [text async for text in answer]
        assert tokens(gateway).estimated_calls == 1
