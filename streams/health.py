"""What the worker knows of its own health, and how it is judged.

This module owns the records behind ``/health`` and the pure decisions from facts to ``ok``, ``degraded`` or ``down``.
It reads no clock and asks no server: streams/probe.py collects the facts once a second, app/views/health.py shows
the result.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

Status = Literal["ok", "degraded", "down"]
Mode = Literal["embedded", "external", "disabled"]
Role = Literal["owner", "standby", "shared"]


@attrs.frozen(kw_only=True)
class HandlerCounts:
    """What one handler did in this process: applied messages, failed attempts, dead letters."""

    processed: int = 0
    errors: int = 0
    dead_lettered: int = 0


@attrs.frozen(kw_only=True)
class ConsumerHealth:
    """One durable consumer. Counts are of this process; ``pending`` to ``redelivered`` are the server's."""

    last_msg_ts: dt.datetime | None = None
    processed: int = 0
    errors: int = 0
    dead_lettered: int = 0
    parked: int = 0
    pending: int = 0
    ack_pending: int = 0
    redelivered: int = 0
    lag_s: float | None = None
    role: Role = "owner"
    status: Status = "ok"
    reason: str | None = None
    handlers: dict[str, HandlerCounts] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class NatsHealth:
    """The connection and its consumers by durable name; ``rtt_ms`` is None while the server does not answer."""

    enabled: bool
    mode: Mode
    connected: bool
    rtt_ms: float | None = None
    unhandled: int = 0
    consumers: dict[str, ConsumerHealth] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class StateHealth:
    """The store: ok while commits succeed."""

    status: Status = "ok"
    reason: str | None = None


@attrs.frozen(kw_only=True)
class ModelHealth:
    """The model that scores: ok while the version that should serve does."""

    name: str
    version: str | None = None
    is_simulated: bool | None = None
    status: Status = "ok"
    reason: str | None = None


@attrs.frozen(kw_only=True)
class DecisionHealth:
    """The decision log. Counts are of this process.

    Args:
        rate: the share of decisions that is logged at the moment; 0 when NATS is disabled.
        buffered: decisions in memory, on their way to their stream.
        spooled: decisions in files, until NATS takes them.
        dropped: decisions that are lost, by reason.
    """

    status: Status = "ok"
    reason: str | None = None
    rate: float = 0.0
    buffered: int = 0
    spooled: int = 0
    spool_bytes: int = 0
    published: int = 0
    sampled_out: int = 0
    dropped: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class LlmHealth:
    """The calls of the LLM gateway.

    Args:
        open_models: failed lately and are left alone.
        refused_models: were refused many times in a row, each with what the gateway said last.
    """

    open_models: tuple[str, ...]
    refused_models: Mapping[str, str]
    running: int
    waiting: int


@attrs.frozen(kw_only=True)
class PromptHealth:
    """The prompt variants that are served, which of them answer a request that names none, and the LLM gateway."""

    versions: list[str]
    default: list[str]
    gateway: LlmHealth | None = None


@attrs.frozen(kw_only=True)
class Health:
    """The whole answer of ``/health``; ``reasons`` has one sentence for each thing that is not ok."""

    status: Status
    reasons: list[str]
    nats: NatsHealth
    state: StateHealth
    model: ModelHealth | None = None
    decisions: DecisionHealth = DecisionHealth()
    prompts: PromptHealth | None = None


@attrs.frozen(kw_only=True)
class ConsumerFacts:
    """What is known of a durable at one instant.

    Args:
        info_age_s: seconds since the server last answered for this durable; None when it never has.
        is_missing: the server says that there is no such durable.
        refused: why the durable may not be used by this store.
        detached: why no deliveries flow at the moment.
        intake_stopped: why no message is taken on purpose.
        unfinished: messages that wait on the server or are being handled.
        paused_until: until when somebody has paused the durable.
        idle_s: seconds since an outcome was committed, or since the attach.
        running_count: handlers that run within their time.
        overdue: handlers that run past it, and don't end although they were cancelled.
        drift: differences between the declared and the server's configuration, as text.
    """

    info_age_s: float | None
    is_missing: bool = False
    refused: str | None = None
    detached: str | None = None
    intake_stopped: str | None = None
    unfinished: int = 0
    paused_until: str | None = None
    idle_s: float = 0.0
    running_count: int = 0
    overdue: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DecisionFacts:
    """What the decision log knows of itself at one instant: what is shown, and what it is judged by.

    Args:
        is_enabled: decisions are logged; False when NATS is disabled.
        is_dropping: one was lost a short while ago.
        error: why the last attempt to publish, or to write the spool, failed.
    """

    is_enabled: bool = True
    is_connected: bool = True
    rate: float = 1.0
    buffered: int = 0
    spooled: int = 0
    spool_bytes: int = 0
    published: int = 0
    sampled_out: int = 0
    dropped: dict[str, int] = attrs.field(factory=dict)
    is_dropping: bool = False
    error: str | None = None


