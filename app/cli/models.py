"""``models``: the versions of the model, the card of each, and which of them an alias names.

A version is named by its number or by an alias. What is moved here reaches running workers within two seconds.
"""

import datetime as dt
from collections.abc import Iterable, Iterator

import attrs
import click
import msgspec

from app.cards import (
    ListedModel,
    ShownCard,
    list_models,
    read_shown_card,
    render_card,
    show_instant,
    show_number,
    show_percent,
    show_range,
)
from app.cli.session import HasEnvironment, build_app, print_json, print_table, registry_of
from app.cli.train import train_command
from app.logs import one_line
from app.settings import load_settings
from models.card import Metric, Rollout
from models.errors import ModelUnknown
from models.registry import ALIASES, Registry
from models.scorer import load_model

SHADOW_NOTE = "shadow: kept ready for a promotion; no worker loads or checks it, and it gets no traffic"


@click.group("models")
def models() -> None:
    """Look at the versions of the model, and choose the one that serves."""


models.add_command(train_command)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def list_(obj: HasEnvironment, *, as_json: bool) -> None:
    """List the versions, the oldest first."""
    registry = registry_of(obj)
    found = list_models(registry, registry.aliases())
    if as_json:
        print_json(msgspec.to_builtins([attrs.asdict(one) for one in found]))
    elif not found:
        click.echo("no version is published yet")
    else:
        print_table(("version", "aliases", "created (UTC)", "data", "artifact", "metric"), map(_row, found))
        _note_shadow(*(alias for one in found for alias in one.aliases))


@models.command("card")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.option("--html", "as_html", is_flag=True, help="Print a page for a browser instead of text.")
@click.pass_obj
def card(obj: HasEnvironment, version: str, *, as_json: bool, as_html: bool) -> None:
    """Print the card of a version.

    VERSION is a number or an alias. The moves of aliases to this version and away from it are printed too.
    """
    if as_json and as_html:
        raise click.UsageError("give --json or --html, not both")
    registry = registry_of(obj)
    shown = read_shown_card(registry, _resolve(registry, version))
    if as_json:
        print_json(msgspec.to_builtins(shown.document()))
    elif as_html:
        click.echo(render_card(shown))
    else:
        _print_card(shown)


