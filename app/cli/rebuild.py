"""``state verify`` and ``state rebuild``: rows held against what the streams make of them, and replaced by it."""

import asyncio
import datetime as dt
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import attrs
import click

from app.cli.instants import InstantParam
from app.cli.owned import owned_store
from app.cli.playback import progress_bar
from app.cli.replay import addresses
from app.cli.session import HasEnvironment, build_app, connected, print_json, print_table
from app.logs import configure_logging
from app.settings import Settings, load_settings
from models.errors import StoreError
from state import ledger
from state.scratch import Scratch
from state.snapshots import FOLDER, list_snapshots, set_aside, take_snapshot
from state.store import store_path
from state.tables import AnyTable
from streams.compare import Difference, changed_fields
from streams.moment import Moment
from streams.offline import Offline
from streams.plan import Plan
from streams.replay import Span, make_plans
from streams.service import consumer_specs
from streams.verify import Verified, verify

Note = Callable[[AnyTable, Difference], None]


@attrs.frozen(kw_only=True)
class Wanted:
    """What is asked for: row tables, none for all, and which snapshots may be used."""

    tables: tuple[str, ...]
    before: dt.datetime | None
    no_snapshot: bool


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.option("--no-snapshot", is_flag=True, help="Begin at the first message, not with a snapshot."),
        click.option("--before", type=InstantParam(), help="Begin with no snapshot taken after this instant."),
        click.argument("tables", nargs=-1, metavar="[TABLE]..."),
    ):
        command = decorate(command)
    return command


