"""Models and their cards as they are shown: over HTTP, on a terminal, and as a page for a person.

This module reads what is shown of a registry and renders the page; nothing is served or moved here. A version that
can't be served is shown with the reason. Reading blocks on the disk. app/views/models.py and app/cli/models.py are
the ones who ask.
"""

import datetime as dt
import functools
from collections.abc import Mapping
from typing import Any

import attrs
import jinja2

from app.settings import Settings
from models.card import Card, Metric, Rollout
from models.errors import ModelError
from models.registry import Registry


@attrs.frozen(kw_only=True)
class ServedModel:
    """What a process answers with in the place of an alias.

    Args:
        version: None while it has no model for it.
        reason: why that is not what the alias says; None when it is.
    """

    version: str | None
    reason: str | None = None


ServedModels = Mapping[str, ServedModel]
"""By alias; one that the process does not follow is not in it."""


@attrs.frozen(kw_only=True)
class ListedModel:
    """A version in a list; what comes from its card is None when it can't be served, and ``problem`` says why."""

    version: str
    aliases: tuple[str, ...]
    created_at: dt.datetime | None = None
    is_simulated: bool | None = None
    metric: Metric | None = None
    artifact_hash: str | None = None
    problem: str | None = None


@attrs.frozen(kw_only=True)
class ShownCard:
    """A version's card with what happened to the version since; ``rollouts`` are the moves to it and away from it."""

    version: str
    aliases: tuple[str, ...]
    card: Card
    rollouts: tuple[Rollout, ...]

    def document(self) -> dict[str, Any]:
        """All of it in one object, the card's fields in their order."""
        card, rollouts = attrs.asdict(self.card), [attrs.asdict(one) for one in self.rollouts]
        return {"version": self.version, "aliases": self.aliases, **card, "rollouts": rollouts}


def open_registry(settings: Settings) -> Registry | None:
    """The registry that the settings name, or None when they want none."""
    folder = settings.model_folder
    return None if folder is None else Registry(folder, settings.model_name)


def list_models(registry: Registry, aliases: Mapping[str, str]) -> list[ListedModel]:
    """Every version, by number.

    Args:
        aliases: the registry's, read once by who shows them, since one may move meanwhile.

    Raises:
        ModelError: the registry can't be read.
    """
    return [_listed(registry, version, _names_of(aliases, version)) for version in registry.versions()]


def read_shown_card(registry: Registry, name: str) -> ShownCard:
    """The card of a version or of an alias.

    Raises:
        ModelUnknown: there is none of that name.
        ModelError: the card, or the registry, can't be used.
    """
    version = registry.resolve(name)
    card = registry.read_card(version)
    rollouts = tuple(line for line in registry.history() if version in (line.version, line.former))
    return ShownCard(version=version, aliases=_names_of(registry.aliases(), version), card=card, rollouts=rollouts)


def render_card(shown: ShownCard) -> str:
    """A page in HTML that needs nothing else: no script, no other file."""
    return _environment().get_template("card.html.j2").render(shown=shown, card=shown.card)


def show_number(value: float) -> str:
    """As many digits as matter to a person: three decimals of a metric, so that a column of them can be compared."""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def show_percent(value: float) -> str:
    """A ratio in percent, with a decimal if it has one."""
    return f"{round(100 * value, 1):g} %"


def show_range(low: float | None, high: float | None) -> str:
    """What an input may hold, in words."""
    if low is None and high is None:
        return "any"
    if low is None or high is None:
        return f"from {low:g}" if low is not None else f"to {high:g}"
    return f"{low:g} to {high:g}"


def show_instant(value: dt.datetime) -> str:
    """An instant in UTC, to the minute."""
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": show_number, "percent": show_percent, "instant": show_instant}
    environment.globals["range_of"] = show_range
    return environment


def _listed(registry: Registry, version: str, aliases: tuple[str, ...]) -> ListedModel:
    try:
        card = registry.fetch(version).card
    except ModelError as error:
        return ListedModel(version=version, aliases=aliases, problem=error.problem)
    return ListedModel(
        version=version,
        aliases=aliases,
        created_at=card.created_at,
        is_simulated=card.training.is_simulated,
        metric=card.metrics[0] if card.metrics else None,
        artifact_hash=card.artifact_hash,
    )


def _names_of(aliases: Mapping[str, str], version: str) -> tuple[str, ...]:
    return tuple(alias for alias, named in aliases.items() if named == version)
