"""What counts say of prompt variants: intervals, quantiles, and the report."""

import datetime as dt
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rewards import (
    BOUNDS_MS,
    Interval,
    RewardReport,
    bucket_of,
    confidence_sequence,
    day_key,
    latency_quantile_ms,
    make_report,
)
from models.rows import PromptDay, RewardDay

ALPHA = 0.05
LOOKS = 200
DAY = "2026-03-01"


@pytest.fixture(scope="module")
def intervals() -> dict[tuple[int, int], Interval]:
    """The interval of every count of yes in up to so many trials."""
    places = ((yes, trials) for trials in range(1, LOOKS + 1) for yes in range(trials + 1))
    return {place: confidence_sequence(*place, alpha=ALPHA) for place in places}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.8, 0.99])
def test_confidence_sequence_seldom_misses_at_any_look(
    intervals: dict[tuple[int, int], Interval], share: float
) -> None:
    """Looked at after every trial, it ever misses the truth with a probability of at most 5 %, computed exactly."""
    unmissed = {0: 1.0}
    for trials in range(1, LOOKS + 1):
        moved: dict[int, float] = {}
        for yes, chance in unmissed.items():
            moved[yes + 1] = moved.get(yes + 1, 0.0) + chance * share
            moved[yes] = moved.get(yes, 0.0) + chance * (1 - share)
        found = ((yes, chance, intervals[yes, trials]) for yes, chance in moved.items())
        unmissed = {yes: chance for yes, chance, one in found if one.low <= share <= one.high}
    assert 0.95 <= sum(unmissed.values()) < 0.999  # 0.999: it is not so wide that it says nothing


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_confidence_sequence_has_the_share_that_was_seen(successes: int, failures: int) -> None:
    """The seen share lies inside, the ends lie within 0 and 1, and yes and no may be swapped."""
    trials = successes + failures
    one, other = (confidence_sequence(count, trials, alpha=ALPHA) for count in (successes, failures))
    assert 0 <= one.low <= (successes / trials if trials else 0.5) <= one.high <= 1
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


def test_confidence_sequence_narrows_with_trials_and_widens_with_confidence() -> None:
    """More trials say more, and less risk says less; without any trial nothing is ruled out."""
    assert confidence_sequence(0, 0, alpha=ALPHA) == Interval(0.0, 1.0)
    widths = [
        one.high - one.low for n in (10, 100, 1000, 100_000) for one in [confidence_sequence(n // 5, n, alpha=ALPHA)]
    ]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.02
    strict = confidence_sequence(20, 100, alpha=ALPHA / 10)
    assert strict.high - strict.low > widths[1]


def test_confidence_sequence_is_the_martingale_of_its_source() -> None:
    """Two yes: B(5/2, 1/2) / B(1/2, 1/2) = 3/8, so shares p with 3/8 / p² >= 20 are ruled out."""
    found = confidence_sequence(2, 2, alpha=ALPHA)
    assert (found.low, found.high) == (pytest.approx((3 / 8 / 20) ** 0.5), 1.0)


@settings(deadline=None)
@given(st.floats(0, 86_400_000))
def test_bucket_of_is_the_first_bound_not_below(latency_ms: float) -> None:
    """Every latency has one bucket, and the row has a field for it."""
    bucket = bucket_of(latency_ms)
    high = next((bound for bound in BOUNDS_MS if bound >= latency_ms), None)
    assert bucket == (f"le_{high}" if high else "le_more")
    assert getattr(PromptDay(**{bucket: 1}), bucket) == 1


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        pytest.param({}, 0.5, None, id="none"),
        pytest.param({"le_100": 10}, 0.5, 75.0, id="middle-of-50-to-100"),
        pytest.param({"le_10": 1, "le_20": 1}, 0.5, 10.0, id="end-of-a-bucket"),
        pytest.param({"le_10": 90, "le_500": 10}, 0.95, 350.0, id="half-of-200-to-500"),
        pytest.param({"le_more": 3}, 0.5, 20_000.0, id="beyond-the-last-bound"),
    ],
)
def test_latency_quantile_lies_in_its_bucket(counts: dict[str, int], share: float, expected: float | None) -> None:
    """It is where the share would be if the bucket were filled evenly."""
    assert latency_quantile_ms(PromptDay(**counts), share) == expected


def answers(count: int, *, weight: int = 1000, **fields: int) -> PromptDay:
    """So many answers that stand for ``weight`` thousandths each."""
    return PromptDay(impressions=count, impression_thousandths=count * weight, **fields)


def rewards(count: int, accepted: int) -> RewardDay:
    """So many rewards, of which those accepted are 1 and the others 0."""
    return RewardDay(count=count, accepted=accepted, reward_millionths=accepted * 1_000_000)


def report_of(
    shown: dict[str, PromptDay], rewarded: dict[str, RewardDay], *, reward_count: int | None = None
) -> RewardReport:
    """The report of one day, by version."""
    total = sum(row.count for row in rewarded.values()) if reward_count is None else reward_count
    prompt_days, reward_days = ({f"{DAY}/{v}": row for v, row in rows.items()} for rows in (shown, rewarded))
    return make_report(prompt_days, reward_days, reward_count=total)  # type: ignore[arg-type]  # each is of its kind


