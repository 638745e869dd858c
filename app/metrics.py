"""What a Prometheus server may ask of this process.

This module owns the names, labels and units of every metric, listed in ``METRICS``; next to them stand the usual
``process_*`` metrics of prometheus_client. Labels take declared values only (route templates, handlers, durables,
statuses), never a key, path or id; the one exception, names of unknown features, is bounded where they are noted
(models/profile_reader.py). What the worker knows is read at each scrape from its health, so that both always say the
same; only requests, their features and commits are counted here. The route is app/views/metrics.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, get_args

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.views.health import HealthSource
from prompts.ledger import ModelTokens
from prompts.tips import Tip
from streams.health import ConsumerHealth, DecisionHealth, HandlerCounts, Health, Status


@attrs.frozen(kw_only=True)
class MetricSpec:
    """A metric as it is exposed; ``help`` ends with the unit in brackets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


def _counter(name: str, help_text: str, *, labels: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name=name, kind="counter", labels=labels, help=help_text)


def _gauge(name: str, help_text: str, *, labels: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name=name, kind="gauge", labels=labels, help=help_text)


def _times(name: str, help_text: str, *, labels: tuple[str, ...] = ()) -> MetricSpec:
    return MetricSpec(name=name, kind="histogram", labels=labels, help=help_text)


_HANDLER = ("consumer", "handler")
_CONSUMER = ("consumer",)

HTTP_REQUEST = _times(
    "tipstream_http_request_seconds",
    "Time from a request's arrival to its answer, by route template [seconds]",
    labels=("method", "route", "status"),
)
COMMIT_SECONDS = _times("tipstream_commit_seconds", "Time of one group commit [seconds]")
COMMIT_OUTCOMES = _counter("tipstream_commit_outcomes_total", "Outcomes made durable by group commits [outcomes]")
PROCESSED = _counter(
    "tipstream_messages_processed_total", "Messages applied by this process [messages]", labels=_HANDLER
)
ERRORS = _counter("tipstream_handler_errors_total", "Failed attempts of a handler [attempts]", labels=_HANDLER)
DEAD_LETTERS = _counter("tipstream_dead_letters_total", "Messages given up as dead letters [messages]", labels=_HANDLER)
PENDING = _gauge("tipstream_consumer_pending", "Messages that were not delivered yet [messages]", labels=_CONSUMER)
ACK_PENDING = _gauge("tipstream_consumer_ack_pending", "Messages delivered, not acked [messages]", labels=_CONSUMER)
REDELIVERED = _gauge(
    "tipstream_consumer_redelivered", "Unacked messages that were delivered again [messages]", labels=_CONSUMER
)
PARKED = _gauge(
    "tipstream_consumer_parked", "Messages that wait in the store to run again [messages]", labels=_CONSUMER
)
LAG = _gauge("tipstream_consumer_lag_seconds", "How far a consumer is behind its stream [seconds]", labels=_CONSUMER)
CONNECTED = _gauge("tipstream_nats_connected", "Whether NATS is connected [0 or 1]")
RTT = _gauge("tipstream_nats_rtt_seconds", "Round trip to the NATS server; absent without an answer [seconds]")
UNHANDLED = _gauge("tipstream_unhandled_messages", "Messages in the streams that no handler matches [messages]")
PROFILE_UNKNOWN = _counter(
    "tipstream_profile_features_unknown_total",
    "Profile features of requests that the contract lacks; after 50 names: other [features]",
    labels=("feature",),
)
PROFILE_OUTSIDE = _counter(
    "tipstream_profile_features_outside_total",
    "Profile features of requests outside of their range, used as sent [features]",
    labels=("feature",),
)
CANDIDATE_UNKNOWN = _counter(
    "tipstream_candidate_features_unknown_total",
    "Undeclared candidate features, looked at in one of 61 requests that have any; after 50 names: other [features]",
    labels=("feature",),
)
SCORES_DEGRADED = _counter(
    "tipstream_scores_degraded_total",
    "Answers of /score that are less than they could be, by reason [answers]",
    labels=("reason",),
)
DECISIONS_PUBLISHED = _counter("tipstream_decisions_published_total", "Decisions stored by JetStream [decisions]")
DECISIONS_DROPPED = _counter("tipstream_decisions_dropped_total", "Decisions lost [decisions]", labels=("reason",))
DECISIONS_SAMPLED = _counter(
    "tipstream_decisions_sampled_out_total", "Decisions that were not logged, to relieve the log [decisions]"
)
DECISIONS_BUFFERED = _gauge("tipstream_decisions_buffered", "Decisions in memory, to be stored [decisions]")
DECISIONS_SPOOL = _gauge("tipstream_decisions_spool_bytes", "Size of the files in which decisions wait [bytes]")
DECISIONS_RATE = _gauge("tipstream_decisions_rate", "Share of the decisions that is logged at the moment [ratio]")
GENERATIONS = _counter(
    "tipstream_generations_total",
    "Tips that were answered, by prompt variant and by what took the place of the asked model [tips]",
    labels=("version", "fallback"),
)
GENERATION_SECONDS = _times(
    "tipstream_generation_seconds", "Time from a request to its tip, by what made it [seconds]", labels=("fallback",)
)
FAILED_CHECKS = _counter(
    "tipstream_failed_checks_total", "Checks that texts of models did not pass [checks]", labels=("version", "check")
)
TOKENS = _counter(
    "tipstream_llm_tokens_total",
    "Tokens of models: counted ones exactly, others at most so many [tokens]",
    labels=("model", "kind", "counted"),
)
UP_STATUS = _gauge("tipstream_up_status", "1 for the status that /health has now [0 or 1]", labels=("status",))

