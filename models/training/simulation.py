"""The simulated world that a starter model learns from: no user is behind any of its rows.

A model learned here is for the first days alone, when nothing was logged yet; its card and its answers say that it is
simulated. The world, in numbers:

- **Users and requests.** A request has 10 candidates, and every user makes 10 requests on average, at instants spread
  evenly over 28 days from Monday, 2026-01-05, 00:00 UTC. A user's clock is 0 to 23 whole hours ahead of UTC.
- **Reward.** A candidate gets a reward of 1 with the true probability ``1 / (1 + exp(-z))`` and 0 otherwise, which is
  all the noise there is. ``z`` is the sum of ``BASE`` (-1.4), of the effects below, of the preferred hour's, and of a
  liking that a user has for tips as such: normal, standard deviation 0.2, to be seen in no feature.
- **Effects** are monotone: ``EFFECTS`` gives each feature a weight, a centre and a scale, and it adds
  ``weight * tanh((x - centre) / scale)``. A positive weight means that more of it never lowers the probability.
- **Preferred hour**, the one interaction: ``0.8 * cos(2 pi (hour_local - preferred_hour) / 24)``, so that a tip at the
  user's hour has 1.6 more in ``z`` than one twelve hours off. Neither of the two has an effect of its own.
- **Missing.** What the log holds lacks single values, at the rates of ``MISSING``: a candidate's and a context's value
  independently, those of a profile all together (a user without profile) in 3 % of the users, those of tables all
  together in 10 %. The probability is made from the values as they were before.
- Every other feature that the application declares has a plausible distribution and no effect; a name that the world
  does not know is missing in all rows.

The same seed and number of rows make the same world, whatever names are asked for. models/training/fit.py is next.
"""

import datetime as dt
from collections.abc import Sequence

import attrs
import numpy as np

from models.training.dataset import Dataset, Doubles

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
SPAN_S = 28 * 86_400.0
CANDIDATE_COUNT = 10
ROW_COUNT = 40_000
REQUEST_COUNT = 10
BASE = -1.4
HOUR_WEIGHT = 0.8
LIKING_SD = 0.2
MISSING = {"candidate": 0.02, "context": 0.02, "profile": 0.03, "table": 0.10}


@attrs.frozen
class Effect:
    """What a feature adds to ``z``: ``weight * tanh((x - centre) / scale)``."""

    weight: float
    centre: float
    scale: float


EFFECTS = {
    "category_affinity": Effect(1.2, 0.4, 0.25),
    "similarity": Effect(0.9, 0.3, 0.3),
    "urgency": Effect(0.7, 0.4, 0.3),
    "is_actionable": Effect(0.4, 0.5, 0.5),
    "novelty": Effect(0.3, 0.5, 0.3),
    "times_accepted": Effect(0.5, 1.0, 2.0),
    "times_dismissed": Effect(-0.9, 1.0, 1.5),
    "hours_since_shown": Effect(0.4, 72.0, 72.0),
    "estimated_minutes": Effect(-0.7, 20.0, 20.0),
    "difficulty": Effect(-0.5, 0.5, 0.3),
    "tip_length_chars": Effect(-0.3, 160.0, 80.0),
    "acceptance_rate_30d": Effect(0.9, 0.3, 0.2),
    "completion_rate_30d": Effect(0.5, 0.5, 0.25),
    "dismissal_rate_30d": Effect(-0.6, 0.3, 0.2),
    "tips_shown_7d": Effect(-0.4, 20.0, 15.0),
    "current_streak_days": Effect(0.4, 5.0, 6.0),
    "hours_since_sync": Effect(-0.3, 24.0, 36.0),
}

STARTER_NAMES = (
    *("tip_length_chars", "estimated_minutes", "difficulty", "hours_since_shown", "times_accepted", "times_dismissed"),
    *("category_affinity", "similarity", "urgency", "is_actionable", "novelty"),
    *("completion_rate_30d", "acceptance_rate_30d", "dismissal_rate_30d", "tips_shown_7d", "preferred_hour"),
    *("current_streak_days", "days_since_signup", "open_task_count", "is_weekend_active"),
    *("hour_local", "is_weekend", "hours_since_sync", "provider_count"),
)
"""The 24 columns of the starter model: what has an effect here, and what fairness is looked at by."""

LIMITS = ("It learned from a simulated world: its figures say how well it knows that world, and nothing about users.",)

Columns = dict[str, Doubles]


@attrs.frozen(kw_only=True, eq=False)
class World:
    """Simulated rows, and what no real log can say of them: (n,) the true probability of each row's reward."""

    dataset: Dataset
    probability: Doubles


