"""Asks language models through a LiteLLM proxy, in OpenAI's chat completions; its library is never imported.

This module owns a call from the messages to a whole answer: the caller's deadline, asking again, the breaker, how many
calls run at once, and one call for identical prompts. It chooses no model and has no other answer when there is none:
prompts/writer.py decides that. One request is prompts/wire.py, what an answer says is prompts/answers.py, when to
ask again is prompts/retries.py, and what everything cost is prompts/ledger.py.

Whoever is cancelled or stops reading closes its connection to the gateway. LiteLLM then ends the model's work on a
stream; on an answer that isn't streamed it goes on, within the bound of the ledger.
"""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import attrs

from models.codec import between, encode_json
from models.errors import GatewayError
from prompts.answers import COST_HEADER, Answer, Collected, Completion, decode_answer
from prompts.attempts import Attempt, Attempts, Call
from prompts.breaker import BreakerConfig
from prompts.ledger import NOTHING, TokenLedger, Usage, most_usage
from prompts.registry import Hints, Messages
from prompts.retries import RetryConfig, retry_delay
from prompts.shared import AnswerCache, Deadline, SharedCalls
from prompts.slots import CallSlots
from prompts.sse import EventParser
from prompts.wire import Pieces, Wire, WireConfig

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """The limits of all calls together.

    Args:
        timeout_s: the longest call, whatever its deadline.
        max_concurrent: calls that run at once; as many as ``max_waiting`` wait, further ones are refused at once.
        max_tokens: of an answer, where the hints leave it open; so that there is a bound on what a call costs.
        cache_s: how long an answer is given again to the same prompt; 0 keeps none.
    """

    wire: WireConfig
    retry: RetryConfig = attrs.field(factory=RetryConfig)
    breaker: BreakerConfig = attrs.field(factory=BreakerConfig)
    timeout_s: float = attrs.field(default=30.0, validator=between(0.001, 3600))
    max_concurrent: int = attrs.field(default=64, validator=between(1, 10_000))
    max_waiting: int = attrs.field(default=64, validator=between(0, 10_000))
    max_tokens: int = attrs.field(default=500, validator=between(1, 100_000))
    cache_s: float = attrs.field(default=0.0, validator=between(0, 86_400))
    cache_max: int = attrs.field(default=1000, validator=between(1, 1_000_000))


@attrs.frozen(kw_only=True)
class GatewayHealth:
    """How the calls are at the moment.

    Args:
        open_models: failed lately and are left alone.
        refused_models: were refused many times in a row, each with what the gateway said last.
    """

    open_models: tuple[str, ...]
    refused_models: Mapping[str, str]
    running: int
    waiting: int