STALE_AFTER_S = 1.5
STALLED_AFTER_S = 1.5


def judge_consumer(facts: ConsumerFacts) -> tuple[Status, str | None]:
    """Judges one durable: ok when it works or has nothing to do, and was seen to be so under 1.5 s ago."""
    if facts.refused:
        return "down", facts.refused
    if facts.is_missing:
        return "down", "the durable is gone"
    if facts.detached:
        return "down", facts.detached
    if facts.info_age_s is None or facts.info_age_s > STALE_AFTER_S:
        return "down", "the server does not answer for it"
    if facts.paused_until:
        return "degraded", f"paused until {facts.paused_until}"
    if facts.intake_stopped:
        return "degraded", f"intake stopped: {facts.intake_stopped}"
    if facts.overdue:
        return "degraded", f"past its time and not to be cancelled: {', '.join(facts.overdue)}"
    if facts.unfinished and facts.idle_s > STALLED_AFTER_S and not facts.running_count:
        return "down", f"stalled: {facts.unfinished} messages wait and nothing happens"
    if facts.drift:
        return "degraded", f"the server's configuration differs ({'; '.join(facts.drift)}): see 'streams plan'"
    return "ok", None


def judge_decisions(facts: DecisionFacts) -> DecisionHealth:
    """Judges the decision log: degraded while decisions are lost, sampled, or wait on disk; no answer waits for it."""
    reasons = []
    if facts.is_enabled:
        if facts.is_dropping:
            losses = ", ".join(f"{reason} {count}" for reason, count in facts.dropped.items() if count)
            reasons.append(f"decisions are lost ({losses})")
        if facts.rate < 1:
            reasons.append(f"only {facts.rate:.0%} of the decisions are logged")
        if facts.spooled:
            why = facts.error or ("on their way" if facts.is_connected else "NATS does not answer")
            reasons.append(f"{facts.spooled} decisions wait on disk ({why})")
        elif facts.error:
            reasons.append(f"decisions can't be stored ({facts.error})")
    return DecisionHealth(
        status="degraded" if reasons else "ok",
        reason="; ".join(reasons) or None,
        rate=facts.rate if facts.is_enabled else 0.0,
        buffered=facts.buffered,
        spooled=facts.spooled,
        spool_bytes=facts.spool_bytes,
        published=facts.published,
        sampled_out=facts.sampled_out,
        dropped=facts.dropped,
    )


def with_decisions(health: Health, decisions: DecisionHealth) -> Health:
    """Adds how the decision log is."""
    more = (f"decision log: {decisions.reason}",) if decisions.reason else ()
    return attrs.evolve(with_reasons(health, more), decisions=decisions)


def judge(nats: NatsHealth, state: StateHealth, *, error: str | None, extra: tuple[str, ...] = ()) -> Health:
    """Judges the whole process.

    Args:
        error: what the connection to NATS last complained of.
        extra: further sentences on what is not as it should be.
    """
    reasons = [f"consumer {name}: {c.reason}" for name, c in nats.consumers.items() if c.reason]
    reasons.extend(extra)
    status: Status = "degraded" if reasons else "ok"
    if nats.enabled and not nats.connected:
        reasons.insert(0, "NATS does not answer" + (f" ({error})" if error else ""))
        status = "down"
    if state.status != "ok":
        reasons.append(f"state: {state.reason}")
        status = "down" if "down" in (state.status, status) else "degraded"
    consumers = nats.consumers.values()
    if consumers and all(consumer.status == "down" for consumer in consumers):
        status = "down"
    return Health(status=status, reasons=reasons, nats=nats, state=state)


def with_reasons(health: Health, more: Sequence[str]) -> Health:
    """Adds what is not as it should be; what was ok is degraded then."""
    if not more:
        return health
    status: Status = "degraded" if health.status == "ok" else health.status
    return attrs.evolve(health, status=status, reasons=[*health.reasons, *more])


def with_model(health: Health, model: ModelHealth | None) -> Health:
    """Adds the model; without the one that should serve, what was ok is degraded."""
    reasons = [f"model: {model.reason}"] if model and model.reason else []
    return with_reasons(attrs.evolve(health, model=model), reasons)
