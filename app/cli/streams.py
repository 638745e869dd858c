"""``streams plan`` and ``streams apply``: how the server's streams and durables differ from what is declared."""

import sys
from collections.abc import Iterable
from typing import Literal

import click

from app.cli.owned import owned_store
from app.cli.session import HasEnvironment, build_app, connected, print_json, print_table, run_command
from app.main import check_state_dir
from app.settings import Settings, load_settings
from state.schema import create_database, examine_database, has_database
from state.sqlite import SqliteStore
from state.store import store_path
from streams.broker import Broker
from streams.losses import Loss, find_losses
from streams.losses import adopt as adopt_durable
from streams.provision import apply as apply_steps
from streams.provision import plan as plan_steps
from streams.service import all_specs
from streams.topology import STREAMS, ConsumerSpec, Step

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


@streams.command("accept-loss")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def accept_loss(obj: HasEnvironment, yes: bool) -> None:
    """Go on with streams that were made anew or have lost their ends; lists first what was lost.

    Every worker must be stopped. What handlers have written stays; messages that come on sequences of the lost range
    are handled as the new ones they are.
    """
    settings = load_settings(obj.env)
    with owned_store(settings) as store:
        losses = run_command(_find_losses(settings, store))
        if not losses:
            click.echo("nothing was lost")
            return
        for loss in losses:
            click.echo(f"{loss.durable}: {loss.why}")
            click.echo(f"{loss.durable}: lost {_lost(loss)}")
            click.echo(f"{loss.durable}: kept up to sequence {loss.cut}, goes on after sequence {loss.floor.seq}")
        waiting = [loss for loss in losses if not loss.is_over]
        if waiting:
            counts = "; ".join(
                f"{loss.durable}: {loss.above.parked} parked, {loss.above.unsent} to be published" for loss in waiting
            )
            raise click.ClickException(
                f"messages of the lost range still wait ({counts}): run a worker until they don't, which it does even "
                "while it refuses the stream"
            )
        if not yes:
            click.confirm("Accept this?", abort=True)
        for loss in losses:
            store.accept_loss(loss.floor, loss.cut)
    click.echo("accepted; start the worker")


@streams.command("adopt")
@click.argument("durables", nargs=-1, metavar="[DURABLE]...")
@click.option(
    "--at",
    required=True,
    type=click.Choice(["floor", "start"]),
    help="Where to go on without a position of our own: after what the durable has acked, or at the first message.",
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def adopt(obj: HasEnvironment, durables: tuple[str, ...], at: Literal["floor", "start"], yes: bool) -> None:
    """Give durables that belong to another store to this STATE_DIR's; every worker must be stopped.

    The other store's worker will refuse to consume. Rows that it wrote are not in this store; with --at start they are
    made again from the streams, and events that handlers publish are published again.
    """
    settings = load_settings(obj.env)
    specs = all_specs(build_app(settings).subject_tables, settings.nats_durable_prefix)
    known = {spec.durable: spec for spec in specs}
    for durable in durables:
        if durable not in known:
            raise click.UsageError(f"DURABLE: no durable {durable!r}; there is {', '.join(sorted(known))}")
    chosen = [known[durable] for durable in durables] or specs
    if not yes:
        click.confirm(f"Take over {', '.join(spec.durable for spec in chosen)}?", abort=True)
    with owned_store(settings) as store:
        for durable, adopted in run_command(_adopt(settings, store, chosen, at)):
            if adopted is None and durable in durables:
                raise click.ClickException(f"durable {durable} is not there")
            if adopted:
                seq, is_changed = adopted
                click.echo(f"{durable}: {'goes on after sequence' if is_changed else 'was ours already, after'} {seq}")


def _lost(loss: Loss) -> str:
    above = loss.above
    if above.last <= loss.cut:
        return "no message that this store had an outcome of"
    counts = f"{above.applied} applied, {above.dead} dead-lettered, {above.parked} parked"
    return f"sequences {loss.cut + 1} to {above.last} ({counts})"


async def _find_losses(settings: Settings, store: SqliteStore) -> list[Loss]:
    specs = all_specs(build_app(settings).subject_tables, settings.nats_durable_prefix)
    async with connected(settings) as broker:
        return await find_losses(broker, store, specs)


async def _adopt(
    settings: Settings, store: SqliteStore, specs: Iterable[ConsumerSpec], at: Literal["floor", "start"]
) -> list[tuple[str, tuple[int, bool] | None]]:
    async with connected(settings) as broker:
        return [(spec.durable, await adopt_durable(broker, store, spec, at)) for spec in specs]


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
        specs = all_specs(build_app(settings).subject_tables, settings.nats_durable_prefix)
        await apply_steps(broker, steps, STREAMS, specs, replicas=settings.stream_replicas, store_id=store_id)
    return steps


async def _compare(settings: Settings, broker: Broker, store_id: str) -> list[Step]:
    specs = all_specs(build_app(settings).subject_tables, settings.nats_durable_prefix)
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
