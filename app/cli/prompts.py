"""``prompts``: which variants there are, what one of them says, and what it makes of a context."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import attrs
import click

from app.cli.session import HasEnvironment, build_app, print_json, print_table
from app.logs import one_line
from app.settings import Settings, load_settings
from prompts.registry import SHIPPED, Variant, load_variants


@click.group("prompts")
def prompts() -> None:
    """Look at the prompt variants, and render one."""


@prompts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def list_(obj: HasEnvironment, *, as_json: bool) -> None:
    """List the variants with their variables and purposes."""
    variants = _variants(load_settings(obj.env))
    if as_json:
        print_json([_facts(variant) for variant in variants.values()])
        return
    rows = ((v.version, v.content_hash, ", ".join(v.variables), v.purpose) for v in variants.values())
    print_table(("version", "hash", "variables", "purpose"), rows)


@prompts.command("show")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="Print what it declares as a JSON object instead of the file.")
@click.pass_obj
def show(obj: HasEnvironment, version: str, *, as_json: bool) -> None:
    """Print a variant's file as it is."""
    variant = _find(load_settings(obj.env), version)
    if as_json:
        print_json(_facts(variant))
    else:
        click.echo(variant.file.read_text(encoding="utf-8-sig"), nl=False)


@prompts.command("render")
@click.argument("version")
@click.option(
    "--context", type=click.File("rb"), required=True, help="A file with the variables as JSON; - for standard input."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def render(obj: HasEnvironment, version: str, *, context: BinaryIO, as_json: bool) -> None:
    """Print the messages that a variant makes of a context."""
    messages = _find(load_settings(obj.env), version).render(_read(context))
    if as_json:
        print_json(attrs.asdict(messages))
        return
    for name, text in attrs.asdict(messages).items():
        click.echo(f"--- {name}")
        for line in text.split("\n"):
            click.echo(one_line(line))


def _folders(settings: Settings) -> list[Path]:
    """Where variants are."""
    return [SHIPPED, *build_app(settings).prompt_folders]


def _variants(settings: Settings) -> Mapping[str, Variant]:
    return load_variants(_folders(settings))


def _find(settings: Settings, version: str) -> Variant:
    variants = _variants(settings)
    if version not in variants:
        raise click.BadParameter(f"no variant {version!r}; there is {', '.join(variants)}", param_hint="VERSION")
    return variants[version]


def _read(context: BinaryIO) -> Mapping[str, object]:
    try:
        found = json.load(context)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not valid JSON ({error})", param_hint="--context") from error
    if not isinstance(found, dict):
        raise click.BadParameter("expected a JSON object with the variables", param_hint="--context")
    return found


def _facts(variant: Variant) -> dict[str, object]:
    return {
        "version": variant.version,
        "purpose": variant.purpose,
        "variables": dict(variant.variables),
        "hints": attrs.asdict(variant.hints),
        "limits": attrs.asdict(variant.limits),
        "hash": variant.content_hash,
        "file": str(variant.file),
    }
