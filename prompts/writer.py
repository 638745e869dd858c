"""Has a tip written: by the first model, by the fallback model, or here. A tip always comes back.

This module owns who is asked for a tip, in which order and for how long, and what is said of a tip while it comes.
Whether a text may be shown is prompts/tips.py's business, one call of a model prompts/gateway.py's. Nothing is known
here of requests: the app tells what became of it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable

import attrs

from models.errors import GatewayError, PromptError
from models.events import Fallback
from prompts.gateway import Gateway
from prompts.registry import Messages, Variant
from prompts.tips import Tip

log = logging.getLogger(__name__)

FIRST_SHARE = 0.6
"""Of the time that is left, what the first model gets while another one may have to be asked after it."""
MAX_OPEN = 256
"""Tips that wait for models at once; further ones get the tip that is made here."""


@attrs.frozen(kw_only=True)
class Part:
    """Of a tip that is told while it comes: text that goes on, or a whole one in the place of all before."""

    text: str
    is_whole: bool = False


class Writer:
    """Writes tips; belongs to one event loop.

    Args:
        gateway: None while there is none.
        release: is told of each variant before a model is asked with it, and gives the one to ask with.
        fallback_model: asked when the first one has no text that may be shown.
    """

    def __init__(
        self,
        gateway: Callable[[], Gateway | None],
        *,
        release: Callable[[Variant], Variant],
        model: str,
        fallback_model: str | None = None,
    ) -> None:
        self._gateway = gateway
        self._release = release
        self._models: list[tuple[str, Fallback]] = [(model, "none")]
        if fallback_model:
            self._models.append((fallback_model, "model"))
        self._open = 0
        self._is_stopping = False
        self._waits: set[asyncio.Timeout] = set()

    async def write(self, tip: Tip) -> None:
        """Writes a tip; who is cancelled leaves the model, and the tip has a bound on what that took."""
        await self._next(tip, self._texts(tip, is_streamed=False))

    async def stream(self, tip: Tip) -> AsyncGenerator[Part, None]:
        """Writes a tip and tells it as it comes; closing the generator is as being cancelled."""
        said = ""
        async with contextlib.aclosing(self._texts(tip, is_streamed=True)) as texts:
            while text := await self._next(tip, texts):
                said += text
                yield Part(text=text)
        if said.strip() != tip.text:
            yield Part(text=tip.text, is_whole=bool(said))

    def stop(self) -> None:
        """Ends the wait for models, now and from now on: whoever waits gets the tip that is made here."""
        self._is_stopping = True
        while self._waits:
            self._waits.pop().reschedule(0)

    async def _next(self, tip: Tip, texts: AsyncGenerator[str, None]) -> str:
        """The next text, never an empty one; empty once the tip is there."""
        try:
            async with asyncio.timeout(0 if self._is_stopping else None) as wait:
                self._waits.add(wait)
                try:
                    return await anext(texts, "")
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            tip.reasons.append("stopping")
            tip.take_local()
            return ""

    async def _texts(self, tip: Tip, *, is_streamed: bool) -> AsyncGenerator[str, None]:
        """Asks the models in turn until one's text is taken; ``is_streamed`` gives the first one's as it comes."""
        ready = self._ready(tip)
        if ready is None:
            tip.take_local()
            return
        (gateway, messages), hints = ready, tip.variant.hints
        self._open += 1
        try:
            for model, fallback in self._models:
                left_s = self._left_s(tip, fallback)
                if left_s <= 0:
                    tip.reasons.append("timeout")
                    break
                is_told = is_streamed and fallback == "none"
                try:
                    if is_told:
                        async with gateway.stream(messages, model=model, hints=hints, deadline_s=left_s) as answer:
                            async for text in answer:
                                yield text
                        completion = answer.completion
                    else:
                        completion = await gateway.complete(messages, model=model, hints=hints, deadline_s=left_s)
                except GatewayError as error:
                    tip.fail(error, gateway.usage_most(messages, hints))
                    continue
                except (asyncio.CancelledError, GeneratorExit):
                    tip.spend(gateway.usage_most(messages, hints), is_estimated=True)
                    raise
                if tip.take(completion, fallback):
                    return
                if not is_told:  # streams are not kept
                    gateway.forget(messages, model=model, hints=hints)
            tip.take_local()
        finally:
            self._open -= 1

    def _ready(self, tip: Tip) -> tuple[Gateway, Messages] | None:
        """Whom to ask, and what; without either the tip has the reason."""
        gateway = self._gateway()
        if gateway is None or self._is_stopping or self._open >= MAX_OPEN:
            reason = "no_gateway" if gateway is None else "stopping" if self._is_stopping else "overloaded"
            tip.reasons.append(reason)
            return None
        tip.variant = self._release(tip.variant)
        try:
            return gateway, tip.variant.render(tip.context.variables())
        except PromptError as error:
            fields = {"version": tip.variant.version, "error": type(error.__cause__ or error).__name__}
            log.error("prompt can't be rendered", extra={"fields": fields})  # the message may quote a user's text
            tip.reasons.append("prompt_failed")
            return None

    def _left_s(self, tip: Tip, fallback: Fallback) -> float:
        """Seconds for a model."""
        left_s = tip.deadline - time.monotonic()
        return left_s * FIRST_SHARE if fallback == "none" and len(self._models) > 1 else left_s
