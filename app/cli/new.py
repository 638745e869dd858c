"""``new handler``: writes the module of a new handler, and a test of it that passes.

The event type is inferred from what is stored on the subject. Nothing that exists is changed, and nothing is written
unless all of it can be.
"""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import attrs
import click

import streams.handlers
from app.cli.session import HasEnvironment, build_app, connected, run_command
from app.logs import one_line
from app.scaffold import Draft, Names, names_for, render_module, render_test, try_out
from app.settings import Settings, load_settings
from models.errors import BrokerError, DeclarationError, StoreError
from models.shapes import Field, Shape, objects_of, shape_of
from streams.patterns import is_subject
from streams.sampling import newest_payloads
from streams.subjects import SubjectTable
from streams.topology import STREAMS, stream_of

SAMPLE_COUNT = 200
CONNECT_S = 3.0
MINIMAL = Shape(fields=(Field(name="user_id", annotation="str", is_filled=True),))


@attrs.frozen(kw_only=True)
class Target:
    """Where a handler goes: its two files, the module's dotted name, and the folder from which that is imported."""

    module_file: Path
    test_file: Path
    module: str
    root: Path
    is_plugin: bool


@click.group("new")
def new() -> None:
    """Write the beginning of something new."""


@new.command("handler")
@click.argument("subject")
@click.option("--name", help="The handler's name; by default the subject's, without its first token.")
@click.option("--table", help="The table's name; by default the subject's second token in the plural.")
@click.option("--plugin", type=click.Path(file_okay=False, path_type=Path), help="A folder to write into instead.")
@click.pass_obj
def handler(obj: HasEnvironment, subject: str, *, name: str | None, table: str | None, plugin: Path | None) -> None:
    """Write a module with a handler of SUBJECT, and a test of it.

    The event type has the fields of the newest 200 messages that are stored on SUBJECT.
    """
    settings = load_settings(obj.env)
    stream = _stream_of(subject)
    names = _names(subject, name, table)
    _refuse_clashes(names, build_app(settings).subject_tables)
    target = _target(names, plugin)
    payloads, trouble = run_command(_sample(settings, stream, subject))
    objects = objects_of(payloads)
    shape = shape_of(objects) if objects else MINIMAL
    draft = Draft(names=names, shape=shape, sampled=len(objects), module=target.module, is_plugin=target.is_plugin)
    module = render_module(draft)
    good, problems = try_out(module, payloads)
    _write({target.module_file: module, target.test_file: render_test(draft)})
    for line in (*_written(target), *_judged(draft, good, problems, trouble), *_next(target)):
        click.echo(line)


def _stream_of(subject: str) -> str:
    """The stream that takes a subject.

    Raises:
        click.BadParameter: it is a pattern, no subject, or no stream for handlers takes it.
    """
    if not is_subject(subject):
        wanted = "expected tokens parted by dots, without '*', '>' or blanks"
        raise click.BadParameter(f"{wanted}, got {subject!r}", param_hint="SUBJECT")
    try:
        return stream_of([subject], [spec for spec in STREAMS if spec.is_public], "SUBJECT").name
    except DeclarationError as error:
        raise click.BadParameter(error.problem, param_hint="SUBJECT") from error


def _names(subject: str, name: str | None, table: str | None) -> Names:
    try:
        return names_for(subject, name=name, table=table)
    except DeclarationError as error:
        raise click.BadParameter(error.problem, param_hint=error.where) from error


def _refuse_clashes(names: Names, tables: Sequence[SubjectTable]) -> None:
    for table in tables:
        if found := table.handler_for(names.subject):
            raise click.BadParameter(f"{found.name} handles {names.subject!r} already", param_hint="SUBJECT")
        if names.table in (table.name, table.renamed_from):
            raise click.BadParameter(f"there is a subject table {names.table!r} already", param_hint="--table")
        if names.table in {rows.name for rows in table.tables}:
            problem = f"{names.table!r} is a table of subject table {table.name!r} already"
            raise click.BadParameter(problem, param_hint="--table")


