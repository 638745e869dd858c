"""Plugins: how they are found, loaded and checked before anything of theirs joins the app.

A plugin is a module. Its ``setup(app)`` is called if it has one; otherwise its SubjectTable, RouteTableDef and click
command objects are taken. Three ways lead to one: a file in ``streams/handlers/``, the entry-point group
``tipstream.plugins``, and the setting PLUGINS. What a plugin declares is collected first and checked against everything
that is there, so that one that is refused leaves nothing behind; app/main.py takes it over.
"""

import importlib
import importlib.util
import inspect
import operator
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import attrs
import click
from aiohttp import web

from models.errors import AppError, DeclarationError, PluginError
from prompts.registry import SHIPPED, load_variants
from streams import handlers
from streams.service import consumer_specs
from streams.subjects import SubjectTable

GROUP = "tipstream.plugins"
OUR_COMMANDS = frozenset(
    (
        *("audit", "deadletters", "handlers", "new", "prompts", "replay", "send", "settings", "state", "streams"),
        "worker",
    )
)
"""Names that no plugin's command may have; app/cli/group.py has these commands."""

Origin = Literal["shipped", "entry point", "PLUGINS", "given"]
Line = tuple[str, int]


@attrs.define(kw_only=True)
class Plugin:
    """What one plugin brings, as collected; ``setup(app)`` of a plugin gets this object.

    Args:
        name: the module's, or the entry point's.
        origin: how it was found.
        made_at: file and line that stand for the whole of it.
    """

    name: str
    origin: Origin
    made_at: Line = ("", 0)
    subject_tables: list[SubjectTable] = attrs.field(factory=list)
    routes: list[web.RouteTableDef] = attrs.field(factory=list)
    commands: list[click.Command] = attrs.field(factory=list)
    prompt_folders: list[Path] = attrs.field(factory=list)

    def add_subjects(self, table: SubjectTable) -> None:
        """Brings a subject table, with its row tables and timers.

        Raises:
            DeclarationError: it is none.
        """
        _expect(table, SubjectTable, "add_subjects")
        self.subject_tables.append(table)

    def add_routes(self, routes: web.RouteTableDef) -> None:
        """Brings HTTP routes.

        Raises:
            DeclarationError: they are none.
        """
        _expect(routes, web.RouteTableDef, "add_routes")
        self.routes.append(routes)

    def add_command(self, command: click.Command) -> None:
        """Brings a command of ``python -m app``.

        Raises:
            DeclarationError: it is none.
        """
        _expect(command, click.Command, "add_command")
        self.commands.append(command)

    def add_prompts(self, folder: Path) -> None:
        """Brings a folder of prompt variants.

        Raises:
            DeclarationError: it is no path.
        """
        _expect(folder, Path, "add_prompts")
        self.prompt_folders.append(folder)

    @property
    def is_empty(self) -> bool:
        """Whether it brings nothing."""
        return not (self.subject_tables or self.routes or self.commands or self.prompt_folders)


def _expect(thing: object, kind: type, what: str) -> None:
    if not isinstance(thing, kind):
        raise DeclarationError(what, f"expected a {kind.__name__}, got {thing!r}")


@attrs.frozen(kw_only=True)
class Found:
    """A plugin that is not loaded yet: its module, and what in it is to be used; None for the whole of it."""

    name: str
    origin: Origin
    module: str
    attribute: str | None = None


def find_plugins(names: Iterable[str]) -> list[Found]:
    """Finds the plugins: those that ship, those that are installed, and the modules named in PLUGINS.

    What is found twice counts once, and a module in PLUGINS that has an entry point too, or ships, is no further one.
    Nothing is imported.
    """
    shipped = sorted(module.name for module in pkgutil.iter_modules(handlers.__path__) if module.name[0] != "_")
    found = [Found(name=name, origin="shipped", module=f"{handlers.__name__}.{name}") for name in shipped]
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        found.append(Found(name=point.name, origin="entry point", module=point.module, attribute=point.attr or None))
    modules = {one.module for one in found}
    found += [Found(name=name, origin="PLUGINS", module=name) for name in names if name not in modules]
    first: dict[tuple[str, str | None], Found] = {}
    for one in found:
        first.setdefault((one.module, one.attribute), one)
    return list(first.values())


