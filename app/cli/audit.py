"""``audit``: proves that every message of the streams has exactly one outcome, or says which have not."""

import sys
from collections.abc import Iterable

import click

from app.cli.session import HasEnvironment, build_app, connected, print_json, print_table, run_command
from app.settings import Settings, load_settings
from state.store import store_path
from streams.audit import Report, audit_tables
from streams.service import consumer_specs


@click.command("audit")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--from", "first_seq", default=1, show_default=True, type=click.IntRange(1), help="First sequence.")
@click.option("--to", "last_seq", type=click.IntRange(1), help="Last sequence; the stream's last one if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def audit(obj: HasEnvironment, tables: tuple[str, ...], first_seq: int, last_seq: int | None, *, as_json: bool) -> None:
    """Hold the store against the streams, for all subject tables or some.

    Every matching message is applied, dead-lettered, pending or skipped. Exit code 3 when one is in none of these, was
    applied twice, or was dropped by its stream before it was read. A worker may run meanwhile.
    """
    if last_seq is not None and last_seq < first_seq:
        raise click.UsageError(f"--to {last_seq} is below --from {first_seq}")
    reports = run_command(_audit(load_settings(obj.env), tables, first_seq, last_seq))
    if as_json:
        print_json([_as_json(report) for report in reports])
    else:
        _print_reports(reports)
    if not all(report.is_good for report in reports):
        sys.exit(3)


async def _audit(settings: Settings, tables: tuple[str, ...], first_seq: int, last_seq: int | None) -> list[Report]:
    specs = consumer_specs(build_app(settings).subject_tables, settings.nats_durable_prefix)
    known = {spec.table for spec in specs}
    for table in tables:
        if table not in known:
            raise click.UsageError(f"TABLE: no subject table {table!r}; there is {', '.join(sorted(known))}")
    chosen = [spec for spec in specs if not tables or spec.table in tables]
    async with connected(settings) as broker:
        return await audit_tables(
            broker, store_path(settings.state_dir), chosen, first_seq=first_seq, last_seq=last_seq
        )


def _as_json(report: Report) -> dict[str, object]:
    return {
        "durable": report.durable,
        "stream": report.stream,
        "first_seq": report.first_seq,
        "last_seq": report.last_seq,
        "matched": report.matched,
        **{str(name): count for name, count in report.counts.items()},
        "waiting": report.waiting_count,
        "expired": report.expired.count,
        "expired_ranges": report.expired.shown,
        "gaps": report.gaps.count,
        "gap_ranges": report.gaps.shown,
        "lost_ranges": report.lost,
        "read_from": report.read_from,
        "removed": report.removed,
        "problems": report.problems,
        "good": report.is_good,
    }


def _print_reports(reports: Iterable[Report]) -> None:
    columns = ("durable", "sequences", "matched", "applied", "dead", "pending", "skipped", "expired", "gaps")
    rows = []
    remarks = []
    for report in reports:
        counts = [report.counts[name] for name in ("applied", "dead", "pending", "skipped")]
        span = f"{report.first_seq} to {report.last_seq}"
        rows.append((report.durable, span, report.matched, *counts, report.expired.count, report.gaps.count))
        remarks += [f"{report.durable}: {remark}" for remark in _remarks(report)]
    print_table(columns, rows)
    for remark in remarks:
        click.echo(remark)


def _remarks(report: Report) -> list[str]:
    said = [f"{subject} is read from sequence {seq} on" for subject, seq in sorted(report.read_from.items())]
    if sum(report.removed.values()):
        applied, dead = report.removed["applied"], report.removed["dead"]
        said.append(f"removed from the stream since: {applied} applied, {dead} dead-lettered")
    if report.gaps.count:
        said.append(f"no outcome: {report.gaps}")
    if report.expired.count:
        said.append(f"dropped by the stream before they had an outcome: {report.expired}")
    said += [f"lost with the end of the stream: {first} to {last}" for first, last in report.lost]
    return said + report.problems
