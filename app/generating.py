"""From the body of ``POST /generate`` to a tip: select, read, assemble, ask, check, log. A tip always comes back.

A request names a prompt variant or gets the operator's; what is known of the user fills it, and the gateway's model
writes a tip. One that fails the variant's checks, or does not come, is replaced by the fallback model's, and that one
by a tip made here (prompts/local.py), so whatever happens to models and gateway, a valid request is answered with a tip
that passes. How it came about stands in the answer and in the decision log.

Choosing is prompts/selection.py's business, the context models/context.py's, calls are prompts/gateway.py's, checks
prompts/checks.py's; HTTP is app/views/generate.py.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Literal

import attrs
import msgspec

from app.bodies import decode_body
from app.ids import new_id
from app.scoring import Decisions
from app.user_rows import NO_ROWS, RowProblems, UserRowReader, UserRows
from models.codec import decoder_for, encode_json, filled, identifier
from models.context import PromptContext, assemble_context
from models.errors import GatewayError, PromptError, StoreError
from models.events import Fallback, GenerateDecided, TokenUsage
from models.profile_schema import PROFILE, ProfileFeatures
from models.rows import UserSync
from prompts.answers import Completion
from prompts.attempts import FREE
from prompts.catalog import Catalog
from prompts.checks import check_tip
from prompts.gateway import Gateway
from prompts.ledger import Usage
from prompts.local import MODEL as LOCAL_MODEL
from prompts.local import local_tip
from prompts.registry import Messages, Variant
from prompts.selection import Selected, select_version

log = logging.getLogger(__name__)

GENERATE_SUBJECT = "decisions.generate"
FIRST_SHARE = 0.6
"""Of the time that is left, what the first model gets while another one may have to be asked after it."""
MAX_OPEN = 256
"""Requests that wait for models at once; further ones get a tip made here."""
ROW_TYPES: Mapping[str, type] = {"user_sync": UserSync}

_NULL = msgspec.Raw(b"null")
_SENTENCE_ENDS = (".", "!", "?", "…", '"', "”", "'", "’", ")")


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """The body of ``POST /generate``.

    Args:
        prompt_version: the variant to use; null takes the operator's default.
        signals: what the user did lately, short texts, the newest first; null takes what our tables know.
        tip_kind: what the tip is to be about.
        stream: answer with server-sent events.
    """

    user_id: str = attrs.field(validator=identifier)
    request_id: str | None = attrs.field(default=None, validator=identifier)
    prompt_version: str | None = attrs.field(default=None, validator=attrs.validators.optional(filled))
    profile_features: msgspec.Raw = _NULL
    signals: list[str] | None = None
    tip_kind: str | None = None
    stream: bool = False


@attrs.frozen(kw_only=True)
class GenerateAnswer:
    """A tip, and how it came about.

    Args:
        prompt_version: the variant that was used; pass it on with the reward.
        model: the model that wrote the tip; ``local`` when it was made here.
        usage: the tokens that it took; null where no model was asked, or nothing is known.
        usage_estimated: the gateway did not say all of it, and ``usage`` is an upper bound.
        cost_usd: what the gateway charges for it; null where it does not say.
        cached: it was made for another request with the same prompt.
        fallback: what took the place of the asked model: another one, the template made here, or nothing.
        degraded_reason: why.
        logged: whether the decision log has the answer.
    """

    request_id: str
    tip_id: str
    tip: str
    prompt_version: str
    model: str
    usage: TokenUsage | None
    usage_estimated: bool
    cost_usd: float | None
    cached: bool
    fallback: Fallback
    degraded_reason: str | None
    logged: bool


@attrs.frozen(kw_only=True)
class Event:
    """One event of a streamed answer; ``done`` has the whole answer, which is authoritative."""

    name: Literal["tip", "replace", "done"]
    data: bytes


@attrs.frozen(kw_only=True)
class GenerateConfig:
    """Which models are asked, and which variants are the default."""

    model: str
    fallback_model: str | None
    defaults: Sequence[str]


@attrs.define(kw_only=True)
class Making:
    """One answer while it is made."""

    asked: GenerateRequest
    request_id: str
    tip_id: str
    now: dt.datetime
    began: float
    deadline: float
    variant: Variant
    selected: Selected
    context: PromptContext
    read: Mapping[str, str]
    rate: float | None
    tip: str = ""
    model: str = LOCAL_MODEL
    usage: TokenUsage | None = None
    usage_estimated: bool = False
    cost_usd: float | None = None
    cached: bool = False
    fallback: Fallback = "none"
    reasons: list[str] = attrs.field(factory=list)
    failed_checks: list[str] = attrs.field(factory=list)

    def spend(self, usage: Usage, *, is_estimated: bool, cost_usd: float | None = None) -> None:
        """Adds what a call of a model took, or can't have exceeded."""
        before = self.usage or TokenUsage()
        self.usage = TokenUsage(
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
        )
        self.usage_estimated |= is_estimated
        if cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost_usd

    def fail(self, error: GatewayError, usage_most: Usage) -> None:
        """Notes why there is no text; unless no model can have worked, its tokens are bounded and not known."""
        self.reasons.append(error.reason)
        if error.reason not in FREE:
            self.spend(usage_most, is_estimated=True)

    def take(self, completion: Completion, fallback: Fallback) -> bool:
        """Takes a model's text, if it passes the variant's checks."""
        self.spend(completion.usage, is_estimated=completion.is_estimated, cost_usd=completion.cost_usd)
        checked = check_tip(completion.text, limits=self.variant.limits, context=self.context)
        failed = list(checked.failed)
        if completion.is_cut and not checked.text.endswith(_SENTENCE_ENDS):
            failed.append("unfinished")
        if failed:
            self.failed_checks += [name for name in failed if name not in self.failed_checks]
            self.reasons.append(f"failed_checks:{'+'.join(failed)}")
            return False
        self.tip, self.model, self.cached, self.fallback = checked.text, completion.model, completion.cached, fallback
        return True

    def take_local(self) -> None:
        """Takes a tip that is made here."""
        self.tip = local_tip(self.context, limits=self.variant.limits)
        self.model, self.cached, self.fallback = LOCAL_MODEL, False, "template"

    @property
    def degraded_reason(self) -> str | None:
        """Why the tip is not the asked model's first one."""
        return ", ".join(self.reasons) or None


