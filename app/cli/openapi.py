"""``schema openapi``: the OpenAPI document of all routes, those of plugins among them, without a worker."""

import click

from app.cli.session import HasEnvironment, build_app, print_json
from app.settings import load_settings


@click.command("openapi")
@click.pass_obj
def openapi(obj: HasEnvironment) -> None:
    """Print the OpenAPI 3.1 document that a worker with these settings shows at /openapi.json."""
    print_json(build_app(load_settings(obj.env)).openapi())
