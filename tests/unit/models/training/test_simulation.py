"""The simulated world does what its docstring says, and a model that learns from it comes close to the truth."""

import numpy as np
import pytest

from models.features import FEATURES
from models.profile_schema import PROFILE
from models.training.fit import Parameters, fit, score_rows
from models.training.metrics import auc
from models.training.simulation import EFFECTS, MISSING, SPAN_S, START, STARTER_NAMES, simulate

NAMES = tuple(FEATURES)


def test_world_knows_every_declared_feature() -> None:
    """No declared feature is missing in all rows, in none is anything out of its declared range."""
    dataset = simulate(NAMES, row_count=5_000).dataset
    for name, feature in FEATURES.items():
        known = dataset.column(name)[~np.isnan(dataset.column(name))]
        assert len(known) > 4_000, name
        assert feature.low is None or known.min() >= feature.low, name
        assert feature.high is None or known.max() <= feature.high, name


def test_world_is_the_same_for_a_seed() -> None:
    """Whatever names are asked for, and in which order; another seed makes another world."""
    whole, part = simulate(NAMES, seed=7, row_count=500), simulate(NAMES[5:2:-1], seed=7, row_count=500)
    assert np.array_equal(part.dataset.column(NAMES[4]), whole.dataset.column(NAMES[4]), equal_nan=True)
    assert np.array_equal(part.dataset.labels, whole.dataset.labels)
    assert simulate(NAMES, seed=8, row_count=500).dataset.data_hash != whole.dataset.data_hash


def test_world_says_that_it_is_one() -> None:
    """No user is behind it, which the card and its limits repeat; an unknown name is missing everywhere."""
    dataset = simulate(("unheard_of", "urgency"), row_count=25).dataset
    assert dataset.is_simulated
    assert "seed 0, 25 rows" in dataset.source
    assert "simulated" in dataset.limits[0]
    assert np.isnan(dataset.column("unheard_of")).all()


def test_rows_of_a_request_belong_together() -> None:
    """Ten rows share user, instant, profile and context, lie in the span, and differ in what is the candidates'."""
    dataset = simulate(NAMES, row_count=1_000).dataset
    first = dataset.take(np.arange(10))
    assert len(set(first.groups)) == len(set(first.at)) == 1
    assert np.array_equal(first.column("acceptance_rate_30d"), np.repeat(first.column("acceptance_rate_30d")[:1], 10))
    assert len(np.unique(first.column("similarity"))) > 5
    begin = START.timestamp()
    assert begin <= dataset.at.min() < dataset.at.max() <= begin + SPAN_S


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_are_monotone(name: str) -> None:
    """The mean true probability goes with a feature's value in the direction of its weight."""
    world = simulate((name,), row_count=40_000)
    values = world.dataset.column(name)
    low, high = np.nanquantile(values, [0.3, 0.7])
    gain = world.probability[values >= high].mean() - world.probability[values <= low].mean()
    assert np.sign(gain) == np.sign(EFFECTS[name].weight)


def test_preferred_hour_matters_only_together_with_the_hour() -> None:
    """At the user's hour the mean probability is well above that of twelve hours off."""
    world = simulate(("hour_local", "preferred_hour"), row_count=40_000)
    apart = (world.dataset.column("hour_local") - world.dataset.column("preferred_hour")) % 24
    near, far = (apart < 2) | (apart > 22), (apart > 10) & (apart < 14)
    assert world.probability[near].mean() > world.probability[far].mean() + 0.15


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("similarity", "candidate"),
        ("hour_local", "context"),
        ("urgency", "candidate"),
        (PROFILE[0].name, "profile"),
        ("provider_count", "table"),
    ],
)
def test_values_are_missing_at_the_rate_that_is_said(name: str, source: str) -> None:
    """Within what so many users, or rows, leave to chance."""
    dataset = simulate((name,), row_count=100_000).dataset
    assert np.isnan(dataset.column(name)).mean() == pytest.approx(MISSING[source], abs=0.025)


@pytest.mark.parametrize("names", [("provider_count", "hours_since_sync"), (PROFILE[0].name, PROFILE[1].name)])
def test_profiles_and_rows_are_missing_as_a_whole(names: tuple[str, str]) -> None:
    """A user without one of the values has none of them."""
    is_missing = np.isnan(simulate(names).dataset.matrix)
    assert is_missing[:, 0].any()
    assert np.array_equal(is_missing[:, 0], is_missing[:, 1])


def test_rewards_come_as_often_as_the_probability_says() -> None:
    """In ten bins of the true probability the share of rewards is close to it."""
    world = simulate(STARTER_NAMES)
    for rows in np.array_split(np.argsort(world.probability), 10):
        assert world.dataset.labels[rows].mean() == pytest.approx(world.probability[rows].mean(), abs=0.025)


@pytest.mark.parametrize("seed", [0, 1])
def test_model_of_the_world_ranks_nearly_like_the_truth(seed: int) -> None:
    """On the last 15 % of the rows its AUC is within 0.03 of that of the true probability itself."""
    world = simulate(STARTER_NAMES, seed=seed)
    parts, parameters = world.dataset.split_by_time(), Parameters()
    booster = fit(parts, parameters.booster(parts.train.positive_ratio), parameters)
    scored = score_rows(booster, parts.test)
    truth = world.probability[-len(parts.test) :]
    best, own = (auc(scored.labels, scores, scored.weights[None, :])[0] for scores in (truth, scored.scores))
    assert best - 0.03 < own < best
