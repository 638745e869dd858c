"""From the body of ``POST /generate`` to an answer: decode, select, read, assemble, have a tip written, log.

A request names a prompt variant or gets the operator's; what is known of the user fills it. Whatever happens to models
and gateway, a valid request is answered with a tip. How it came about stands in the answer and in the decision log.

Choosing is prompts/selection.py's business, the context models/context.py's; who writes the tip, and whether it may be
shown, is prompts/writer.py's. HTTP is app/views/generate.py.
"""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Literal

import attrs
import msgspec

from app.bodies import decode_body
from app.ids import new_id
from app.scoring import Decisions
from app.user_rows import NO_ROWS, RowProblems, UserRowReader, UserRows
from models.codec import decoder_for, encode_json, filled, identifier
from models.context import assemble_context
from models.errors import StoreError
from models.events import Fallback, GenerateDecided, TokenUsage
from models.profile_schema import PROFILE, ProfileFeatures
from models.rows import UserSync
from prompts.catalog import Catalog
from prompts.selection import Selected, select_version
from prompts.tips import Tip
from prompts.writer import Writer

GENERATE_SUBJECT = "decisions.generate"
ROW_TYPES: Mapping[str, type] = {"user_sync": UserSync}

_NULL = msgspec.Raw(b"null")


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
class Making:
    """A request that fits, and the tip that is made for it.

    Args:
        began: when it came, on the monotonic clock.
        read: the message that had written each row that was read, by table.
        rate: the sample rate under which the answer is logged; None: it is not.
    """

    asked: GenerateRequest
    request_id: str
    tip_id: str
    now: dt.datetime
    began: float
    selected: Selected
    read: Mapping[str, str]
    rate: float | None
    tip: Tip


class Generating:
    """Answers requests.

    Args:
        defaults: the variants of requests that name none.
        catalog: the variants, once the application has started.
        rows: reads the user's rows on the loop.
        read_profile: decodes the JSON of ``profile_features``; raises PayloadError.
        observe: is told of every tip that was answered, and of the seconds since its request came.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        defaults: Sequence[str],
        catalog: Callable[[], Catalog],
        rows: UserRowReader,
        read_profile: Callable[[msgspec.Raw], ProfileFeatures],
        decisions: Decisions,
        observe: Callable[[Tip, float], None],
    ) -> None:
        self._writer = writer
        self._defaults = defaults
        self._catalog = catalog
        self._rows = rows
        self._read_profile = read_profile
        self._decisions = decisions
        self._observe = observe
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
        selected = select_version(asked.prompt_version, user_id=asked.user_id, defaults=self._defaults, known=known)
        now = dt.datetime.now(dt.UTC)
        rows, problems = self._fetch(asked.user_id)
        context = assemble_context(
            signals=asked.signals,
            tip_kind=asked.tip_kind,
            profile_features={feature.name: getattr(profile, feature.name) for feature in PROFILE},
            declared=PROFILE,
            rows=rows.rows,
            now=now,
        )
        variant, deadline = known[selected.version], began + deadline_s
        request_id = asked.request_id or request_id
        return Making(
            asked=asked,
            request_id=request_id,
            tip_id=new_id(),
            now=now,
            began=began,
            selected=selected,
            read={table: f"{read.stream}:{read.seq}" for table, read in rows.read.items()},
            rate=self._decisions.admit(request_id),
            tip=Tip(variant=variant, context=context, deadline=deadline, reasons=problems),
        )

    async def answer(self, making: Making) -> bytes:
        """Makes the tip and returns the answer's JSON; a cancelled caller's model is asked no longer."""
        try:
            await self._writer.write(making.tip)
        except asyncio.CancelledError:
            self._abandon(making)
            raise
        return self._finish(making)

    async def stream(self, making: Making) -> AsyncGenerator[Event, None]:
        """Makes the tip and tells it as it comes; closing the generator leaves the model."""
        try:
            async with contextlib.aclosing(self._writer.stream(making.tip)) as parts:
                async for part in parts:
                    yield _event("replace", tip=part.text) if part.is_whole else _event("tip", delta=part.text)
        except (asyncio.CancelledError, GeneratorExit):
            self._abandon(making)
            raise
        yield Event(name="done", data=self._finish(making))

    def _fetch(self, user_id: str) -> tuple[UserRows, list[str]]:
        """Reads the user's rows; without a readable store there are none, and the answer says so."""
        try:
            return self._rows.fetch(user_id, ROW_TYPES), []
        except StoreError as error:
            self._row_problems.note(error)
            return NO_ROWS, ["state_unreadable"]

    def _abandon(self, making: Making) -> None:
        """Logs an answer whose client has left; what its model took is an upper bound."""
        making.tip.reasons.append("client_left")
        self._log(making, time.monotonic() - making.began, is_abandoned=True)

    def _finish(self, making: Making) -> bytes:
        """Logs the answer, if it was admitted, and encodes it."""
        tip, latency_s = making.tip, time.monotonic() - making.began
        answer = GenerateAnswer(
            request_id=making.request_id,
            tip_id=making.tip_id,
            tip=tip.text,
            prompt_version=tip.variant.version,
            model=tip.model,
            usage=_usage(tip),
            usage_estimated=tip.usage_estimated,
            cost_usd=tip.cost_usd,
            cached=tip.cached,
            fallback=tip.fallback,
            degraded_reason=tip.degraded_reason,
            logged=self._log(making, latency_s, is_abandoned=False),
        )
        self._observe(tip, latency_s)
        return encode_json(attrs.asdict(answer))

    def _log(self, making: Making, latency_s: float, *, is_abandoned: bool) -> bool:
        if making.rate is None:
            return False
        tip = making.tip
        decided = GenerateDecided(
            request_id=making.request_id,
            user_id=making.asked.user_id,
            tip_id=making.tip_id,
            prompt_version=tip.variant.version,
            prompt_hash=tip.variant.content_hash,
            selection=making.selected.source,
            propensity=making.selected.propensity,
            model=tip.model if tip.text else None,
            usage=_usage(tip),
            usage_estimated=tip.usage_estimated,
            cost_usd=tip.cost_usd,
            latency_ms=1000 * latency_s,
            cached=tip.cached,
            fallback=tip.fallback,
            degraded_reason=tip.degraded_reason,
            failed_checks=tuple(tip.failed_checks),
            is_abandoned=is_abandoned,
            rows=dict(making.read),
            sample_rate=making.rate,
            occurred_at=making.now,
        )
        return self._decisions.write(GENERATE_SUBJECT, encode_json(decided))


_decode = decoder_for(GenerateRequest)


def _usage(tip: Tip) -> TokenUsage | None:
    if tip.usage is None:
        return None
    return TokenUsage(prompt_tokens=tip.usage.prompt_tokens, completion_tokens=tip.usage.completion_tokens)


def _event(name: Literal["tip", "replace"], **data: str) -> Event:
    return Event(name=name, data=encode_json(data))
