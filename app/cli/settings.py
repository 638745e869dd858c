"""``settings``: every setting with its value, where that came from, and what it means.

This module owns how settings look on a terminal, in a pipe and as JSON. A bad setting stops it, as it stops the
worker; app/cli turns that error into one line.
"""

import json
import sys
from collections.abc import Sequence

import attrs
import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from app.cli.session import HasEnvironment
from app.logs import one_line
from app.settings import SettingRow, describe_settings


@click.command("settings")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def settings(obj: HasEnvironment, as_json: bool) -> None:
    """Print every setting: its value, where that came from, what it means."""
    rows = describe_settings(obj.env)
    if as_json:
        click.echo(json.dumps([attrs.asdict(row) for row in rows], indent=2))
    else:
        print_rows(rows, Console(file=sys.stdout))


def print_rows(rows: Sequence[SettingRow], console: Console) -> None:
    """Prints a table on a terminal, and elsewhere a line a setting, its columns between tabs."""
    if not console.is_terminal:
        for row in rows:
            line = "\t".join(one_line(cell) for cell in (row.name, row.value, row.source, row.meaning))
            click.echo(line, file=console.file)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value, and what it means", overflow="fold")
    table.add_column("source", no_wrap=True)
    for row in rows:
        is_ours = row.source == "default"
        value = Text(one_line(row.value), style="" if is_ours else "bold green")
        table.add_row(Text(row.name), Group(value, Text(row.meaning, style="dim")), Text(row.source))
    console.print(table)