@models.command("promote")
@click.argument("version")
@click.option("--alias", default=ALIASES[0], show_default=True, type=click.Choice(ALIASES), help="Which one to move.")
@click.option("--reason", required=True, help="Why; it is kept in the history.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def promote(obj: HasEnvironment, version: str, *, alias: str, reason: str, as_json: bool) -> None:
    """Move an alias to a version.

    VERSION is a number or the other alias. A version whose card or artifact can't be used is refused. A shadow is kept
    ready for a promotion: no worker loads it, and it gets no traffic.
    """
    if not reason.strip():
        raise click.UsageError("--reason: expected a text, got nothing")
    registry = registry_of(obj)
    chosen = _resolve(registry, version)
    stored = registry.fetch(chosen)
    features = build_app(load_settings(obj.env)).features
    load_model(chosen, stored.artifact, stored.card, features)  # what a worker would refuse raises here
    moved = registry.promote(chosen, alias=alias, reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(msgspec.to_builtins({"alias": alias, "version": chosen, "rollout": moved and attrs.asdict(moved)}))
    else:
        click.echo(_told(moved) if moved else f"{alias}: version {chosen} already, nothing was moved")
        _note_shadow(alias)


@models.command("rollback")
@click.option("--alias", default=ALIASES[0], show_default=True, type=click.Choice(ALIASES), help="Which one to move.")
@click.option("--reason", default="", help="Why; it is kept in the history.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def rollback(obj: HasEnvironment, *, alias: str, reason: str, as_json: bool) -> None:
    """Move an alias back to the version before.

    A second rollback goes one promotion further back. A version that can't be used is refused.
    """
    moved = registry_of(obj).rollback(alias=alias, reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(msgspec.to_builtins({"alias": alias, "version": moved.version, "rollout": attrs.asdict(moved)}))
    else:
        click.echo(_told(moved))


@models.command("demote")
@click.argument("alias", type=click.Choice(ALIASES))
@click.option("--reason", default="", help="Why; it is kept in the history.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def demote(obj: HasEnvironment, alias: str, *, reason: str, as_json: bool) -> None:
    """Take the alias of a shadow away.

    No version has it then, and a rollback does not bring it back. The champion is refused: something has to answer.
    """
    moved = registry_of(obj).demote(alias, reason=reason, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(msgspec.to_builtins({"alias": alias, "version": None, "rollout": moved and attrs.asdict(moved)}))
    else:
        click.echo(_told(moved) if moved else f"{alias}: no version has it, nothing was moved")


def _note_shadow(*aliases: str) -> None:
    """Says on stderr, apart from what programs read, what a shadow is not."""
    if ALIASES[1] in aliases:
        click.echo(SHADOW_NOTE, err=True)


def _resolve(registry: Registry, name: str) -> str:
    try:
        return registry.resolve(name)
    except ModelUnknown as error:
        raise click.BadParameter(str(error), param_hint="VERSION") from error


def _told(moved: Rollout) -> str:
    return f"{moved.alias}: version {moved.former or 'none'} -> {moved.version or 'none'} ({moved.action})"


def _row(one: ListedModel) -> tuple[object, ...]:
    return (
        one.version,
        ", ".join(one.aliases) or "-",
        show_instant(one.created_at).removesuffix(" UTC") if one.created_at else "-",
        {True: "simulated", False: "real", None: "-"}[one.is_simulated],
        one.artifact_hash[:12] if one.artifact_hash else "-",
        f"refused: {one.problem}" if one.problem else _figure(one.metric) if one.metric else "-",
    )


def _figure(metric: Metric) -> str:
    return f"{metric.name} {show_number(metric.value)} ({show_number(metric.low)} to {show_number(metric.high)})"


def _print_card(shown: ShownCard) -> None:
    """Prints each part of the card under its name; no control character gets to the terminal."""
    card, training = shown.card, shown.card.training
    facts = {
        "model": f"{card.name} {shown.version}" + "".join(f" [{alias}]" for alias in shown.aliases),
        "created": show_instant(card.created_at),
        "data": f"{'simulated' if training.is_simulated else 'real'}: {training.source}",
        "rows": f"{training.row_count}, {show_percent(training.positive_ratio)} positive",
        "period": f"{show_instant(training.first_at)} to {show_instant(training.last_at)}",
        "artifact": card.artifact_hash,
        "features": card.feature_hash,
        "parameters": ", ".join(f"{name}={value}" for name, value in card.parameters.items()),
    }
    for name, value in facts.items():
        click.echo(f"{name:<12}{one_line(value)}")
    for name, columns, rows in _parts(shown):
        click.echo(f"\n--- {name}")
        found = list(rows)
        print_table(columns, found) if found else click.echo("(none)")


def _parts(shown: ShownCard) -> Iterator[tuple[str, tuple[str, ...], Iterable[tuple[object, ...]]]]:
    """What a card has several of: the name of the part, its columns and its rows."""
    card = shown.card
    yield "limits", ("limit",), ((limit,) for limit in card.limits)
    measured = [("all", metric) for metric in card.metrics]
    measured += [(f"{part.feature}: {part.part}", metric) for part in card.slices for metric in part.metrics]
    figures = ((where, one.split, _figure(one), show_percent(one.level), one.row_count) for where, one in measured)
    yield "metrics", ("rows of", "data", "metric", "level", "rows"), figures
    checks = (
        (
            check.name,
            ", ".join(f"{group} {show_number(value)}" for group, value in check.groups.items()),
            f"gap {show_number(check.gap)}, allowed {show_number(check.limit)}",
            "passed" if check.has_passed else "failed",
        )
        for check in card.fairness
    )
    yield "fairness", ("check", "groups", "gap", "result"), checks
    inputs = ((one.name, one.source, one.unit, show_range(one.low, one.high), one.meaning) for one in card.inputs)
    yield "inputs", ("name", "source", "unit", "range", "meaning"), inputs
    moves = ((show_instant(one.at), _told(one), one.reason or "-") for one in shown.rollouts)
    yield "rollouts", ("when", "move", "reason"), moves
