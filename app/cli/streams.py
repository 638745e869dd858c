"""``streams plan`` and ``streams apply``: how the server's streams and durables differ from what is declared."""

import sys

import click

from app.cli.session import HasEnvironment, connected, print_json, print_table, run_command
from app.main import build, check_state_dir
from app.settings import Settings, load_settings
from state.schema import create_database, examine_database, has_database
from state.store import store_path
from streams.broker import Broker
from streams.provision import apply as apply_steps
from streams.provision import plan as plan_steps
from streams.service import consumer_specs
from streams.topology import STREAMS, Step

NO_STORE = "(none yet)"


@click.group("streams")
def streams() -> None:
    """Compare the server's streams and durables with what is declared, and change them."""


@streams.command("plan")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def plan(obj: HasEnvironment, as_json: bool) -> None:
    """Show what 'streams apply' would do; exit code 3 when that is anything."""
    steps = run_command(_plan(load_settings(obj.env)))
    _print_steps(steps, as_json)
    if any(step.action != "none" for step in steps):
        sys.exit(3)


@streams.command("apply")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def apply(obj: HasEnvironment, as_json: bool) -> None:
    """Create what is missing and change what differs; what belongs to another store is left alone."""
    steps = run_command(_apply(load_settings(obj.env)))
    _print_steps(steps, as_json)
    if any(step.action == "refused" for step in steps):
        sys.exit(1)


async def _plan(settings: Settings) -> list[Step]:
    path = store_path(settings.state_dir)
    store_id = examine_database(path, is_deep=False) if has_database(path) else NO_STORE
    async with connected(settings) as broker:
        return await _compare(settings, broker, store_id)


async def _apply(settings: Settings) -> list[Step]:
    check_state_dir(settings.state_dir)
    path = store_path(settings.state_dir)
    create_database(path)
    store_id = examine_database(path, is_deep=False)
    async with connected(settings) as broker:
        steps = await _compare(settings, broker, store_id)
        specs = consumer_specs(build(settings).subject_tables, settings.nats_durable_prefix)
        await apply_steps(broker, steps, STREAMS, specs, replicas=settings.stream_replicas, store_id=store_id)
    return steps


async def _compare(settings: Settings, broker: Broker, store_id: str) -> list[Step]:
    specs = consumer_specs(build(settings).subject_tables, settings.nats_durable_prefix)
    return await plan_steps(broker, STREAMS, specs, replicas=settings.stream_replicas, store_id=store_id)


def _print_steps(steps: list[Step], as_json: bool) -> None:
    if as_json:
        fields = ("kind", "name", "action", "reason")
        print_json(
            [
                {field: getattr(step, field) for field in fields}
                | {"differences": [{"field": d.field, "wanted": d.wanted, "found": d.found} for d in step.differences]}
                for step in steps
            ]
        )
        return
    rows = ((step.kind, step.name, step.action, step.reason or "; ".join(map(str, step.differences))) for step in steps)
    print_table(("kind", "name", "action", "difference"), rows)
