"""What /metrics says: every listed metric, its labels, and what a scrape reads from the worker's health."""

from collections.abc import Awaitable, Callable

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import METRICS, Metrics, MetricSpec
from app.views.metrics import metrics_routes
from models.scoring import UNKNOWN_EVERY
from streams.health import ConsumerHealth, DecisionHealth, HandlerCounts, Health, NatsHealth, StateHealth

HEALTHY = Health(
    status="ok",
    reasons=[],
    nats=NatsHealth(
        enabled=True,
        mode="embedded",
        connected=True,
        rtt_ms=1.5,
        unhandled=11,
        consumers={
            "d-signals": ConsumerHealth(
                pending=5,
                ack_pending=6,
                redelivered=7,
                parked=4,
                lag_s=0.5,
                handlers={
                    "task_synced": HandlerCounts(processed=8, errors=9, dead_lettered=10),
                    "tip_feedback": HandlerCounts(processed=1),
                },
            )
        },
    ),
    state=StateHealth(),
    decisions=DecisionHealth(
        rate=0.25,
        buffered=12,
        spooled=13,
        spool_bytes=14,
        published=15,
        sampled_out=16,
        dropped={"full": 17, "torn": 0},
    ),
)


SHOWN = [
    (("tipstream_messages_processed_total", "d-signals", "task_synced"), 8),
    (("tipstream_messages_processed_total", "d-signals", "tip_feedback"), 1),
    (("tipstream_handler_errors_total", "d-signals", "task_synced"), 9),
    (("tipstream_dead_letters_total", "d-signals", "task_synced"), 10),
    (("tipstream_consumer_pending", "d-signals"), 5),
    (("tipstream_consumer_ack_pending", "d-signals"), 6),
    (("tipstream_consumer_redelivered", "d-signals"), 7),
    (("tipstream_consumer_parked", "d-signals"), 4),
    (("tipstream_consumer_lag_seconds", "d-signals"), 0.5),
    (("tipstream_nats_connected",), 1),
    (("tipstream_nats_rtt_seconds",), 1.5 / 1000),
    (("tipstream_unhandled_messages",), 11),
    (("tipstream_decisions_published_total",), 15),
    (("tipstream_decisions_dropped_total", "full"), 17),
    (("tipstream_decisions_dropped_total", "torn"), 0),
    (("tipstream_decisions_sampled_out_total",), 16),
    (("tipstream_decisions_buffered",), 12),
    (("tipstream_decisions_spool_bytes",), 14),
    (("tipstream_decisions_rate",), 0.25),
    (("tipstream_up_status", "ok"), 1),
    (("tipstream_up_status", "degraded"), 0),
    (("tipstream_up_status", "down"), 0),
]


@attrs.define(kw_only=True)
class FakeSource:
    """A worker whose health can be changed."""

    now: Health = HEALTHY

    def health(self) -> Health:
        """What it is now."""
        return self.now


def families(metrics: Metrics) -> dict[str, Metric]:
    """What a Prometheus server would understand, by name."""
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(metrics).values()
        for sample in family.samples
    }


@pytest.mark.parametrize(("sample", "value"), SHOWN, ids=["-".join(sample) for sample, _ in SHOWN])
def test_metrics_show_the_health_of_the_moment(sample: tuple[str, ...], value: float) -> None:
    """Each fact of /health has its sample."""
    assert samples(Metrics(FakeSource()))[sample] == value


def test_metrics_follow_the_health() -> None:
    """A scrape reads the worker anew; nothing is remembered."""
    source = FakeSource()
    metrics = Metrics(source)
    before = samples(metrics)
    source.now = Health(
        status="down",
        reasons=["gone"],
        nats=NatsHealth(enabled=True, mode="embedded", connected=False),
        state=StateHealth(),
    )
    after = samples(metrics)
    assert (before[("tipstream_up_status", "down")], after[("tipstream_up_status", "down")]) == (0, 1)
    assert after[("tipstream_nats_connected",)] == 0
    assert ("tipstream_consumer_pending", "d-signals") not in after


def test_metrics_leave_out_what_is_unknown() -> None:
    """Without an answer of the server there is no round trip, and without a message no lag: absent, never 0."""
    nats = attrs.evolve(HEALTHY.nats, rtt_ms=None, consumers={"d": ConsumerHealth()})
    shown = samples(Metrics(FakeSource(now=attrs.evolve(HEALTHY, nats=nats))))
    assert ("tipstream_nats_rtt_seconds",) not in shown
    assert ("tipstream_consumer_lag_seconds", "d") not in shown
    assert shown[("tipstream_consumer_pending", "d")] == 0


