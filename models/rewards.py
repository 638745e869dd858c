"""What the counts of impressions and rewards say of each prompt variant.

Pure: rows of counters go in, a report comes out. The rows are written in streams/handlers/feedback.py and
streams/handlers/generations.py, and read in app/analytics.py. An interval here holds however often somebody looks, so
that a test of variants may be watched daily and ended at any time.
"""

import bisect
import datetime as dt
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import attrs

from models.rows import PromptDay, RewardDay

ACCEPTED_FROM = 0.5
"""A reward of so much or more says that the tip was accepted."""
BOUNDS_MS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
CONFIDENCE = 0.95

Denominator = Literal["impressions", "rewards"]
CountsT = TypeVar("CountsT", PromptDay, RewardDay)

_BUCKETS = (*(f"le_{bound}" for bound in BOUNDS_MS), "le_more")
_PRIOR = 0.5
_HALVINGS = 60
_ESTIMATED = " Impressions are estimates, as the log was sampled, which the intervals leave out."


@attrs.frozen
class Interval:
    """Between which shares the true one lies, both ends included."""

    low: float
    high: float


@attrs.frozen(kw_only=True)
class VariantReport:
    """One prompt variant over some days.

    Args:
        impressions: answers that went out; an estimate when ``is_estimated``, as the log was sampled, and ``interval``
            takes it for exact.
        trials: what ``acceptance`` is a share of: see the report's denominator.
        acceptance: ``accepted`` of ``trials``; None without any, and ``interval`` is then everything.
        reward_mean: of the rewards.
        cost_usd: of the answers whose cost is known, scaled as impressions are; None when none is known.
        latency_p50_ms: from a histogram, so between its bounds; 20,000 stands for that or more.
        fallbacks: as all counts below, of the answers that were logged.
    """

    version: str
    impressions: int
    is_estimated: bool
    rewards: int
    accepted: int
    trials: int
    acceptance: float | None
    interval: Interval
    reward_mean: float | None
    cost_usd: float | None
    cost_per_accepted_usd: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    fallbacks: int
    failed_checks: int
    cached: int
    degraded: int
    prompt_tokens: int
    completion_tokens: int


@attrs.frozen(kw_only=True)
class RewardReport:
    """All variants over some days, the most accepted first.

    Args:
        since, until: the first and last day (UTC) asked for; None is open.
        denominator: what acceptance is a share of.
        confidence: the chance that all intervals hold at once, and at every look that has the same first day. A
            variant that joins k - 1 others adds ``(1 - confidence) / k`` to the risk, for it was not reckoned with.
        unattributed: rewards that name no variant.
        best: the variant with the highest acceptance; None when there is nothing to go by.
        is_apart: the interval of the best lies above that of every other one.
        summary: the same in words.
    """

    since: dt.date | None
    until: dt.date | None
    denominator: Denominator
    confidence: float
    unattributed: int
    best: str | None
    is_apart: bool
    summary: str
    variants: tuple[VariantReport, ...]


def day_key(day: dt.date, version: str) -> str:
    """The key of a day's counts of one version; ordered by day."""
    return f"{day.isoformat()}/{version}"


def bucket_of(latency_ms: float) -> str:
    """The field of the histogram that counts such a latency."""
    return next((f"le_{bound}" for bound in BOUNDS_MS if latency_ms <= bound), "le_more")


def confidence_sequence(successes: int, trials: int, *, alpha: float) -> Interval:
    """The shares that independent trials with a yes or no have not ruled out, at any number of trials.

    With probability ``1 - alpha`` the true share lies in the intervals of all times at once. A trial whose answer is
    still to come counts as a no, so a share is underrated while answers come in.

    Source: the method of mixtures (Robbins 1970, Ann. Math. Statist. 41(5)) in its beta-binomial form (Howard, Ramdas,
    McAuliffe, Sekhon 2021, Ann. Statist. 49(2)): the likelihood under a Beta(1/2, 1/2) mixture of shares over that
    under one share is a martingale when that share is the true one, and by Ville's inequality exceeds ``1 / alpha``
    ever with probability ``alpha`` at most.
    """
    if trials == 0:
        return Interval(0.0, 1.0)
    failures = trials - successes
    mixture = _log_beta(successes + _PRIOR, failures + _PRIOR) - _log_beta(_PRIOR, _PRIOR)

    def is_ruled_out(share: float) -> bool:
        likelihood = _times_log(successes, share) + _times_log(failures, 1 - share)
        return mixture - likelihood >= -math.log(alpha)

    seen = successes / trials
    return Interval(_edge(is_ruled_out, 0.0, seen), _edge(is_ruled_out, 1.0, seen))


def latency_quantile_ms(row: PromptDay, share: float) -> float | None:
    """The latency below which this share of the answers lies, as if each bucket were filled evenly."""
    counts: list[int] = [getattr(row, field) for field in _BUCKETS]
    wanted = share * sum(counts)
    if not wanted:
        return None
    totals = list(itertools.accumulate(counts))
    place = bisect.bisect_left(totals, wanted)
    low, high = (0, *BOUNDS_MS)[place], (*BOUNDS_MS, BOUNDS_MS[-1])[place]
    return low + (high - low) * (wanted - totals[place] + counts[place]) / counts[place]