class Generating:
    """Answers requests.

    Args:
        catalog: the variants, once the application has started.
        gateway: None while there is none.
        rows: reads the user's rows on the loop.
        read_profile: decodes the JSON of ``profile_features``; raises PayloadError.
        observe: is told of every answer that was given.
    """

    def __init__(
        self,
        config: GenerateConfig,
        *,
        catalog: Callable[[], Catalog],
        gateway: Callable[[], Gateway | None],
        rows: UserRowReader,
        read_profile: Callable[[msgspec.Raw], ProfileFeatures],
        decisions: Decisions,
        observe: Callable[[Making], None],
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._gateway = gateway
        self._rows = rows
        self._read_profile = read_profile
        self._decisions = decisions
        self._observe = observe
        self._open = 0
        self._is_stopping = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._row_problems = RowProblems()

    def begin(self, body: bytes, *, request_id: str, began: float, deadline_s: float) -> Making:
        """Decodes a request, selects its variant and assembles its context; no model is asked yet.

        Args:
            request_id: the one to use unless the body brings its own.
            began: when the request came, on the monotonic clock; its deadline counts from then.

        Raises:
            RequestError: 400 or 422, with the path of the field.
            PromptUnknown: the variant is not served; the answer is 422.
        """
        asked = decode_body(body, _decode)
        profile = decode_body(asked.profile_features, self._read_profile)
        known = self._catalog().variants
        selected = select_version(
            asked.prompt_version, user_id=asked.user_id, defaults=self._config.defaults, known=known
        )
        now = dt.datetime.now(dt.UTC)
        rows, problem = self._fetch(asked.user_id)
        request_id = asked.request_id or request_id
        making = Making(
            asked=asked,
            request_id=request_id,
            tip_id=new_id(),
            now=now,
            began=began,
            deadline=began + deadline_s,
            variant=known[selected.version],
            selected=selected,
            context=assemble_context(
                signals=asked.signals,
                tip_kind=asked.tip_kind,
                profile_features={feature.name: getattr(profile, feature.name) for feature in PROFILE},
                declared=PROFILE,
                rows=rows.rows,
                now=now,
            ),
            read={table: f"{read.stream}:{read.seq}" for table, read in rows.read.items()},
            rate=self._decisions.admit(request_id),
        )
        making.reasons += [problem] if problem else []
        return making

    async def answer(self, making: Making) -> bytes:
        """Makes the tip and returns the answer's JSON; a cancelled caller's model is asked no longer."""
        try:
            with self._waiting():
                await self._make(making)
        except asyncio.CancelledError:
            if not self._is_stopping:
                self._abandon(making)
                raise
            self._hurry(making)
        return self._finish(making)

    async def stream(self, making: Making) -> AsyncGenerator[Event, None]:
        """Makes the tip and says it as it comes; closing the generator leaves the model."""
        said = ""
        try:
            async with contextlib.aclosing(self._deltas(making)) as deltas:
                while text := await self._next(deltas):
                    said += text
                    yield _event("tip", {"delta": text})
            if not making.tip:
                with self._waiting():
                    await self._make(making, is_begun=True)
            if not said:
                yield _event("tip", {"delta": making.tip})
            elif said != making.tip:
                yield _event("replace", {"tip": making.tip})
        except GeneratorExit:
            self._abandon(making)
            raise
        except asyncio.CancelledError:
            if not self._is_stopping:
                self._abandon(making)
                raise
            self._hurry(making)
            yield _event("replace" if said else "tip", {"tip" if said else "delta": making.tip})
        yield Event(name="done", data=self._finish(making))

    async def _next(self, deltas: AsyncGenerator[str, None]) -> str:
        """The next text, never an empty one; empty at the end."""
        with self._waiting():
            return await anext(deltas, "")

    def stop(self) -> None:
        """Ends the wait for models: whoever waits gets a tip that is made here, before the process ends."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Lets ``stop`` end what this task waits for."""
        task = asyncio.current_task()
        assert task, "a coroutine runs in a task"
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def _hurry(self, making: Making) -> None:
        """Makes the tip here for one whose wait was ended by the stop."""
        if task := asyncio.current_task():
            task.uncancel()
        making.reasons.append("stopping")
        making.take_local()

    async def _deltas(self, making: Making) -> AsyncGenerator[str, None]:
        """The first model's text as it comes; afterwards the tip is there, unless the model or a check has failed."""
        gateway, messages = self._ready(making)
        if gateway is None or messages is None:
            making.take_local()
            return
        self._open += 1
        try:
            async with gateway.stream(
                messages, model=self._config.model, hints=making.variant.hints, deadline_s=self._left_s(making)
            ) as answer:
                async for text in answer:
                    yield text
            making.take(answer.completion, "none")
        except GatewayError as error:
            making.fail(error, gateway.usage_most(messages, making.variant.hints))
        except (asyncio.CancelledError, GeneratorExit):
            making.spend(gateway.usage_most(messages, making.variant.hints), is_estimated=True)
            raise
        finally:
            self._open -= 1

    async def _make(self, making: Making, *, is_begun: bool = False) -> None:
        """Asks the models in turn, and makes the tip here when none has one that passes.

        Args:
            is_begun: the first model was asked already.
        """
        gateway, messages = self._ready(making)
        self._open += 1
        try:
            if gateway is not None and messages is not None:
                if not is_begun and await self._ask(making, gateway, messages, self._config.model, "none"):
                    return
                other = self._config.fallback_model
                if other and await self._ask(making, gateway, messages, other, "model"):
                    return
        finally:
            self._open -= 1
        making.take_local()

    def _ready(self, making: Making) -> tuple[Gateway | None, Messages | None]:
        """Whom to ask, and what; a reason says why nobody is."""
        gateway = self._gateway()
        if gateway is None or self._is_stopping or self._open >= MAX_OPEN:
            reason = "no_gateway" if gateway is None else "stopping" if self._is_stopping else "overloaded"
            making.reasons += [reason] if reason not in making.reasons else []
            return None, None
        making.variant = self._catalog().release(making.variant)
        try:
            return gateway, making.variant.render(making.context.variables())
        except PromptError as error:
            fields = {"version": making.variant.version, "error": type(error.__cause__ or error).__name__}
            log.error("prompt can't be rendered", extra={"fields": fields})  # the message may quote a user's text
            making.reasons.append("prompt_failed")
            return None, None

    def _left_s(self, making: Making) -> float:
        """Seconds for the first model."""
        left_s = making.deadline - time.monotonic()
        return left_s * FIRST_SHARE if self._config.fallback_model else left_s

    async def _ask(self, making: Making, gateway: Gateway, messages: Messages, model: str, fallback: Fallback) -> bool:
        left_s = self._left_s(making) if fallback == "none" else making.deadline - time.monotonic()
        if left_s <= 0:
            making.reasons.append("timeout")
            return False
        try:
            completion = await gateway.complete(messages, model=model, hints=making.variant.hints, deadline_s=left_s)
        except GatewayError as error:
            making.fail(error, gateway.usage_most(messages, making.variant.hints))
            return False
        except asyncio.CancelledError:
            making.spend(gateway.usage_most(messages, making.variant.hints), is_estimated=True)
            raise
        return making.take(completion, fallback)

    def _fetch(self, user_id: str) -> tuple[UserRows, str | None]:
        try:
            return self._rows.fetch(user_id, ROW_TYPES), None
        except StoreError as error:
            self._row_problems.note(error)
            return NO_ROWS, "state_unreadable"

    def _abandon(self, making: Making) -> None:
        """Logs an answer whose client has left; what its model took is an upper bound."""
        making.reasons.append("client_left")
        self._log(making, is_abandoned=True)

    def _finish(self, making: Making) -> bytes:
        """Logs the answer, if it was admitted, and encodes it."""
        answer = GenerateAnswer(
            request_id=making.request_id,
            tip_id=making.tip_id,
            tip=making.tip,
            prompt_version=making.variant.version,
            model=making.model,
            usage=making.usage,
            usage_estimated=making.usage_estimated,
            cost_usd=making.cost_usd,
            cached=making.cached,
            fallback=making.fallback,
            degraded_reason=making.degraded_reason,
            logged=self._log(making, is_abandoned=False),
        )
        self._observe(making)
        return encode_json(attrs.asdict(answer))

    def _log(self, making: Making, *, is_abandoned: bool) -> bool:
        if making.rate is None:
            return False
        is_dealt = making.selected.source == "default" and len(self._config.defaults) > 1
        decided = GenerateDecided(
            request_id=making.request_id,
            user_id=making.asked.user_id,
            tip_id=making.tip_id,
            prompt_version=making.variant.version,
            prompt_hash=making.variant.content_hash,
            selection=making.selected.source,
            propensity=1 / len(self._config.defaults) if is_dealt else 1.0,
            model=making.model if making.tip else None,
            usage=making.usage,
            usage_estimated=making.usage_estimated,
            cost_usd=making.cost_usd,
            latency_ms=1000 * (time.monotonic() - making.began),
            cached=making.cached,
            fallback=making.fallback,
            degraded_reason=making.degraded_reason,
            failed_checks=tuple(making.failed_checks),
            is_abandoned=is_abandoned,
            rows=dict(making.read),
            sample_rate=making.rate,
            occurred_at=making.now,
        )
        return self._decisions.write(GENERATE_SUBJECT, encode_json(decided))


_decode = decoder_for(GenerateRequest)


def _event(name: Literal["tip", "replace", "done"], data: Mapping[str, str]) -> Event:
    return Event(name=name, data=encode_json(data))