def _target(names: Names, plugin: Path | None) -> Target:
    """Where the files go.

    Raises:
        click.ClickException: one of them is there already, or there is no checkout to write into.
        click.BadParameter: the module would stand before another one of its name.
    """
    target = _plugin_target(names, plugin) if plugin else _checkout_target(names)
    for file in (target.module_file, target.test_file):
        if file.exists() or file.is_symlink():
            raise click.ClickException(f"{_shown(file)} is there already: give another --name, or remove it")
    if "." not in target.module and find_spec(target.module) is not None:
        problem = f"there is a module {target.module!r} already, which it would hide"
        raise click.BadParameter(problem, param_hint="--name")
    return target


def _checkout_target(names: Names) -> Target:
    handlers = Path(streams.handlers.__file__).parent
    root = handlers.parents[1]
    tests = root / "tests" / "unit" / "streams" / "handlers"
    if not ((root / "setup.cfg").is_file() and tests.is_dir()):
        raise click.ClickException("this is an installed application, no checkout: name a folder with --plugin")
    return Target(
        module_file=handlers / f"{names.name}.py",
        test_file=tests / f"test_{names.name}.py",
        module=f"streams.handlers.{names.name}",
        root=root,
        is_plugin=False,
    )


def _plugin_target(names: Names, folder: Path) -> Target:
    """Where the files go in a folder that may be a package."""
    root = folder.resolve()
    parts = [names.name]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    return Target(
        module_file=folder / f"{names.name}.py",
        test_file=folder / f"test_{names.name}.py",
        module=".".join(parts),
        root=root,
        is_plugin=True,
    )


async def _sample(settings: Settings, stream: str, subject: str) -> tuple[list[bytes], str]:
    """The newest payloads of a subject, and why there are none where they could not be read."""
    if settings.nats_mode == "disabled":
        return [], "NATS is disabled (NATS_URL is empty)"
    try:
        async with connected(settings, connect_s=CONNECT_S) as broker:
            return await newest_payloads(broker, stream, subject, SAMPLE_COUNT), ""
    except (BrokerError, StoreError) as error:
        return [], one_line(str(error))


def _write(files: dict[Path, str]) -> None:
    """Writes new files, all or none.

    Raises:
        click.ClickException: one can't be written.
    """
    with contextlib.ExitStack() as undo:
        for file, text in files.items():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("x", encoding="utf-8") as out:
                    undo.callback(file.unlink)
                    out.write(text)
            except OSError as error:
                raise click.ClickException(f"{_shown(file)} can't be written ({error.strerror})") from error
        undo.pop_all()


def _written(target: Target) -> Iterator[str]:
    yield f"wrote {_shown(target.module_file)}"
    yield f"wrote {_shown(target.test_file)}"


def _judged(draft: Draft, good: int, problems: Sequence[str], trouble: str) -> Iterator[str]:
    """What is known of the event type."""
    event, subject = draft.names.event, draft.names.subject
    total = good + len(problems)
    if trouble:
        yield f"{event} has user_id only, for stored messages could not be read: {trouble}"
    elif not total:
        yield f"{event} has user_id only, for no message is stored on {subject}"
    else:
        but = f"; not, say: {one_line(problems[0])}" if problems else ""
        yield f"{event} decodes {good} of the {total} messages that were read on {subject}{but}"


def _next(target: Target) -> Iterator[str]:
    yield "next:"
    test, path = shlex.quote(str(_shown(target.test_file))), shlex.quote(str(_shown(target.root)))
    before = f"PYTHONPATH={path} " if target.is_plugin else ""
    plugin = f"PLUGINS={target.module} " if target.is_plugin else ""
    yield f"  {before}python -m pytest {test}"
    yield f"  {before}{plugin}python -m app worker --reload"


def _shown(path: Path) -> Path:
    """A path as a person at this place would type it."""
    here, there = Path.cwd(), path.resolve()
    return there.relative_to(here) if there.is_relative_to(here) else there
