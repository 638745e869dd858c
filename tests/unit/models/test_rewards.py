"""The report on prompt variants: shares with intervals that hold at every look, costs and latencies."""

import datetime as dt
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rewards import BOUNDS_MS, bucket_of, confidence_sequence, day_key, latency_quantile_ms, make_report
from models.rows import PromptDay, RewardDay

DAY = dt.date(2026, 3, 1)


def shown(count: int, **changes: int) -> PromptDay:
    """A day of so many logged answers."""
    return PromptDay(**{"impressions": count, "impression_thousandths": 1000 * count} | changes)


def rewarded(count: int, accepted: int) -> RewardDay:
    """A day of so many rewards."""
    return RewardDay(count=count, accepted=accepted, reward_millionths=accepted * 1_000_000)


def keyed(**days: object) -> dict[str, object]:
    """The counts of one day by version."""
    return {day_key(DAY, version): row for version, row in days.items()}


def test_interval_holds_at_every_look_at_once() -> None:
    """Looked at after each of 300 trials, the interval misses the truth at any time in at most 5 % of 400 runs."""
    rng, missed = random.Random(5), 0
    for run in range(400):
        share, successes = (0.1, 0.3, 0.5)[run % 3], 0
        for trials in range(1, 301):
            successes += rng.random() < share
            if trials % 10 == 0:  # the ends of the interval move little between two looks
                interval = confidence_sequence(successes, trials, alpha=0.05)
                if not interval.low <= share <= interval.high:
                    missed += 1
                    break
    assert missed <= 20  # 5 % of 400


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_what_was_seen(counts: tuple[int, int]) -> None:
    """It lies within 0 and 1, around the share that was seen, and is the mirror of that of the failures."""
    successes, trials = counts
    interval = confidence_sequence(successes, trials, alpha=0.05)
    assert 0 <= interval.low <= interval.high <= 1
    assert trials == 0 or interval.low <= successes / trials <= interval.high
    mirror = confidence_sequence(trials - successes, trials, alpha=0.05)
    assert (interval.low, interval.high) == pytest.approx((1 - mirror.high, 1 - mirror.low), abs=1e-9)


def test_interval_narrows_with_more_trials() -> None:
    """A hundred times the trials are worth a much narrower interval."""
    few, many = (confidence_sequence(30 * n, 100 * n, alpha=0.05) for n in (1, 100))
    assert many.high - many.low < (few.high - few.low) / 5


def test_best_is_named_when_its_interval_lies_above_all_others() -> None:
    """The summary says so in words, and variants stand in the order of their acceptance."""
    prompts = keyed(v1=shown(2000), v2=shown(2000), v3=shown(2000))
    rewards = keyed(v1=rewarded(500, 400), v2=rewarded(900, 800), v3=rewarded(500, 380))
    report = make_report(prompts, rewards, reward_count=1900)  # type: ignore[arg-type]  # rows by key
    assert [one.version for one in report.variants] == ["v2", "v1", "v3"]
    assert (report.best, report.is_apart, report.denominator) == ("v2", True, "impressions")
    assert report.summary.startswith("v2 is best: 40.0% of 2000 impressions accepted")
    assert (report.unattributed, report.variants[0].acceptance) == (0, 0.4)


def test_variants_whose_intervals_overlap_are_undecided() -> None:
    """A lead is told as one, and no more."""
    report = make_report(
        keyed(v1=shown(100), v2=shown(100)),  # type: ignore[arg-type]
        keyed(v1=rewarded(40, 30), v2=rewarded(40, 33)),  # type: ignore[arg-type]
        reward_count=85,
    )
    assert (report.best, report.is_apart, report.unattributed) == ("v2", False, 5)
    assert report.summary.endswith("but its interval overlaps with v1: undecided yet.")


def test_without_impressions_acceptance_is_a_share_of_rewards() -> None:
    """When the log has nothing to hold rewards against, the report says of what the share is."""
    report = make_report({}, keyed(v1=rewarded(40, 30)), reward_count=40)  # type: ignore[arg-type]
    assert (report.denominator, report.variants[0].acceptance) == ("rewards", 0.75)
    assert report.summary.startswith("v1 is the only variant: 75.0% of 40 rewards accepted")


def test_nothing_at_all_is_told_so() -> None:
    """No variant, no best one, and a sentence."""
    report = make_report({}, {}, reward_count=0)
    assert (report.best, report.variants) == (None, ())
    assert report.summary.startswith("There is nothing to go by")


def test_days_are_added_and_sampled_answers_scaled() -> None:
    """An answer that was logged at a rate of 0.1 stands for ten, in impressions and in cost."""
    first = shown(10, impression_thousandths=100_000, priced=10, cost_micro_usd=2_000)
    later = {day_key(DAY + dt.timedelta(days=1), "v1"): attrs.evolve(first)}
    rewards = keyed(v1=rewarded(20, 10))
    report = make_report(keyed(v1=first) | later, rewards, reward_count=20)  # type: ignore[arg-type]
    [one] = report.variants
    assert (one.impressions, one.is_estimated, one.acceptance) == (200, True, 0.05)  # 10 / 200
    assert one.cost_usd == pytest.approx(0.04)  # 2 * 0.002 USD for 20 answers, ten times as many
    assert one.cost_per_accepted_usd == pytest.approx(0.004)


@given(st.floats(0, 100_000))
def test_a_latency_is_in_one_bucket(latency_ms: float) -> None:
    """The first one whose bound it does not exceed."""
    field = bucket_of(latency_ms)
    bounds = [bound for bound in BOUNDS_MS if latency_ms <= bound]
    assert field == (f"le_{bounds[0]}" if bounds else "le_more")
    assert hasattr(PromptDay(), field)


def test_quantiles_come_from_the_histogram() -> None:
    """As if each bucket were filled evenly; nothing is known of none."""
    row = PromptDay(le_100=50, le_200=50)
    assert latency_quantile_ms(row, 0.5) == 100
    assert latency_quantile_ms(row, 0.75) == 150  # half way from 100 to 200
    assert latency_quantile_ms(PromptDay(le_more=3), 0.5) == 20_000
    assert latency_quantile_ms(PromptDay(), 0.5) is None
