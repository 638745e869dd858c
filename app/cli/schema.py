"""``schema``: what goes over the wire, for the services on the other side, and whether theirs still agrees."""

import json
from collections.abc import Sequence
from typing import BinaryIO, Literal

import attrs
import click

from app.cli.openapi import openapi
from app.cli.session import print_json, print_table
from app.logs import one_line
from models.errors import ContractError
from models.profile_export import as_json_schema, as_typescript
from models.profile_registry import Difference, compare
from models.profile_schema import PROFILE

MAX_SOURCE_BYTES = 1_000_000

Form = Literal["ts", "json-schema"]


@click.group("schema")
def schema() -> None:
    """Print what goes over the wire, and compare it with another service's."""


schema.add_command(openapi)


@schema.command("profile")
@click.option("--format", "form", type=click.Choice(["ts", "json-schema"]), help="Print it for another language.")
@click.option(
    "--check",
    "registry",
    type=click.File("rb"),
    help="Compare names and dtypes with those of a TypeScript file, - for standard input; exit code 3: they differ.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def profile(*, form: Form | None, registry: BinaryIO | None, as_json: bool) -> None:
    """Show the profile features that the recommender sends on every request."""
    if form is not None and (registry is not None or as_json):
        raise click.UsageError("--format goes with no other option")
    if registry is not None:
        _check(registry, as_json)
    elif form == "ts":
        click.echo(as_typescript(), nl=False)
    elif form == "json-schema":
        print_json(as_json_schema())
    elif as_json:
        print_json([attrs.asdict(feature) for feature in PROFILE])
    else:
        rows = ((f.name, f.dtype, f.unit, _limit(f.low), _limit(f.high), f.meaning) for f in PROFILE)
        print_table(("name", "dtype", "unit", "low", "high", "meaning"), rows)


def _limit(value: float | None) -> str:
    return "-" if value is None else json.dumps(value)


def _check(registry: BinaryIO, as_json: bool) -> None:
    differences = _differences(registry)
    if as_json:
        print_json([attrs.asdict(difference) for difference in differences])
    else:
        _print_differences(registry, differences)
    if differences:
        raise click.exceptions.Exit(3)


def _differences(registry: BinaryIO) -> Sequence[Difference]:
    try:
        content = registry.read(MAX_SOURCE_BYTES + 1)
        if len(content) > MAX_SOURCE_BYTES:
            raise click.BadParameter(f"{registry.name} has more than {MAX_SOURCE_BYTES} bytes", param_hint="--check")
        return compare(content.decode())
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{registry.name} is no UTF-8", param_hint="--check") from error
    except ContractError as error:
        place = one_line(f"{registry.name}:{error.line}: {error.problem}")
        raise click.BadParameter(place, param_hint="--check") from error


def _print_differences(registry: BinaryIO, differences: Sequence[Difference]) -> None:
    for difference in differences:
        place = "" if difference.line is None else f", line {difference.line}"
        click.echo(one_line(f"{difference}{place}"))
    if not differences:
        click.echo(one_line(f"{registry.name} has the same {len(PROFILE)} features"))