@click.command("verify")
@_options
@click.option("--json", "is_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def verify_command(obj: HasEnvironment, /, *, is_json: bool, **asked: Any) -> None:
    """Make the rows of all tables, or some, again with today's handlers, and compare them with the stored ones.

    They begin with the newest snapshot from which the stream still has everything. Nothing is written, and a worker
    may run meanwhile. Exit code 3 when a row differs, 1 when a table can't be made again.
    """
    settings = load_settings(obj.env)
    found: dict[str, list[Difference]] = {}

    def collect(table: AnyTable, difference: Difference) -> None:
        if is_json:
            found.setdefault(table.name, []).append(difference)
        else:
            _print_difference(table, difference)

    with Scratch() as scratch:
        results = _run(settings, Wanted(**asked), scratch, collect)
    if is_json:
        print_json([_as_json(result, found.get(result.table.name, [])) for result in results])
    else:
        _print(results)
    _exit(results)


@click.command("rebuild")
@_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def rebuild_command(obj: HasEnvironment, /, *, yes: bool, **asked: Any) -> None:
    """Replace the rows of all tables, or some, by what today's handlers make of the streams; no worker may run.

    Shows the differences first, as 'state verify' does, and asks. What was there before is kept in a snapshot, and
    snapshots taken after the one that was used are set aside.
    """
    settings, wanted = load_settings(obj.env), Wanted(**asked)
    with owned_store(settings) as store, Scratch() as scratch:
        results = _run(settings, wanted, scratch, _print_difference)
        _print(results)
        chosen = [result for result in results if result.is_proved and not result.plan.failed_count]
        changed = [result.table.name for result in chosen if result.tally.different]
        if not changed:
            click.echo("nothing to replace")
            _exit(results)
            return
        if not yes:
            click.confirm(f"Replace the rows of {', '.join(changed)}?", abort=True)
        folder = settings.state_dir / FOLDER
        tables = {table.name: table.version for table in build_app(settings).subject_tables}
        kept = take_snapshot(
            store.path, folder, reason="before-rebuild", tables=tables, app_version=version("tipstream")
        )
        for snapshot in list_snapshots(folder):  # first, so that none with the former rows outlives a rebuild that died
            if any(_is_after(result.plan, snapshot.taken_at) for result in chosen if result.table.name in changed):
                set_aside(snapshot)
        store.replace_rows(changed, scratch.path)
    click.echo(f"{', '.join(changed)}: replaced; what was there is in {kept.path.name}.set-aside")
    if not all(result.is_proved and not result.plan.failed_count for result in results):
        sys.exit(1)


def _is_after(plan: Plan, taken_at: dt.datetime) -> bool:
    """Whether a snapshot may hold the rows that were replaced."""
    return plan.base is None or taken_at > plan.base.snapshot.taken_at


def _run(settings: Settings, wanted: Wanted, scratch: Scratch, note: Note) -> list[Verified]:
    configure_logging("error", "text", sys.stderr)
    with asyncio.Runner() as runner:  # asyncio's own loop: it is the one whose connections can be refused
        return runner.run(_verify(settings, wanted, scratch, note))


async def _verify(settings: Settings, wanted: Wanted, scratch: Scratch, note: Note) -> list[Verified]:
    app = build_app(settings)
    tables = {table.name: table for table in app.subject_tables}
    specs = consumer_specs(app.subject_tables, settings.nats_durable_prefix)
    declared = {rows.name for table in app.subject_tables for rows in table.tables}
    for name in wanted.tables:
        if name not in declared:
            raise click.UsageError(f"TABLE: no table {name!r}; there is {', '.join(sorted(declared))}")
    chosen = [
        (table, spec)
        for spec in specs
        if (table := tables[spec.table]).tables
        and (not wanted.tables or any(rows.name in wanted.tables for rows in table.tables))
    ]
    snapshots = [] if wanted.no_snapshot else list_snapshots(settings.state_dir / FOLDER)
    if wanted.before:
        snapshots = [snapshot for snapshot in snapshots if snapshot.taken_at < wanted.before]
    async with connected(settings) as broker:
        with Moment(store_path(settings.state_dir)) as moment:
            if not moment.store_id:
                raise StoreError(store_path(settings.state_dir), "there is no store yet; a worker makes it")
            plans = await make_plans(broker, moment, chosen, snapshots)
            with Offline(addresses(broker)), progress_bar(_spans(plans)) as progress:
                found = await verify(
                    broker,
                    moment,
                    plans,
                    scratch,
                    max_deliver=settings.nats_max_deliver,
                    note=lambda table, found: note(table, found) if _is_wanted(table, wanted) else None,
                    progress=progress,
                )
    return [result for result in found if _is_wanted(result.table, wanted)]


def _is_wanted(table: AnyTable, wanted: Wanted) -> bool:
    return not wanted.tables or table.name in wanted.tables


def _spans(plans: Sequence[Plan]) -> dict[str, Span]:
    ends: dict[str, int] = {}
    for plan in plans:
        ends[plan.spec.stream] = max(ends.get(plan.spec.stream, 1), ledger.highest(plan.wanted))
    return {stream: Span(first=1, last=end) for stream, end in ends.items()}


def _print_difference(table: AnyTable, difference: Difference) -> None:
    for path, stored, rebuilt in changed_fields(difference.stored, difference.rebuilt):
        click.echo(f"{table.name}/{difference.key}  {path + ': ' if path else ''}{stored} stored, {rebuilt} rebuilt")


def _print(results: Sequence[Verified]) -> None:
    rows = []
    remarks = []
    for result in results:
        tally, plan = result.tally, result.plan
        proved = plan.proved if result.is_proved else "nothing"
        rows.append((result.table.name, tally.equal + tally.different, tally.equal, tally.different, proved))
        remarks += [f"{result.table.name}: {remark}" for remark in _remarks(plan)]
    print_table(("table", "rows", "equal", "differ", "proved"), rows)
    for remark in remarks:
        click.echo(remark)


def _remarks(plan: Plan) -> Iterator[str]:
    if plan.trouble:
        yield f"can't be made again: {plan.trouble}"
    if plan.failed_count:
        first = plan.failed[0]
        yield (
            f"{plan.failed_count} messages were applied once and fail today, the first at"
            f" {plan.spec.stream}:{first.seq} in {first.handler}: {first.error}"
        )
    if plan.guessed:
        yield f"{plan.guessed} peeks were not kept with their messages; they were answered from the rows made again"
    if plan.known.redriven:
        yield f"{len(plan.known.redriven)} messages were redriven: they ran in the order of the time they were applied"


def _as_json(result: Verified, differences: Sequence[Difference]) -> dict[str, object]:
    plan = result.plan
    return {
        "table": result.table.name,
        "equal": result.tally.equal,
        "different": result.tally.different,
        "proved": plan.proved if result.is_proved else None,
        "snapshot": plan.base.snapshot.path.name if plan.base else None,
        "trouble": plan.trouble,
        "messages": plan.ran,
        "failed": plan.failed_count,
        "first_failed": [attrs.asdict(failed) for failed in plan.failed],
        "guessed_peeks": plan.guessed,
        "redriven": len(plan.known.redriven),
        "differences": [
            {"key": found.key, "stored": _text(found.stored), "rebuilt": _text(found.rebuilt)} for found in differences
        ],
    }


def _text(row: bytes | None) -> object:
    return None if row is None else json.loads(row)


def _exit(results: Sequence[Verified]) -> None:
    if any(result.tally.different or result.plan.failed_count for result in results):
        sys.exit(3)
    if not all(result.is_proved for result in results):
        sys.exit(1)
