"""``worker``: consume, and answer over HTTP, until told to stop."""

import asyncio
import sys

import click

from app.cli.session import HasEnvironment, new_event_loop
from app.logs import configure_logging
from app.main import run
from app.reload import run_reloading, watched_for, worker_command
from app.settings import load_settings


@click.command("worker")
@click.option("--reload", "is_reloading", is_flag=True, help="Start anew when code changes; for development.")
@click.pass_obj
def worker(obj: HasEnvironment, *, is_reloading: bool) -> None:
    """Run the worker: handlers on NATS JetStream, HTTP views beside them."""
    settings = load_settings(obj.env)
    configure_logging(settings.log_level, settings.log_format, sys.stderr)
    if is_reloading:
        sys.exit(asyncio.run(run_reloading(worker_command(), obj.env, watched_for(settings.plugins))))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(settings))