def simulate(names: Sequence[str], *, seed: int = 0, row_count: int = ROW_COUNT) -> World:
    """Makes the world of a seed, as far as these features see it.

    Args:
        names: the columns; one that the world does not know is missing in all rows.
        row_count: rows; the last request may have fewer candidates.
    """
    random = np.random.default_rng([seed, row_count])
    request_count = -(-row_count // CANDIDATE_COUNT)
    user_count = -(-request_count // REQUEST_COUNT)
    request_of_row = np.arange(row_count) // CANDIDATE_COUNT
    user_of_request = random.integers(0, user_count, request_count)
    user_of_row = user_of_request[request_of_row]
    at = START.timestamp() + np.sort(random.uniform(0, SPAN_S, request_count))
    ahead_hours = random.integers(0, 24, user_count).astype(np.float64)
    parts = (
        ("candidate", _candidates(random, row_count), np.arange(row_count)),
        ("context", _context(at, ahead_hours[user_of_request]), request_of_row),
        ("profile", _profiles(random, user_count), user_of_row),
        ("table", _tables(random, user_count), user_of_row),
    )
    true = {name: column[index] for _, columns, index in parts for name, column in columns.items()}
    liking = random.normal(0, LIKING_SD, user_count)[user_of_row]
    probability = 1 / (1 + np.exp(-(_log_odds(true) + liking)))
    labels = (random.random(row_count) < probability).astype(np.float32)
    seen = {
        name: column[index]
        for source, columns, index in parts
        for name, column in _hidden(random, columns, source).items()
    }
    unknown = np.full(row_count, np.nan)
    dataset = Dataset(
        names=tuple(names),
        matrix=np.column_stack([seen.get(name, unknown) for name in names]).astype(np.float32),
        labels=labels,
        at=at[request_of_row],
        groups=np.array([f"simulated-{user}" for user in range(user_count)], dtype=object)[user_of_row],
        source=f"the simulated world of models/training/simulation.py, seed {seed}, {row_count} rows",
        is_simulated=True,
        limits=LIMITS,
    )
    return World(dataset=dataset, probability=probability)


def _log_odds(columns: Columns) -> Doubles:
    """``z`` without the user's liking."""
    apart = columns["hour_local"] - columns["preferred_hour"]
    total = BASE + HOUR_WEIGHT * np.cos(2 * np.pi * apart / 24)
    for name, effect in EFFECTS.items():
        total += effect.weight * np.tanh((columns[name] - effect.centre) / effect.scale)
    return total


def _hidden(random: np.random.Generator, columns: Columns, source: str) -> Columns:
    """The columns with what the log lacks of them: of a user all together, else single values."""
    count = len(next(iter(columns.values())))
    rate = MISSING[source]
    if source in ("profile", "table"):
        is_gone = random.random(count) < rate
        return {name: np.where(is_gone, np.nan, column) for name, column in columns.items()}
    return {name: np.where(random.random(count) < rate, np.nan, column) for name, column in columns.items()}


def _profiles(random: np.random.Generator, count: int) -> Columns:
    diligence = random.beta(2, 2, count)
    shown_7d = random.poisson(20 * random.gamma(2, 0.5, count)).astype(np.float64)
    streak = random.geometric(0.18, count) - 1.0
    open_count = random.poisson(15, count)
    reactions = random.dirichlet((1.5, 1.5, 1, 1.5), count)  # accepted, dismissed, snoozed, ignored
    return {
        "completion_rate_7d": np.clip(diligence + random.normal(0, 0.1, count), 0, 1),
        "completion_rate_30d": np.clip(diligence + random.normal(0, 0.05, count), 0, 1),
        "acceptance_rate_30d": reactions[:, 0],
        "dismissal_rate_30d": reactions[:, 1],
        "snooze_rate_30d": reactions[:, 2],
        "tips_shown_7d": shown_7d,
        "tips_shown_30d": shown_7d + random.poisson(3.3 * shown_7d),
        "preferred_hour": np.round(random.normal(13, 5, count)) % 24,
        "current_streak_days": streak,
        "longest_streak_days": streak + random.geometric(0.1, count) - 1.0,
        "hours_since_last_tip": random.exponential(12, count),
        "hours_since_last_completion": random.exponential(30, count),
        "days_since_signup": np.floor(random.exponential(150, count)),
        "open_task_count": open_count.astype(np.float64),
        "overdue_task_count": random.binomial(open_count, 0.2).astype(np.float64),
        "tasks_completed_7d": random.poisson(10 * diligence).astype(np.float64),
        "active_days_30d": random.binomial(30, 0.2 + 0.7 * diligence).astype(np.float64),
        "median_response_minutes_30d": random.lognormal(3, 1, count),
        "is_weekend_active": (random.random(count) < 0.4).astype(np.float64),
    }


def _tables(random: np.random.Generator, count: int) -> Columns:
    return {
        "hours_since_sync": random.exponential(24, count),
        "provider_count": random.integers(1, 4, count).astype(np.float64),
        "synced_task_count": random.poisson(25, count).astype(np.float64),
    }


def _context(at: Doubles, offset_hours: Doubles) -> Columns:
    local_hours = at / 3600 + offset_hours
    weekday = (local_hours // 24 + 3) % 7  # 1970-01-01 was a Thursday
    return {"hour_local": local_hours % 24, "is_weekend": (weekday >= 5).astype(np.float64)}


def _candidates(random: np.random.Generator, count: int) -> Columns:
    shown = random.poisson(2, count)
    accepted = random.binomial(shown, 0.3)
    dismissed = random.binomial(shown - accepted, 0.5)
    return {
        "tip_length_chars": np.round(random.normal(160, 60, count).clip(20, 600)),
        "estimated_minutes": np.round(random.exponential(20, count)) + 1,
        "difficulty": random.beta(2, 2, count),
        "hours_since_shown": random.exponential(100, count),
        "times_shown": shown.astype(np.float64),
        "times_accepted": accepted.astype(np.float64),
        "times_dismissed": dismissed.astype(np.float64),
        "category_affinity": random.beta(2, 3, count),
        "similarity": np.clip(random.normal(0.3, 0.25, count), -1, 1),
        "urgency": random.beta(1.2, 2, count),
        "is_actionable": (random.random(count) < 0.6).astype(np.float64),
        "novelty": random.beta(2, 2, count),
    }
