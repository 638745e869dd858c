"""``prompts report``: how the prompt variants do, as a table, as JSON, or drawn into a file."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import attrs
import click

from app.analytics import read_report
from app.cli.session import HasEnvironment, print_json, print_table
from app.logs import one_line
from app.settings import load_settings
from models.errors import ReportError
from models.rewards import RewardReport, VariantReport
from state.store import store_path

LABEL_LENGTH = 40
"""Characters of a version that fit beside a picture."""

_DAY = click.DateTime(formats=["%Y-%m-%d"])


@click.command("report")
@click.option("--from", "since", type=_DAY, help="First day (UTC).")
@click.option("--to", "until", type=_DAY, help="Last day (UTC).")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw acceptance into a file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@click.pass_obj
def report_command(
    obj: HasEnvironment, *, since: dt.datetime | None, until: dt.datetime | None, png: Path | None, as_json: bool
) -> None:
    """Show how the variants do: acceptance with its interval, cost, latency.

    A reward counts on the day it occurred, not its tip's, and one still to come counts as none: let the days be many
    more than a reward takes, and a new variant run as long.
    """
    first, last = (day.date() if day else None for day in (since, until))
    if first and last and first > last:
        raise click.BadParameter(f"expected a day up to {last.isoformat()}", param_hint="--from")
    report = read_report(store_path(load_settings(obj.env).state_dir), since=first, until=last)
    if png:
        draw_report(report, png)
    if as_json:
        print_json(attrs.asdict(report))
        return
    outcome = ("variant", "acceptance", "interval", "impressions", "rewards", "mean reward", "cost/accepted")
    rows = ((*_outcome(one), *_service(one)) for one in report.variants)
    print_table((*outcome, "p50 ms", "p95 ms", "fallbacks", "failed checks"), rows)
    click.echo(one_line(report.summary))  # an event may name a version that holds anything
    if report.unattributed:
        click.echo(f"Rewards that name no variant: {report.unattributed}.")


def _outcome(one: VariantReport) -> Iterator[str]:
    yield one.version
    yield _shown(one.acceptance, "{:.1%}")
    yield f"{one.interval.low:.1%} to {one.interval.high:.1%}"
    yield f"{'~' if one.is_estimated else ''}{one.impressions}"
    yield str(one.rewards)
    yield _shown(one.reward_mean, "{:.3f}")
    yield _shown(one.cost_per_accepted_usd, "{:.6f} USD")


def _service(one: VariantReport) -> Iterator[str]:
    yield _shown(one.latency_p50_ms, "{:.0f}")
    yield _shown(one.latency_p95_ms, "{:.0f}")
    yield str(one.fallbacks)
    yield str(one.failed_checks)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _label(version: str) -> str:
    shown = one_line(version)
    return shown if len(shown) <= LABEL_LENGTH else shown[:LABEL_LENGTH] + "…"


def draw_report(report: RewardReport, file: Path) -> None:
    """Draws the acceptance of each variant with its interval.

    Raises:
        ReportError: what draws is not installed, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # heavy, and an extra
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("--png needs matplotlib: pip install 'tipstream[report]'") from error
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(report.variants)), layout="constrained")
    axes = figure.subplots()
    shown = [one for one in reversed(report.variants) if one.acceptance is not None]
    for place, one in enumerate(shown):
        middle, low, high = (100 * value for value in (one.acceptance or 0.0, one.interval.low, one.interval.high))
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", capsize=4, color="#20639b")
    axes.set_yticks(range(len(shown)), [f"{_label(one.version)} ({one.trials})" for one in shown], parse_math=False)
    axes.set_ylim(-0.5, max(len(shown), 1) - 0.5)
    axes.set_xlabel(f"accepted, % of {report.denominator}, with intervals that hold at every look")
    try:
        with file.open("wb") as out:
            FigureCanvasAgg(figure).print_png(out)  # type: ignore[no-untyped-call]  # it has no types
    except OSError as error:
        raise ReportError(f"{file} can't be written ({error.strerror})") from error