def load_plugin(found: Found) -> Plugin:
    """Imports a plugin and collects what it brings.

    Raises:
        PluginError: it can't be imported, a declaration of its is refused, or it declares nothing; names file and line.
    """
    try:
        module = importlib.import_module(found.module)
        thing = module if found.attribute is None else operator.attrgetter(found.attribute)(module)
    except SyntaxError as error:
        where = error.filename or "", error.lineno or 0
        raise PluginError(found.name, where, f"{type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # whatever a plugin does while it is imported
        folder = _folder_of(found.module)
        raise PluginError(found.name, _line_in(folder, error), describe(error)) from error
    return plugin_of(thing, name=found.name, origin=found.origin)


def plugin_of(thing: object, *, name: str | None = None, origin: Origin = "given") -> Plugin:
    """Collects what a module, a ``setup`` function, a subject table or a route table brings.

    Raises:
        PluginError: as ``load_plugin``.
    """
    plugin = Plugin(name=name or str(getattr(thing, "__name__", thing)), origin=origin, made_at=_start_of(thing))
    setup = vars(thing).get("setup") if isinstance(thing, ModuleType) else thing
    if isinstance(thing, SubjectTable):
        plugin.name = name or thing.name
        plugin.add_subjects(thing)
    elif isinstance(thing, web.RouteTableDef):
        plugin.add_routes(thing)
    elif setup is not None:
        _set_up(plugin, setup)
    elif isinstance(thing, ModuleType):
        _scan(plugin, thing)
    if plugin.is_empty:
        wanted = "a SubjectTable, a RouteTableDef, a click command, or a function setup(app)"
        raise PluginError(plugin.name, plugin.made_at, f"declares nothing: expected {wanted}")
    return plugin


def _set_up(plugin: Plugin, setup: Any) -> None:
    where = _start_of(setup)
    if not callable(setup) or inspect.iscoroutinefunction(setup) or not _takes_one(setup):
        raise PluginError(plugin.name, where, f"expected a plain function setup(app), got {setup!r}")
    try:
        setup(plugin)
    except (Exception, SystemExit) as error:  # whatever a plugin does in it
        line = _line_in(Path(where[0]).parent, error)
        raise PluginError(plugin.name, line if line[1] else where, describe(error)) from error


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(object())
    except (TypeError, ValueError):
        return False
    return True


def _scan(plugin: Plugin, module: ModuleType) -> None:
    """Takes the objects at the top of a module, each once, however many names it has."""
    seen: set[int] = set()
    for thing in vars(module).values():
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, SubjectTable):
            plugin.add_subjects(thing)
        elif isinstance(thing, web.RouteTableDef):
            plugin.add_routes(thing)
        elif isinstance(thing, click.Command) and getattr(thing.callback, "__module__", "") == module.__name__:
            plugin.add_command(thing)


