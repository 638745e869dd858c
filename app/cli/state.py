"""``state``: committed rows and snapshots, read from the store whether or not a worker runs."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version

import attrs
import click

from app.cli.rebuild import rebuild_command, verify_command
from app.cli.session import HasEnvironment, build_app, print_json, print_table
from app.settings import load_settings
from models.codec import encode_json
from models.errors import StoreError
from state.schema import examine_database, has_database
from state.snapshots import FOLDER, count_positions, list_snapshots, take_snapshot
from state.sqlite import SqliteReader
from state.store import StoredRow, store_path


@click.group("state")
def state() -> None:
    """Read the rows that handlers have written, hold them against the streams, and keep snapshots."""


state.add_command(verify_command)
state.add_command(rebuild_command)


@contextlib.contextmanager
def _reader(obj: HasEnvironment) -> Iterator[SqliteReader]:
    path = store_path(load_settings(obj.env).state_dir)
    if not has_database(path):
        raise StoreError(path, "there is no store yet; a worker makes it")
    examine_database(path)
    reader = SqliteReader(path)
    try:
        yield reader
    finally:
        reader.close()


@state.command("get")
@click.argument("table")
@click.argument("key")
@click.pass_obj
def get(obj: HasEnvironment, table: str, key: str) -> None:
    """Print one row as JSON, with the message that wrote it last."""
    with _reader(obj) as reader:
        row = reader.fetch_row(table, key)
        if row is None:
            _check_table(obj, reader, table)
            raise click.ClickException(f"table {table!r} has no row {key!r}")
    print_json(attrs.asdict(row))


@state.command("list")
@click.argument("table", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), help="Rows to print.")
@click.option("--after", help="Print the rows whose keys come after this one.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def list_(obj: HasEnvironment, table: str | None, limit: int, after: str | None, as_json: bool) -> None:
    """List the rows of TABLE by key; without TABLE, the tables that have rows."""
    with _reader(obj) as reader:
        if table is None:
            _print_counts(reader.count_rows(), as_json)
        else:
            _check_table(obj, reader, table)
            _print_rows(reader.list_rows(table, after=after, limit=limit), as_json)


def _check_table(obj: HasEnvironment, reader: SqliteReader, table: str) -> None:
    """Refuses a table that no handler declares and that has no rows."""
    declared = {rows.name for subjects in build_app(load_settings(obj.env)).subject_tables for rows in subjects.tables}
    if table not in (known := declared | reader.count_rows().keys()):
        raise click.ClickException(f"no table {table!r}; there is {', '.join(sorted(known))}")


def _print_counts(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json([{"table": table, "rows": count} for table, count in counts.items()])
    else:
        print_table(("table", "rows"), counts.items())


def _print_rows(rows: list[StoredRow], as_json: bool) -> None:
    if as_json:
        print_json([attrs.asdict(row) for row in rows])
    else:
        lines = ((row.key, encode_json(row.row).decode(), f"{row.stream}:{row.stream_seq}") for row in rows)
        print_table(("key", "row", "written by"), lines)


@state.command("snapshot")
@click.pass_obj
def snapshot(obj: HasEnvironment) -> None:
    """Take a snapshot of the store now; a worker may run meanwhile."""
    settings = load_settings(obj.env)
    with _reader(obj):  # there is a store, and it is sound
        tables = {table.name: table.version for table in build_app(settings).subject_tables}
        taken = take_snapshot(
            store_path(settings.state_dir),
            settings.state_dir / FOLDER,
            reason="asked",
            tables=tables,
            app_version=version("tipstream"),
        )
    click.echo(f"{taken.path} ({taken.size_bytes} bytes)")


@state.command("snapshots")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def snapshots(obj: HasEnvironment, as_json: bool) -> None:
    """List the snapshots of the store, the oldest first."""
    found = list_snapshots(load_settings(obj.env).state_dir / FOLDER)
    if as_json:
        print_json([attrs.asdict(one) | {"positions": count_positions(one)} for one in found])
        return
    rows = (
        (
            one.taken_at.isoformat(timespec="seconds"),
            one.reason,
            one.size_bytes,
            ", ".join(f"{durable} {seq}" for durable, seq in count_positions(one).items()),
            one.path.name,
        )
        for one in found
    )
    print_table(("taken at", "reason", "bytes", "positions", "file"), rows)