def make_report(
    prompt_days: Mapping[str, PromptDay],
    reward_days: Mapping[str, RewardDay],
    *,
    reward_count: int,
    since: dt.date | None = None,
    until: dt.date | None = None,
) -> RewardReport:
    """Makes the report of some days.

    Acceptance is a share of impressions where the log has them: a variant that has more rewards than impressions, as
    when answers could not be logged or were given the day before, has at least as many impressions as rewards. When
    there are more rewards than impressions in all, the log is of no use, and it is a share of rewards.

    While it is a share of impressions, a version that was never answered with is no variant: rewards that name one, as
    by a slip or by somebody's invention, are counted as unattributed and decide nothing.

    Args:
        prompt_days: the counts of answers by day and version, of these days only.
        reward_days: the counts of rewards by day and version, of these days only.
        reward_count: all rewards of these days, also those that name no version.
    """
    answers, rewards = _by_version(prompt_days, PromptDay), _by_version(reward_days, RewardDay)
    served = {version: row for version, row in rewards.items() if version in answers and answers[version].impressions}
    attributed = sum(row.count for row in served.values())
    shown = sum(row.impression_thousandths for row in answers.values()) / 1000
    denominator: Denominator = "impressions" if shown >= max(1, attributed) else "rewards"
    if denominator == "impressions":
        rewards = served
    attributed = sum(row.count for row in rewards.values())
    versions = sorted(answers.keys() | rewards.keys())
    alpha = (1 - CONFIDENCE) / max(1, len(versions))  # the union bound: all of them hold at once
    variants = [
        _variant(version, answers.get(version, PromptDay()), rewards.get(version, RewardDay()), denominator, alpha)
        for version in versions
    ]
    variants.sort(key=lambda one: (-1.0 if one.acceptance is None else one.acceptance, one.trials), reverse=True)
    best = variants[0] if variants and variants[0].acceptance is not None else None
    is_apart = best is not None and all(best.interval.low > other.interval.high for other in variants[1:])
    return RewardReport(
        since=since,
        until=until,
        denominator=denominator,
        confidence=CONFIDENCE,
        unattributed=max(0, reward_count - attributed),
        best=best.version if best else None,
        is_apart=is_apart and len(variants) > 1,
        summary=_summary(variants, best, denominator),
        variants=tuple(variants),
    )


def _by_version(days: Mapping[str, CountsT], cls: type[CountsT]) -> dict[str, CountsT]:
    """Adds the days of each version up."""
    grouped: dict[str, list[CountsT]] = {}
    for key, row in days.items():
        grouped.setdefault(key.partition("/")[2], []).append(row)
    return {version: _sum(rows, cls) for version, rows in grouped.items()}


def _sum(rows: Iterable[CountsT], cls: type[CountsT]) -> CountsT:
    counts = dict.fromkeys((field.name for field in attrs.fields(cls)), 0)
    for row in rows:
        for name in counts:
            counts[name] += getattr(row, name)
    return cls(**counts)


def _variant(
    version: str, answers: PromptDay, rewards: RewardDay, denominator: Denominator, alpha: float
) -> VariantReport:
    impressions = round(answers.impression_thousandths / 1000)
    trials = max(impressions, rewards.count) if denominator == "impressions" else rewards.count
    weight = impressions / answers.impressions if answers.impressions else 1.0
    cost_usd = answers.cost_micro_usd / 1_000_000 * weight if answers.priced else None
    return VariantReport(
        version=version,
        impressions=impressions,
        is_estimated=answers.impression_thousandths != 1000 * answers.impressions,
        rewards=rewards.count,
        accepted=rewards.accepted,
        trials=trials,
        acceptance=rewards.accepted / trials if trials else None,
        interval=confidence_sequence(rewards.accepted, trials, alpha=alpha),
        reward_mean=rewards.reward_millionths / rewards.count / 1_000_000 if rewards.count else None,
        cost_usd=cost_usd,
        cost_per_accepted_usd=cost_usd / rewards.accepted if cost_usd is not None and rewards.accepted else None,
        latency_p50_ms=latency_quantile_ms(answers, 0.5),
        latency_p95_ms=latency_quantile_ms(answers, 0.95),
        fallbacks=answers.fallbacks,
        failed_checks=answers.failed_checks,
        cached=answers.cached,
        degraded=answers.degraded,
        prompt_tokens=answers.prompt_tokens,
        completion_tokens=answers.completion_tokens,
    )


def _summary(variants: Sequence[VariantReport], best: VariantReport | None, denominator: Denominator) -> str:
    if best is None or best.acceptance is None:
        return "There is nothing to go by: no impressions and no rewards of any variant."
    facts = (
        f"{best.acceptance:.1%} of {best.trials} {denominator} accepted "
        f"(between {best.interval.low:.1%} and {best.interval.high:.1%})"
    )
    overlapping = [other.version for other in variants[1:] if other.interval.high >= best.interval.low]
    remark = _ESTIMATED if denominator == "impressions" and any(one.is_estimated for one in variants) else ""
    if len(variants) == 1:
        return f"{best.version} is the only variant: {facts}.{remark}"
    if overlapping:
        others = ", ".join(overlapping)
        return f"{best.version} leads: {facts}, but its interval overlaps with {others}: undecided yet.{remark}"
    return f"{best.version} is best: {facts}; its interval lies above all others.{remark}"


def _edge(is_ruled_out: Callable[[float], bool], outside: float, inside: float) -> float:
    """Where the shares that are ruled out end, between one that may be and one that is not."""
    if not is_ruled_out(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if is_ruled_out(middle) else (outside, middle)
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _times_log(count: int, share: float) -> float:
    """``count * log(share)``, 0 for none of it."""
    if count == 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf
