"""What commands share: the event loop, a connection to the NATS that the settings name, and output.

With no worker running, a command starts the embedded server on the same data for as long as it runs.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cards import open_registry
from app.logs import configure_logging, one_line
from app.main import App, access_of, build
from app.settings import Settings, load_settings
from models.errors import BrokerUnavailable, SettingsError
from models.registry import Registry
from streams.broker import Broker
from streams.server import EmbeddedServer

CONNECT_S = 10.0

ResultT = TypeVar("ResultT")


class HasEnvironment(Protocol):
    """What the group hands to every command."""

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that the settings are read from."""


def build_app(settings: Settings) -> App:
    """Builds the app, with a line on stderr for each plugin that is left out.

    Raises:
        PluginError: as ``build`` does.
    """
    app = build(settings)
    for refused in app.refused:
        click.echo(f"warning: left out: {one_line(refused)}", err=True)
    return app


def registry_of(obj: HasEnvironment) -> Registry:
    """The registry that the settings name.

    Raises:
        SettingsError: they want none.
    """
    registry = open_registry(load_settings(obj.env))
    if registry is None:
        raise SettingsError("MODEL_REGISTRY", "none", "this command needs a registry: unset it, or name a folder")
    return registry


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where the platform has it."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop  # not to be had on Windows

    return uvloop.new_event_loop()


def run_command(command: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Runs a command's coroutine, with warnings and errors logged to stderr."""
    configure_logging("error", "text", sys.stderr)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(command)


@contextlib.asynccontextmanager
async def connected(settings: Settings, *, connect_s: float = CONNECT_S) -> AsyncIterator[Broker]:
    """A connection that answers.

    Args:
        connect_s: seconds after which a server that does not answer is given up.

    Raises:
        SettingsError: NATS is disabled.
        BrokerUnavailable: no server answered in time.
    """
    if settings.nats_mode == "disabled":
        raise SettingsError("NATS_URL", "", "this command needs NATS: unset it, or name a server")
    async with contextlib.AsyncExitStack() as stack:
        urls = settings.nats_urls
        if settings.nats_mode == "embedded":
            server = await stack.enter_async_context(EmbeddedServer(settings.state_dir, settings.nats_embedded_port))
            urls = (server.url,)
        broker = await stack.enter_async_context(Broker(urls, name="tipstream-cli", access=access_of(settings)))
        try:
            await asyncio.wait_for(broker.connected.wait(), connect_s)
        except TimeoutError as error:
            raise BrokerUnavailable(f"NATS does not answer within {connect_s:g} s ({broker.error})") from error
        yield broker


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table on a terminal, and elsewhere a line a row, its cells between tabs."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        for row in rows:
            click.echo("\t".join(one_line(str(cell)) for cell in row))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(str(cell))) for cell in row))
    console.print(table)


def print_json(value: object) -> None:
    """Prints JSON for other programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