def test_report_names_the_best_variant_when_the_intervals_are_apart() -> None:
    """The best comes first, with its share of impressions."""
    shown = {version: answers(3000) for version in ("v1", "v2", "v3")}
    report = report_of(shown, {"v1": rewards(900, 600), "v2": rewards(800, 750), "v3": rewards(1100, 1050)})
    assert (report.best, report.is_apart, report.denominator) == ("v3", True, "impressions")
    assert [one.acceptance for one in report.variants] == [0.35, 0.25, 0.2]  # 1050, 750, 600 of 3000
    assert report.summary.startswith("v3 is best: 35.0% of 3000 impressions accepted (between ")


def test_report_intervals_hold_all_at_once() -> None:
    """Of k variants each is given a k-th of the risk."""
    shown = {version: answers(100) for version in ("v1", "v2")}
    report = report_of(shown, {"v1": rewards(30, 20), "v2": rewards(30, 21)})
    assert report.variants[0].interval == confidence_sequence(21, 100, alpha=(1 - 0.95) / 2)
    assert not report.is_apart
    assert report.summary.endswith("its interval overlaps with v1: undecided yet.")


def test_report_of_one_variant_compares_it_with_none() -> None:
    """A single variant is neither best nor apart."""
    report = report_of({"v1": answers(10)}, {"v1": rewards(5, 5)})
    assert (report.best, report.is_apart) == ("v1", False)
    assert report.summary.startswith("v1 is the only variant: 50.0% of 10 impressions accepted")


def test_report_of_nothing_says_so() -> None:
    """Without counts there is no best one, and it is no error."""
    report = make_report({}, {}, reward_count=0)
    assert (report.best, report.is_apart, report.variants) == (None, False, ())
    assert report.summary == "There is nothing to go by: no impressions and no rewards of any variant."


def test_report_without_impressions_is_of_rewards() -> None:
    """Where answers were not logged acceptance is a share of rewards, for every variant."""
    report = report_of({"v1": answers(3)}, {"v1": rewards(10, 5), "v2": rewards(4, 1)})
    assert report.denominator == "rewards"
    assert [(one.version, one.trials, one.acceptance) for one in report.variants] == [("v1", 10, 0.5), ("v2", 4, 0.25)]


def test_report_of_a_variant_with_more_rewards_than_impressions_takes_the_rewards() -> None:
    """No acceptance is above 1: a reward stands for an impression that the log lacks."""
    report = report_of({"v1": answers(100), "old": answers(1)}, {"v1": rewards(10, 5), "old": rewards(2, 2)})
    old = report.variants[0]
    assert (report.denominator, old.version, old.trials, old.acceptance) == ("impressions", "old", 2, 1.0)


def test_report_scales_what_was_sampled() -> None:
    """At a rate of 0.1 an answer stands for ten, also in what was paid; it is marked as an estimate."""
    shown = {"v1": answers(10, weight=10_000, priced=10, cost_micro_usd=5_000)}
    [one] = report_of(shown, {"v1": rewards(50, 25)}).variants
    assert (one.impressions, one.trials, one.is_estimated) == (100, 100, True)  # 10 of them stand for 100
    assert one.cost_usd == pytest.approx(0.05)  # 0.005 for 10
    assert one.cost_per_accepted_usd == pytest.approx(0.002)  # 0.05 / 25


def test_report_without_known_costs_has_none() -> None:
    """An unknown cost is not 0, and nothing accepted has no cost each."""
    unknown, free = report_of(
        {"a": answers(10), "b": answers(10, priced=10)}, {"a": rewards(2, 1), "b": rewards(1, 0)}
    ).variants
    assert (unknown.cost_usd, unknown.cost_per_accepted_usd) == (None, None)
    assert (free.cost_usd, free.cost_per_accepted_usd) == (0.0, None)


def test_report_counts_rewards_that_name_no_variant() -> None:
    """They are told apart from those that do."""
    assert report_of({}, {"v1": rewards(2, 1)}, reward_count=5).unattributed == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["v1", "a/b", "v3"]), st.integers(0, 6), st.integers(1, 9)), max_size=12))
def test_report_adds_the_days_of_a_version_up(facts: list[tuple[str, int, int]]) -> None:
    """The sum of all days counts, whatever the version is called and however the days are ordered."""
    days = {day_key(dt.date(2026, 3, 1 + day), version): count for version, day, count in facts}
    wanted = {
        version: sum(days[key] for key in keys)
        for version, keys in itertools.groupby(sorted(days, key=lambda key: key[11:]), key=lambda key: key[11:])
    }
    report = make_report({key: answers(count) for key, count in days.items()}, {}, reward_count=0)
    assert {one.version: one.impressions for one in report.variants} == wanted


def test_report_lets_a_version_that_was_never_answered_with_decide_nothing() -> None:
    """A slip in a reward's version makes no variant, no winner and no other denominator."""
    days = {"2026-03-01/v1": answers(100), "2026-03-01/v2": answers(100)}
    given = {"2026-03-01/v1": rewards(50, 30), "2026-03-01/v2": rewards(50, 20), "2026-03-01/V2": rewards(500, 500)}
    report = make_report(days, given, reward_count=600)
    assert [one.version for one in report.variants] == ["v1", "v2"]
    assert (report.best, report.denominator, report.unattributed) == ("v1", "impressions", 500)