def check_plugin(plugin: Plugin, others: Iterable[Plugin], *, prefix: str) -> None:
    """Checks what a plugin brings against itself and against what is there.

    Args:
        prefix: NATS_DURABLE_PREFIX.

    Raises:
        PluginError: naming what clashes, file and line.
    """
    others = list(others)
    tables: list[SubjectTable] = [table for other in others for table in other.subject_tables]
    for table in plugin.subject_tables:
        for problem in _table_problems(table, tables, prefix):
            raise PluginError(plugin.name, table.made_at, problem)
        tables.append(table)
    taken = {route: other.name for other in others for route in _routes(other)}
    for route in _routes(plugin):
        if route in taken:
            problem = f"route {' '.join(route)}: plugin {taken[route]!r} has it"
            raise PluginError(plugin.name, _line_of(plugin, route), problem)
        taken[route] = plugin.name
    _try_routes(plugin, others)
    commands = dict.fromkeys(OUR_COMMANDS, "tipstream")
    commands |= {str(command.name): other.name for other in others for command in other.commands}
    for command in plugin.commands:
        if command.name in commands:
            problem = f"command {command.name!r}: {commands[command.name]!r} has it"
            raise PluginError(plugin.name, _start_of(command.callback), problem)
        commands[str(command.name)] = plugin.name
    if plugin.prompt_folders:
        folders = [folder for other in others for folder in other.prompt_folders]
        try:
            load_variants([SHIPPED, *folders, *plugin.prompt_folders])
        except AppError as error:
            raise PluginError(plugin.name, plugin.made_at, str(error)) from error


def _table_problems(table: SubjectTable, others: Iterable[SubjectTable], prefix: str) -> Iterator[str]:
    where = f"subject table {table.name!r}"
    names = [rows.name for rows in table.tables]
    for name in {name for name in names if names.count(name) > 1}:
        yield f"{where}: tables: two are called {name!r}"
    for other in others:
        if other.name == table.name:
            yield f"{where}: name: another subject table has it"
        for rows in {row.name for row in other.tables} & set(names):
            yield f"{where}: tables: {rows!r} belongs to subject table {other.name!r}"
    try:
        consumer_specs([table], prefix)
    except DeclarationError as error:
        yield str(error)


Route = tuple[str, str]


def _routes(plugin: Plugin) -> Iterator[Route]:
    """Method and path of each route; a folder of files is a GET of what is below it."""
    for routes in plugin.routes:
        for route in routes:
            yield _route_of(route)


def _route_of(route: web.AbstractRouteDef) -> Route:
    if isinstance(route, web.RouteDef):
        return route.method, route.path
    return "GET", f"{getattr(route, 'prefix', '')}/"


def _try_routes(plugin: Plugin, others: Iterable[Plugin]) -> None:
    """Adds the routes to an application that is thrown away: aiohttp has rules of its own, and says so midway."""
    trial = web.Application()
    for other in others:
        for routes in other.routes:
            trial.add_routes(routes)
    for route in (route for routes in plugin.routes for route in routes):
        try:
            route.register(trial.router)
        except (ValueError, TypeError, RuntimeError) as error:
            where = _line_of(plugin, _route_of(route))
            problem = f"route {' '.join(_route_of(route))}: {error}"
            raise PluginError(plugin.name, where if where[0] else plugin.made_at, problem) from error


def _line_of(plugin: Plugin, wanted: Route) -> Line:
    """Where the last one of these routes is."""
    found = [route for routes in plugin.routes for route in routes if _route_of(route) == wanted]
    return _start_of(getattr(found[-1], "handler", None))


def describe(error: BaseException) -> str:
    """An error of ours as it is, another one with its class."""
    return str(error) if isinstance(error, AppError) else f"{type(error).__name__}: {error}"


def _start_of(thing: Any) -> Line:
    """Where a module, a function or a table begins."""
    if isinstance(thing, SubjectTable):
        return thing.made_at
    if isinstance(thing, ModuleType):
        return getattr(thing, "__file__", None) or "", 1
    code = getattr(thing, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else ("", 0)


def _folder_of(module: str) -> Path | None:
    """Where the code of a module lies: the folder in its package, or its one file; None when there is no such module.

    Nothing is imported, for that may be what has failed.
    """
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)), *inner[:-1])
    return Path(spec.origin) if spec.origin else None


def _line_in(folder: Path | None, error: BaseException) -> Line:
    """The last line of a plugin's own code on the way to an error."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if folder is not None and Path(frame.filename).is_relative_to(folder)
    ]
    return (own[-1].filename, own[-1].lineno or 0) if own else ("", 0)
