"""``prompts``: which variants there are, what one of them says, how two differ, and what one makes of a context.

These commands only look: they release nothing. What a worker would not serve is in the list, and else a warning
on stderr.
"""

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import attrs
import click

from app.cli.report import report_command
from app.cli.session import HasEnvironment, build_app, print_json, print_table
from app.logs import one_line
from app.prompts import open_catalog
from app.settings import load_settings
from prompts.catalog import Catalog, Listed
from prompts.registry import Variant


@click.group("prompts")
def prompts() -> None:
    """Look at the prompt variants, and render one."""


@prompts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def list_(obj: HasEnvironment, *, as_json: bool) -> None:
    """List the files with their versions and purposes, and why one is not served.

    A model was asked with a released one, which stays what it was then; a modified one has changed since and is not
    served; a draft may still change; a broken one is no variant.
    """
    catalog = _open(obj)
    found = catalog.list_all()
    _warn(problem for problem in catalog.problems if problem not in [one.problem for one in found])
    if as_json:
        print_json([_facts(one.variant) | _standing(one) for one in found])
        return
    print_table(("version", "state", "purpose", "file", "problem"), map(_row, found))


@prompts.command("show")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="Print what it declares as a JSON object instead of the file.")
@click.pass_obj
def show(obj: HasEnvironment, version: str, *, as_json: bool) -> None:
    """Print a variant's file as it is."""
    variant = _find(_catalog(obj), version)
    if as_json:
        print_json(_facts(variant))
    else:
        click.echo(_text(variant), nl=False)


@prompts.command("diff")
@click.argument("a")
@click.argument("b")
@click.pass_obj
def diff(obj: HasEnvironment, a: str, b: str) -> None:
    """Print what changes from variant A to variant B; exit code 3 when anything does."""
    catalog = _catalog(obj)
    old, new = _find(catalog, a, "A"), _find(catalog, b, "B")
    lines = list(difflib.unified_diff(_text(old).splitlines(), _text(new).splitlines(), a, b, lineterm=""))
    for line in lines:
        click.echo(one_line(line))
    if lines:
        sys.exit(3)


@prompts.command("render")
@click.argument("version")
@click.option(
    "--context", type=click.File("rb"), required=True, help="A file with the variables as JSON; - for standard input."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def render(obj: HasEnvironment, version: str, *, context: BinaryIO, as_json: bool) -> None:
    """Print the messages that a variant makes of a context."""
    messages = _find(_catalog(obj), version).render(_read(context))
    if as_json:
        print_json(attrs.asdict(messages))
        return
    for name, text in attrs.asdict(messages).items():
        click.echo(f"--- {name}")
        for line in text.split("\n"):
            click.echo(one_line(line))


def _catalog(obj: HasEnvironment) -> Catalog:
    catalog = _open(obj)
    _warn(catalog.problems)
    return catalog


def _open(obj: HasEnvironment) -> Catalog:
    settings = load_settings(obj.env)
    return open_catalog(settings, build_app(settings).prompt_folders)


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        click.echo(f"warning: {one_line(problem)}", err=True)


def _find(catalog: Catalog, version: str, argument: str = "VERSION") -> Variant:
    if version not in catalog.variants:
        known = ", ".join(catalog.variants)
        raise click.BadParameter(f"no variant {version!r}; there is {known}", param_hint=argument)
    return catalog.variants[version]


def _text(variant: Variant) -> str:
    return variant.file.read_text(encoding="utf-8-sig")


def _row(listed: Listed) -> tuple[str, ...]:
    variant = listed.variant
    version, purpose = (variant.version, variant.purpose) if variant else ("-", "-")
    where, problem = f"prompt {listed.file}:", listed.problem or "-"
    after = problem.removeprefix(where).strip()  # the file has a column of its own, and a line stays before the rest
    return version, listed.state, purpose, str(listed.file), f"line {after}" if after[0].isdigit() else after


def _read(context: BinaryIO) -> Mapping[str, object]:
    try:
        found = json.load(context)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not valid JSON ({error})", param_hint="--context") from error
    if not isinstance(found, dict):
        raise click.BadParameter("expected a JSON object with the variables", param_hint="--context")
    return found


def _facts(variant: Variant | None) -> dict[str, object]:
    if variant is None:
        return {"version": None}
    return {
        "version": variant.version,
        "purpose": variant.purpose,
        "variables": dict(variant.variables),
        "hints": attrs.asdict(variant.hints),
        "limits": attrs.asdict(variant.limits),
        "hash": variant.content_hash,
        "file": str(variant.file),
    }


def _standing(listed: Listed) -> dict[str, object]:
    return {"file": str(listed.file), "state": listed.state, "problem": listed.problem}


prompts.add_command(report_command)