def test_commits_are_counted_with_their_outcomes() -> None:
    """Two commits of 3 and 4 outcomes are 2 commits, 7 outcomes and the sum of their times."""
    metrics = Metrics(FakeSource())
    metrics.observe_commit(3, 0.25)
    metrics.observe_commit(4, 0.5)
    shown = samples(metrics)
    assert shown[("tipstream_commit_outcomes_total",)] == 3 + 4
    assert shown[("tipstream_commit_seconds_count",)] == 2
    assert shown[("tipstream_commit_seconds_sum",)] == 0.25 + 0.5


def test_unknown_candidate_features_are_counted_by_name() -> None:
    """A family of their own, which says how few of the requests it was made of."""
    metrics = Metrics(FakeSource())
    for label in ("mood", "mood", "other"):
        metrics.count_unknown_candidate_feature(label)
    shown = samples(metrics)
    assert shown[("tipstream_candidate_features_unknown_total", "mood")] == 2
    assert shown[("tipstream_candidate_features_unknown_total", "other")] == 1
    assert f"in one of {UNKNOWN_EVERY} requests that have any" in metrics.render().decode()


def test_profile_features_are_counted_by_name() -> None:
    """Two requests with an unknown feature, and one with a value outside of its range."""
    metrics = Metrics(FakeSource())
    for label in ("mood", "mood", "other"):
        metrics.count_unknown_feature(label)
    metrics.count_outside_feature("preferred_hour")
    shown = samples(metrics)
    assert shown[("tipstream_profile_features_unknown_total", "mood")] == 2
    assert shown[("tipstream_profile_features_unknown_total", "other")] == 1
    assert shown[("tipstream_profile_features_outside_total", "preferred_hour")] == 1


def test_degraded_scores_are_counted_by_reason() -> None:
    """What the scoring has counted, which HTTP calls successes all the same."""
    metrics = Metrics(FakeSource())
    metrics.show_degraded_scores(lambda: {"deadline": 2, "no_model": 1})
    shown = samples(metrics)
    assert shown[("tipstream_scores_degraded_total", "deadline")] == 2
    assert shown[("tipstream_scores_degraded_total", "no_model")] == 1


@pytest.mark.parametrize(
    ("method", "label"), [("GET", "GET"), ("PROPFIND", "other"), ("get", "other")], ids=["usual", "unusual", "made-up"]
)
def test_requests_are_counted_under_bounded_methods(method: str, label: str) -> None:
    """A method that no view takes can't make a label of its own."""
    metrics = Metrics(FakeSource())
    metrics.observe_request(method=method, route="/health", status=200, duration_s=0.5)
    assert samples(metrics)[("tipstream_http_request_seconds_count", label, "/health", "200")] == 1


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_metric_is_exposed_as_listed(spec: MetricSpec) -> None:
    """A listed metric is exposed with its kind, labels and help, and the help tells the unit."""
    metrics = Metrics(FakeSource())
    metrics.observe_request(method="GET", route="/health", status=200, duration_s=0.5)
    family = families(metrics)[spec.name.removesuffix("_total")]
    assert (family.type, family.documentation) == (spec.kind, spec.help)
    assert spec.help.endswith("]")
    assert all(set(sample.labels) - {"le"} == set(spec.labels) for sample in family.samples)


def test_metrics_list_is_complete() -> None:
    """Nothing of ours is exposed that the list does not have; the process's own metrics are there too."""
    metrics = Metrics(FakeSource())
    names = {name for name in families(metrics) if not name.endswith("_created")}
    ours = {name for name in names if name.startswith("tipstream_")}
    assert ours == {spec.name.removesuffix("_total") for spec in METRICS}
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= names - ours


def test_metrics_of_two_workers_do_not_mix() -> None:
    """Each worker has a registry of its own, so that two fit in one process."""
    one, other = Metrics(FakeSource()), Metrics(FakeSource())
    one.observe_commit(1, 0.5)
    assert samples(other)[("tipstream_commit_outcomes_total",)] == 0


async def test_metrics_route_answers_the_text_format(
    aiohttp_client: Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]],
) -> None:
    """The content type is that of Prometheus' text format, whatever is asked for."""
    app = web.Application()
    app.add_routes(metrics_routes(Metrics(FakeSource())))
    client = await aiohttp_client(app)
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=x"})
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "tipstream_nats_connected 1.0" in await response.text()
