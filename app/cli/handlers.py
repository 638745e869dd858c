"""``handlers``: what runs, on which subject, under which policy."""

from collections.abc import Sequence

import attrs
import click

from app.cli.session import HasEnvironment, build_app, print_json, print_table
from app.settings import Settings, load_settings
from streams.service import consumer_specs
from streams.subjects import Handler, SubjectTable
from streams.ticks import Tick


def describe_handlers(settings: Settings) -> list[dict[str, object]]:
    """One record a handler: identity, subject, stream, durable, event type, key, policy, tables and plugin."""
    app = build_app(settings)
    plugins = {table.name: plugin.name for plugin in app.plugins for table in plugin.subject_tables}
    found = describe_tables(app.subject_tables, settings)
    return [row | {"plugin": plugins[str(row["handler"]).partition(".")[0]]} for row in found]


def describe_tables(tables: Sequence[SubjectTable], settings: Settings) -> list[dict[str, object]]:
    """The records of the handlers of these tables; ``timer`` says when one fires, and is None for other events."""
    specs = {spec.table: spec for spec in consumer_specs(tables, settings.nats_durable_prefix)}
    rows: list[dict[str, object]] = []
    for table in tables:
        for handler in table.handlers:
            policy = attrs.asdict(handler.policy, value_serializer=lambda _i, _a, v: _plain(v))
            policy["max_deliver"] = handler.policy.max_deliver or settings.nats_max_deliver
            rows.append(
                {
                    "handler": handler.name,
                    "subject": handler.subject,
                    "stream": specs[table.name].stream,
                    "durable": specs[table.name].durable,
                    "event": handler.event.__name__,
                    "fields": [field.name for field in attrs.fields(handler.event)],
                    "key": _key(table, handler),
                    "timer": handler.timer and handler.timer.schedule,
                    "tables": [rows_table.name for rows_table in table.tables],
                    "policy": policy,
                }
            )
    return rows


def _key(table: SubjectTable, handler: Handler) -> str:
    """What names the lane; a tick's lane is its name, whatever the table says."""
    if handler.event is Tick:
        return "name"
    return table.key if isinstance(table.key, str) else table.key.__name__


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, tuple) else getattr(value, "__name__", value)


@click.command("handlers")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def handlers(obj: HasEnvironment, as_json: bool) -> None:
    """List the handlers with their subjects, durables and policies."""
    found = describe_handlers(load_settings(obj.env))
    if as_json:
        print_json(found)
        return
    columns = ("handler", "subject", "stream", "durable", "event", "key", "plugin")
    print_table(columns, ([row[column] for column in columns] for row in found))
