"""The group of all commands: reads the environment once, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage or a bad setting, 3 a difference was found.
"""

import os
import sys
from collections.abc import Mapping
from typing import cast

import attrs
import click

from app.cli.audit import audit
from app.cli.deadletters import deadletters
from app.cli.handlers import handlers
from app.cli.models import models
from app.cli.new import new
from app.cli.prompts import prompts
from app.cli.replay import replay_command
from app.cli.schema import schema
from app.cli.send import send
from app.cli.session import build_app
from app.cli.settings import settings
from app.cli.state import state
from app.cli.streams import streams
from app.cli.worker import worker
from app.logs import one_line
from app.settings import load_settings
from models.errors import AppError, SettingsError

_COMMANDS = "tipstream.commands"


@attrs.frozen
class CliEnv:
    """What every command is given: the environment, as a mapping."""

    env: Mapping[str, str]


class WithPlugins(click.Group):
    """Finds the commands of plugins too, but imports plugins only when a name is none of ours, or all are listed."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As click.Group."""
        return super().get_command(ctx, cmd_name) or _of_plugins(ctx).get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As click.Group."""
        return [*super().list_commands(ctx), *sorted(_of_plugins(ctx))]


def _of_plugins(ctx: click.Context) -> dict[str, click.Command]:
    """The commands that plugins bring; one that can't be loaded brings none, with a line that says why, once."""
    if _COMMANDS not in ctx.meta:
        ctx.meta[_COMMANDS] = _load_commands(ctx)
    return cast(dict[str, click.Command], ctx.meta[_COMMANDS])


def _load_commands(ctx: click.Context) -> dict[str, click.Command]:
    try:
        app = build_app(attrs.evolve(load_settings(ctx.obj.env), plugin_errors="skip"))
    except AppError as error:
        click.echo(f"warning: no plugin's commands: {one_line(str(error))}", err=True)
        return {}
    return {str(command.name): command for command in app.commands}


@click.group(cls=WithPlugins, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Reacts to events on NATS JetStream with exactly-once effects, and answers over HTTP."""


for _command in (
    *(worker, handlers, new, send, replay_command, state),
    *(streams, deadletters, audit, models, prompts, schema, settings),
):
    cli.add_command(_command)


def _environment() -> Mapping[str, str]:
    """The one place in which the environment is read."""
    return os.environ  # noqa: TID251 (this is that place)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits."""
    try:
        cli.main(args=arguments, prog_name="python -m app", obj=CliEnv(_environment()))
    except SettingsError as error:
        click.echo(f"error: {one_line(str(error))}", err=True)
        sys.exit(2)
    except AppError as error:
        click.echo(f"error: {one_line(str(error))}", err=True)
        sys.exit(1)