METRICS: tuple[MetricSpec, ...] = (
    *(HTTP_REQUEST, COMMIT_SECONDS, COMMIT_OUTCOMES),
    *(PROCESSED, ERRORS, DEAD_LETTERS),
    *(PENDING, ACK_PENDING, REDELIVERED, PARKED, LAG),
    *(DECISIONS_PUBLISHED, DECISIONS_DROPPED, DECISIONS_SAMPLED, DECISIONS_BUFFERED, DECISIONS_SPOOL, DECISIONS_RATE),
    *(CONNECTED, RTT, UNHANDLED, UP_STATUS),
    *(PROFILE_UNKNOWN, PROFILE_OUTSIDE, CANDIDATE_UNKNOWN, SCORES_DEGRADED),
    *(GENERATIONS, GENERATION_SECONDS, FAILED_CHECKS, TOKENS),
)

_OF_HANDLER: Mapping[MetricSpec, Callable[[HandlerCounts], float]] = {
    PROCESSED: lambda counts: counts.processed,
    ERRORS: lambda counts: counts.errors,
    DEAD_LETTERS: lambda counts: counts.dead_lettered,
}
_OF_CONSUMER: Mapping[MetricSpec, Callable[[ConsumerHealth], float | None]] = {
    PENDING: lambda consumer: consumer.pending,
    ACK_PENDING: lambda consumer: consumer.ack_pending,
    REDELIVERED: lambda consumer: consumer.redelivered,
    PARKED: lambda consumer: consumer.parked,
    LAG: lambda consumer: consumer.lag_s,
}

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_GENERATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """The process's metrics, in a registry of their own; safe to use from any thread."""

    def __init__(self, source: HealthSource) -> None:
        self._registry = CollectorRegistry()
        self._requests = _histogram(HTTP_REQUEST, _REQUEST_BUCKETS_S, self._registry)
        self._known_requests: dict[tuple[str, str, int], Histogram] = {}
        self._commits = _histogram(COMMIT_SECONDS, _COMMIT_BUCKETS_S, self._registry)
        self._outcomes = Counter(COMMIT_OUTCOMES.name, COMMIT_OUTCOMES.help, registry=self._registry)
        self._unknown = _labelled(PROFILE_UNKNOWN, self._registry)
        self._outside = _labelled(PROFILE_OUTSIDE, self._registry)
        self._unknown_of_candidates = _labelled(CANDIDATE_UNKNOWN, self._registry)
        self._generations = Counter(GENERATIONS.name, GENERATIONS.help, GENERATIONS.labels, registry=self._registry)
        self._generation_seconds = _histogram(GENERATION_SECONDS, _GENERATION_BUCKETS_S, self._registry)
        self._failed_checks = Counter(
            FAILED_CHECKS.name, FAILED_CHECKS.help, FAILED_CHECKS.labels, registry=self._registry
        )
        self._tokens = _TokenCollector()
        self._registry.register(self._tokens)
        self._degraded = _DegradedCollector()
        self._registry.register(self._degraded)
        self._registry.register(_HealthCollector(source))
        ProcessCollector(registry=self._registry)

    def observe_request(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Takes note of an answered request; ``route`` is a template, and a method out of the ordinary is "other"."""
        key = (method, route, status)
        histogram = self._known_requests.get(key)
        if histogram is None:
            histogram = self._requests.labels(method if method in _METHODS else "other", route, str(status))
            if method in _METHODS:
                self._known_requests[key] = histogram
        histogram.observe(duration_s)

    def observe_commit(self, outcome_count: int, duration_s: float) -> None:
        """Takes note of a group commit that succeeded."""
        self._commits.observe(duration_s)
        self._outcomes.inc(outcome_count)

    def count_unknown_feature(self, label: str) -> None:
        """Takes note of a profile feature that the contract lacks, by a label of ``UnknownFeatures``."""
        self._unknown.labels(label).inc()

    def count_outside_feature(self, name: str) -> None:
        """Takes note of a profile feature, one of the contract, whose value is outside of its range."""
        self._outside.labels(name).inc()

    def count_unknown_candidate_feature(self, label: str) -> None:
        """Takes note of a candidate's feature that is not declared, by a label of ``UnknownFeatures``."""
        self._unknown_of_candidates.labels(label).inc()

    def observe_generation(self, tip: Tip, duration_s: float) -> None:
        """Takes note of a tip that was answered."""
        version = tip.variant.version
        self._generations.labels(version, tip.fallback).inc()
        self._generation_seconds.labels(tip.fallback).observe(duration_s)
        for check in tip.failed_checks:
            self._failed_checks.labels(version, check).inc()

    def show_tokens(self, source: Callable[[], Mapping[str, ModelTokens]]) -> None:
        """Shows what a ledger of tokens says, read at each scrape."""
        self._tokens.source = source

    def show_degraded_scores(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Shows how many answers of ``/score`` are degraded, by reason, read at each scrape; to HTTP they are ok."""
        self._degraded.source = source

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)


class _TokenCollector(Collector):
    """Reads the ledger of tokens once a scrape."""

    def __init__(self) -> None:
        self.source: Callable[[], Mapping[str, ModelTokens]] = dict

    def collect(self) -> Iterable[Metric]:
        """Tokens by model; those of calls without a count are the most that they can have been."""
        samples = [
            ((model, kind, counted), getattr(usage, f"{kind}_tokens"))
            for model, tokens in self.source().items()
            for counted, usage in (("yes", tokens.exact), ("no", tokens.most))
            for kind in ("prompt", "completion")
        ]
        yield _family(TOKENS, samples)


class _DegradedCollector(Collector):
    """Reads the counts of degraded scores once a scrape."""

    def __init__(self) -> None:
        self.source: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterable[Metric]:
        """Answers by reason."""
        yield _family(SCORES_DEGRADED, (((reason,), count) for reason, count in self.source().items()))


class _HealthCollector(Collector):
    """Reads the worker's health once a scrape."""

    def __init__(self, source: HealthSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """The metrics behind ``/health``, all of one moment."""
        return _health_metrics(self._source.health())


def _health_metrics(health: Health) -> Iterator[Metric]:
    consumers = health.nats.consumers
    counts = [
        ((durable, name), counts)
        for durable, consumer in consumers.items()
        for name, counts in consumer.handlers.items()
    ]
    for spec, count_of in _OF_HANDLER.items():
        yield _family(spec, ((labels, count_of(of_handler)) for labels, of_handler in counts))
    for spec, value_of in _OF_CONSUMER.items():
        yield _family(spec, (((durable,), value_of(consumer)) for durable, consumer in consumers.items()))
    yield from _decision_metrics(health.decisions)
    rtt_ms = health.nats.rtt_ms
    yield _family(CONNECTED, [((), health.nats.connected)])
    yield _family(RTT, [((), None if rtt_ms is None else rtt_ms / 1000)])
    yield _family(UNHANDLED, [((), health.nats.unhandled)])
    yield _family(UP_STATUS, (((status,), health.status == status) for status in get_args(Status)))


def _decision_metrics(decisions: DecisionHealth) -> Iterator[Metric]:
    yield _family(DECISIONS_PUBLISHED, [((), decisions.published)])
    yield _family(DECISIONS_DROPPED, (((reason,), count) for reason, count in decisions.dropped.items()))
    yield _family(DECISIONS_SAMPLED, [((), decisions.sampled_out)])
    yield _family(DECISIONS_BUFFERED, [((), decisions.buffered)])
    yield _family(DECISIONS_SPOOL, [((), decisions.spool_bytes)])
    yield _family(DECISIONS_RATE, [((), decisions.rate)])


def _family(spec: MetricSpec, samples: Iterable[tuple[tuple[str, ...], float | None]]) -> Metric:
    """Fills a metric; a value that is not known has no sample."""
    make = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, float(value))
    return family


def _histogram(spec: MetricSpec, buckets_s: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(spec.name, spec.help, spec.labels, buckets=buckets_s, registry=registry)


def _labelled(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    return Counter(spec.name, spec.help, spec.labels, registry=registry)