class Gateway:
    """A client of one gateway; an async context manager, which belongs to one event loop."""

    def __init__(self, config: GatewayConfig, *, rng: random.Random | None = None) -> None:
        self.ledger = TokenLedger()
        self._config = config
        self._rng = rng or random.Random()
        self._wire = Wire(config.wire)
        self._slots = CallSlots(max_running=config.max_concurrent, max_waiting=config.max_waiting)
        self._attempts = Attempts(config.breaker, self.ledger, _now)
        self._shared: SharedCalls[Completion | GatewayError] = SharedCalls()
        self._cache: AnswerCache[Completion] = AnswerCache(ttl_s=config.cache_s, max_entries=config.cache_max)

    def health(self) -> GatewayHealth:
        """What ``/health`` may show; neither the gateway's address nor its key is in it."""
        return GatewayHealth(
            open_models=self._attempts.open_models(),
            refused_models=self._attempts.refused_models(),
            running=self._slots.running,
            waiting=self._slots.waiting,
        )

    def usage_most(self, messages: Messages, hints: Hints) -> Usage:
        """What asking for these can't exceed, every attempt counted, where no more is known of it."""
        most = most_usage(messages, max_tokens=hints.max_tokens or self._config.max_tokens)
        attempts = 1 + self._config.retry.max_retries
        return Usage(prompt_tokens=attempts * most.prompt_tokens, completion_tokens=attempts * most.completion_tokens)

    async def complete(self, messages: Messages, *, model: str, hints: Hints, deadline_s: float) -> Completion:
        """Asks for an answer as a whole; who asks the same at the same time shares one call.

        Cancelling the caller ends its call, unless others wait for it.

        Args:
            deadline_s: seconds from now within which this ends, retries included.

        Raises:
            GatewayError: there is no answer that can be used.
        """
        now = _now()
        call = self._call(messages, model, hints, is_stream=False)
        if (kept := self._cache.get(call.key, now)) is not None:
            return _again(kept)
        limit_s = min(deadline_s, self._config.timeout_s)
        try:
            landed = await self._shared.join(
                call.key, lambda deadline: self._completed(call, deadline), ends_at=now + limit_s
            )
        except TimeoutError as error:
            raise GatewayError("timeout", f"no whole answer within {limit_s:g} s") from error
        if isinstance(landed.value, GatewayError):
            raise _copy(landed.value) from landed.value
        return landed.value if landed.is_owner else _again(landed.value)

    def forget(self, messages: Messages, *, model: str, hints: Hints) -> None:
        """Keeps an answer no longer that was of no use; the next one who asks for it has another one made."""
        self._cache.drop(self._call(messages, model, hints, is_stream=False).key)

    @asynccontextmanager
    async def stream(
        self, messages: Messages, *, model: str, hints: Hints, deadline_s: float
    ) -> AsyncIterator["StreamedAnswer"]:
        """Asks for an answer as it is made; leaving the context ends the call.

        The context is entered with the first text at hand: until then it is asked again, after it never. A stream is
        neither shared with others nor kept.

        Args:
            deadline_s: seconds from now within which the stream ends.

        Raises:
            GatewayError: there is no answer that can be used; while reading, that it broke off.
        """
        call = self._call(messages, model, hints, is_stream=True)
        deadline = Deadline(_now() + min(deadline_s, self._config.timeout_s))
        async with AsyncExitStack() as stack:
            async with _within(deadline):
                await stack.enter_async_context(self._slots.take())
                answer = await self._retried(call, deadline, lambda: self._streamed(call, deadline))
                stack.push_async_callback(answer.leave)
            yield answer

    async def _completed(self, call: Call, deadline: Deadline) -> Completion | GatewayError:
        """What a shared call gives to all; a failure is a value, for each of them has to raise its own."""
        try:
            async with self._slots.take():
                completion = await self._retried(call, deadline, lambda: self._asked(call, deadline))
        except GatewayError as error:
            return error
        self._cache.put(call.key, completion, _now())
        return completion

    async def _retried(self, call: Call, deadline: Deadline, attempt: Callable[[], Awaitable[T]]) -> T:
        retries = 0
        while True:
            try:
                return await attempt()
            except GatewayError as error:
                left_s = deadline.left_s(_now())
                delay_s = retry_delay(error, self._config.retry, retries=retries, left_s=left_s, rng=self._rng)
                if delay_s is None:
                    raise
            retries += 1
            await asyncio.sleep(delay_s)

    async def _asked(self, call: Call, deadline: Deadline) -> Completion:
        with self._attempts.begin(call, deadline) as attempt:
            async with self._wire.ask(call.body) as pieces:
                answer = decode_answer(await pieces.read(), cost_header=pieces.headers.get(COST_HEADER))
            attempt.succeed(answer.usage)
        return _completion(call, answer)

    async def _streamed(self, call: Call, deadline: Deadline) -> "StreamedAnswer":
        """Starts a stream and reads up to its first text."""
        async with AsyncExitStack() as stack:
            attempt = stack.enter_context(self._attempts.begin(call, deadline))
            pieces = await stack.enter_async_context(self._wire.ask(call.body))
            answer = StreamedAnswer(call, attempt, pieces=pieces, deadline=deadline)
            await answer.start()
            answer.keep(stack.pop_all())
        return answer

    def _call(self, messages: Messages, model: str, hints: Hints, *, is_stream: bool) -> Call:
        max_tokens = hints.max_tokens or self._config.max_tokens
        sent: dict[str, object] = {
            "model": model,
            "messages": [
                {"role": "system", "content": messages.system},
                {"role": "user", "content": messages.user},
            ],
            "max_tokens": max_tokens,
        }
        if hints.temperature is not None:
            sent["temperature"] = hints.temperature
        if is_stream:
            sent |= {"stream": True, "stream_options": {"include_usage": True}}
        body = encode_json(sent)
        most = most_usage(messages, max_tokens=max_tokens)
        return Call(model=model, body=body, key=hashlib.sha256(body).hexdigest(), most=most)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self._shared.close()
        await self._wire.__aexit__(kind, error, trace)


