"""Which variant answers: the request's, the operator's default, or v1."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PromptUnknown, SettingsError
from prompts.selection import Selected, assign, check_defaults, default_problems, select_version

KNOWN = ("v1", "v2", "v3")


def select(asked: str | None = None, *defaults: str, user_id: str = "ada", known: tuple[str, ...] = KNOWN) -> Selected:
    """Selects for a request that may name a version."""
    return select_version(asked, user_id=user_id, defaults=defaults, known=known)


def test_version_of_the_request_wins() -> None:
    """It is used whatever the default."""
    assert select("v3", "v2") == Selected(version="v3", source="request")


@pytest.mark.parametrize("asked", ["v9", "", "V1"])
def test_unknown_version_of_the_request_is_an_error(asked: str) -> None:
    """It never becomes another one in silence; the error has those that there are."""
    with pytest.raises(PromptUnknown) as caught:
        select(asked)
    assert (caught.value.version, caught.value.known) == (asked, KNOWN)
    assert str(caught.value) == f"prompt {asked}: there is no such variant, only v1, v2, v3"


def test_default_serves_requests_without_a_version() -> None:
    """The operator's, or v1 where there is none."""
    assert select(None, "v2") == Selected(version="v2", source="default")
    assert select() == Selected(version="v1", source="default")


def test_default_that_vanished_is_v1_for_its_users_alone() -> None:
    """Those who had another version of the list keep it."""
    users = [str(n) for n in range(100)]
    before = {user: select(None, "v2", "v3", user_id=user) for user in users}
    after = {user: select(None, "v2", "v3", user_id=user, known=("v1", "v3")) for user in users}
    fallback = Selected(version="v1", source="fallback", propensity=0.5)
    assert after == {user: fallback if before[user].version == "v2" else before[user] for user in users}


@given(st.lists(st.sampled_from(["v1", "v2", "v3", "v4"]), max_size=5, unique=True), st.sets(st.sampled_from(KNOWN)))
def test_propensity_is_the_share_of_the_deals_that_lead_to_a_version(defaults: list[str], known: set[str]) -> None:
    """Those of a vanished default count for v1, which may be one of the list itself; the shares add up to 1."""
    known |= {"v1"}
    selected = {select(None, *defaults, user_id=str(n), known=tuple(known)) for n in range(60)}
    shares = {one.version: one.propensity for one in selected}
    served = [version if version in known else "v1" for version in defaults or ["v1"]]
    assert shares == {version: served.count(version) / len(served) for version in served}


def test_default_that_vanished_with_v1_is_an_error() -> None:
    """Nothing else is taken in its place."""
    with pytest.raises(PromptUnknown, match="prompt v2: there is no such variant, only v3"):
        select(None, "v2", known=("v3",))


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_user_keeps_the_version(user_id: str, versions: list[str]) -> None:
    """The same user and list are dealt the same version, one of the list; no other user is needed for that."""
    assert assign(user_id, versions) == assign(user_id, tuple(versions)) in versions


def test_versions_are_dealt_in_equal_shares() -> None:
    """Of 3,000 users each of three versions gets about 1,000: within 4 standard deviations of 25.8."""
    counts = Counter(assign(f"user-{n}", KNOWN) for n in range(3000))
    assert set(counts) == set(KNOWN) and all(abs(count - 1000) < 4 * 25.8 for count in counts.values())


def test_another_list_deals_anew() -> None:
    """Who had v1 in one list is spread over the next one: about a half of 500 each."""
    users = [user for n in range(1000) if assign(user := f"user-{n}", ("v1", "v2")) == "v1"]
    moved = Counter(assign(user, ("v1", "v3")) for user in users)
    assert all(200 < moved[version] < 300 for version in ("v1", "v3"))


def test_default_must_be_known_at_the_start() -> None:
    """The error names the version, those that there are, and why a file is not served."""
    check_defaults(("v1", "v2"), KNOWN)
    check_defaults((), ())
    with pytest.raises(SettingsError) as caught:
        check_defaults(("v1", "v9"), KNOWN, problems=["prompt v9.j2: bad"])
    assert str(caught.value) == (
        "DEFAULT_PROMPT_VERSION: there is no prompt variant 'v9', only v1, v2, v3; prompt v9.j2: bad, got 'v1,v9'"
    )


def test_default_that_was_one_before_may_be_missing_at_the_start() -> None:
    """It has vanished, which is told elsewhere; another one that there is not is refused all the same."""
    check_defaults(("v1", "v8"), KNOWN, before=["v8"])
    with pytest.raises(SettingsError, match="there is no prompt variant 'v9', only v1, v2, v3, got 'v8,v9'"):
        check_defaults(("v8", "v9"), KNOWN, before=["v8"])


def test_default_that_vanished_is_told() -> None:
    """One sentence each, for /health."""
    assert default_problems(("v1", "v9"), KNOWN) == [
        "DEFAULT_PROMPT_VERSION: there is no variant 'v9' any more, v1 serves instead"
    ]
