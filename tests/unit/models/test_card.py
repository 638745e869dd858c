"""What a card refuses by itself, by the name of its field."""

import attrs
import pytest
from registry_kit import AUC, artifact, card

from models.card import Card, feature_hash


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metric_refuses_what_is_no_number(value: float) -> None:
    """A figure that JSON can't hold never gets into a card."""
    with pytest.raises(ValueError, match=f"^high: expected a finite number, got {value}$"):
        attrs.evolve(AUC, high=value)


@pytest.mark.parametrize("value", ["", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_card_refuses_what_is_no_sha256(value: str) -> None:
    """Small hexadecimal digits, 64 of them."""
    with pytest.raises(ValueError, match="^artifact_hash: expected a SHA-256 as 64 hexadecimal digits, got "):
        card(artifact(), artifact_hash=value)


def test_card_refuses_an_instant_without_a_zone() -> None:
    """It could not be placed in time."""
    made: Card = card(artifact())
    with pytest.raises(ValueError, match="^created_at: expected an instant with a zone"):
        attrs.evolve(made, created_at=made.created_at.replace(tzinfo=None))


def test_feature_hash_stands_for_names_and_their_order() -> None:
    """The same names in another order are other columns; the known value holds cards of yesterday."""
    assert feature_hash(["a", "b"]) != feature_hash(["b", "a"])
    assert feature_hash(["a", "b"]) == "7e18f737311b2dc3"