class StreamedAnswer:
    """An answer while it is made: an async iterator of texts, then ``completion``."""

    def __init__(self, call: Call, attempt: Attempt, *, pieces: Pieces, deadline: Deadline) -> None:
        self._call = call
        self._attempt = attempt
        self._pieces = pieces
        self._deadline = deadline
        self._collected = Collected()
        self._parser = EventParser()
        self._ready: deque[str] = deque()
        self._completion: Completion | None = None
        self._stack = AsyncExitStack()

    @property
    def completion(self) -> Completion:
        """The whole answer; only after the last text."""
        assert self._completion is not None, "the stream has not ended"
        return self._completion

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """The next text, never an empty one.

        Raises:
            GatewayError: the stream broke off, or its time is up.
        """
        while not self._ready:
            if self._completion is not None:
                raise StopAsyncIteration
            try:
                async with _within(self._deadline):
                    await self._advance()
            except GatewayError as error:
                self._attempt.fail(error)
                raise
        return self._ready.popleft()

    async def start(self) -> None:
        """Reads up to the first text; a stream without any ends in an error here."""
        while not self._ready:
            await self._advance()

    def keep(self, stack: AsyncExitStack) -> None:
        """Takes over what ends with the stream."""
        self._stack = stack

    async def leave(self) -> None:
        """Ends the call, if it has not ended."""
        if self._completion is not None:
            await self._pieces.finish()
        await self._stack.aclose()

    async def _advance(self) -> None:
        piece = await self._pieces.next()
        for event in self._parser.feed(piece):
            if text := self._collected.feed(event):
                self._attempt.has_begun = True
                self._ready.append(text)
        if self._collected.is_done or not piece:
            await self._end()

    async def _end(self) -> None:
        if not self._collected.is_whole:
            may_retry = not self._collected.has_text
            raise GatewayError("cut", "the stream ended before the answer did", may_retry=may_retry)
        answer = self._collected.answer()
        self._attempt.succeed(answer.usage)
        self._completion = _completion(self._call, answer)


@asynccontextmanager
async def _within(deadline: Deadline) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline.ends_at):
            yield
    except TimeoutError as error:
        raise GatewayError("timeout", "no whole answer before the deadline") from error


def _completion(call: Call, answer: Answer) -> Completion:
    return Completion(
        text=answer.text,
        model=answer.model or call.model,
        usage=answer.usage or call.most,
        cost_usd=answer.cost_usd,
        is_estimated=answer.usage is None,
        is_cut=answer.is_cut,
    )


def _again(completion: Completion) -> Completion:
    """The answer for one who caused no call: the one who did has its tokens and its cost."""
    return attrs.evolve(completion, usage=NOTHING, cost_usd=0.0, is_estimated=False, cached=True)


def _copy(error: GatewayError) -> GatewayError:
    return GatewayError(error.reason, error.detail, may_retry=error.may_retry, retry_after_s=error.retry_after_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
