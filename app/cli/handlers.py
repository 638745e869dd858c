"""``handlers``: what runs, on which subject, under which policy."""

import attrs
import click

from app.cli.session import HasEnvironment, print_json, print_table
from app.main import build
from app.settings import Settings, load_settings
from streams.service import consumer_specs


def describe_handlers(settings: Settings) -> list[dict[str, object]]:
    """One record a handler: identity, subject, stream, durable, event type, key, policy and tables."""
    app = build(settings)
    specs = {spec.table: spec for spec in consumer_specs(app.subject_tables, settings.nats_durable_prefix)}
    rows: list[dict[str, object]] = []
    for table in app.subject_tables:
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
                    "key": table.key if isinstance(table.key, str) else table.key.__name__,
                    "tables": [rows_table.name for rows_table in table.tables],
                    "policy": policy,
                }
            )
    return rows


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
    columns = ("handler", "subject", "stream", "durable", "event", "key")
    print_table(columns, ([row[column] for column in columns] for row in found))
