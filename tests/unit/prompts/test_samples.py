"""The samples: as much, and as little, as a request can bring."""

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from models.context import VARIABLES, assemble_context
from models.profile_schema import PROFILE
from prompts.registry import SHIPPED, load_variants
from prompts.samples import SAMPLES

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
VARIANTS = load_variants([SHIPPED], samples=SAMPLES)


def made(signals: list[str], tip_kind: str | None, numbers: dict[str, float]) -> dict[str, object]:
    """What the assembler makes of a request."""
    return assemble_context(
        signals=signals, tip_kind=tip_kind, profile_features=numbers, declared=PROFILE, rows={}, now=NOW
    ).variables()


def test_samples_have_every_variable() -> None:
    """A variant that uses what a request has is tried out with all of it."""
    assert [tuple(sample) for sample in SAMPLES.values()] == [VARIABLES] * len(SAMPLES)


def test_samples_are_the_most_and_the_least_of_a_request() -> None:
    """The fullest one is as large as the assembler lets a context be, the emptiest one has nothing."""
    most = made(["x" * 9999] * 99, "x" * 9999, {one.name: one.high or 1 for one in PROFILE})
    full = SAMPLES["full"]
    assert [len(str(full[name])) >= len(str(most[name])) for name in VARIABLES] == [True] * 3
    assert SAMPLES["empty"] == made([], None, {})


def test_samples_have_each_variable_alone() -> None:
    """One text each, and the least number, which is what a division fails with."""
    alone = {name: sample for name, sample in SAMPLES.items() if name.startswith("only")}
    assert [[name for name in VARIABLES if sample[name]] for sample in alone.values()] == [[name] for name in VARIABLES]
    assert alone["only profile, at its least"] == made([], None, {one.name: one.low or 0 for one in PROFILE})


@given(
    st.lists(st.text(max_size=300), max_size=30),
    st.none() | st.text(max_size=100),
    st.dictionaries(st.sampled_from([one.name for one in PROFILE]), st.floats()),
)
def test_shipped_variants_print_every_request(texts: list[str], kind: str | None, numbers: dict[str, float]) -> None:
    """What passes with the samples passes with what is between them."""
    for variant in VARIANTS.values():
        assert variant.render(made(texts, kind, numbers)).user.endswith("Write the tip.")
