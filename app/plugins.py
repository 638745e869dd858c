"""Plugins: how they are found and loaded, before anything of theirs joins the app.

A plugin is a module. Its ``setup(app)`` is called if it has one; otherwise its SubjectTable, RouteTableDef, Feature and
click command objects are taken. Three ways lead to one: a file in ``streams/handlers/``, the entry-point group
``tipstream.plugins``, and the setting PLUGINS. What a plugin declares is collected here and nowhere else, so that one
that is refused leaves nothing behind; app/plugin_checks.py checks it, and app/main.py takes it over.
"""

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import attrs
import click
from aiohttp import web

from app.operations import Operation
from models.errors import AppError, DeclarationError, PluginError
from models.features import Feature
from streams import handlers
from streams.subjects import SubjectTable

GROUP = "tipstream.plugins"
Origin = Literal["shipped", "entry point", "PLUGINS", "given"]
Line = tuple[str, int]


@attrs.define(kw_only=True)
class Plugin:
    """What one plugin brings, as collected; ``setup(app)`` of a plugin gets this object.

    Args:
        name: the module's, or the entry point's.
        origin: how it was found.
        made_at: file and line that stand for the whole of it.
        operations: what the OpenAPI document says of its routes; of one without it says the handler's docstring.
    """

    name: str
    origin: Origin
    made_at: Line = ("", 0)
    subject_tables: list[SubjectTable] = attrs.field(factory=list)
    routes: list[web.RouteTableDef] = attrs.field(factory=list)
    commands: list[click.Command] = attrs.field(factory=list)
    prompt_folders: list[Path] = attrs.field(factory=list)
    features: list[Feature] = attrs.field(factory=list)
    operations: Sequence[Operation] = ()

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

    def add_feature(self, feature: Feature) -> None:
        """Brings a feature that models may read.

        Raises:
            DeclarationError: it is none.
        """
        _expect(feature, Feature, "add_feature")
        self.features.append(feature)

    @property
    def is_empty(self) -> bool:
        """Whether it brings nothing."""
        return not (self.subject_tables or self.routes or self.commands or self.prompt_folders or self.features)


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

    A module that is found twice counts once, unless two entry points name two functions of it. Nothing is imported.
    """
    shipped = sorted(module.name for module in pkgutil.iter_modules(handlers.__path__) if module.name[0] != "_")
    found = [Found(name=name, origin="shipped", module=f"{handlers.__name__}.{name}") for name in shipped]
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        module, _, attribute = (part.strip() for part in point.value.partition("[")[0].partition(":"))
        found.append(Found(name=point.name, origin="entry point", module=module, attribute=attribute or None))
    found += [Found(name=name, origin="PLUGINS", module=name) for name in names]
    kept: list[Found] = []
    for one in found:
        known = {other.attribute for other in kept if other.module == one.module}
        if not known or (not known & {None, one.attribute} and one.attribute is not None):
            kept.append(one)
    return kept


def load_plugin(found: Found) -> Plugin:
    """Imports a plugin and collects what it brings.

    Raises:
        PluginError: it can't be imported, a declaration of its is refused, or it declares nothing; names file and line.
    """
    try:
        thing: object = importlib.import_module(found.module)
        if found.attribute:
            thing = functools.reduce(getattr, found.attribute.split("."), thing)
    except (Exception, SystemExit) as error:  # whatever a plugin does while it is imported
        raise PluginError(found.name, _place_of(error, found.module), describe(error)) from error
    return plugin_of(thing, name=found.name, origin=found.origin)


def plugin_of(thing: object, *, name: str | None = None, origin: Origin = "given") -> Plugin:
    """Collects what a module, a ``setup`` function, a subject table or a route table brings.

    Raises:
        PluginError: as ``load_plugin``.
    """
    plugin = Plugin(name=name or str(getattr(thing, "__name__", thing)), origin=origin, made_at=start_of(thing))
    setup = vars(thing).get("setup") if isinstance(thing, ModuleType) else thing
    if isinstance(thing, SubjectTable):
        plugin.name = name or thing.name
        plugin.add_subjects(thing)
    elif isinstance(thing, web.RouteTableDef):
        plugin.add_routes(thing)
    elif isinstance(thing, ModuleType) and setup is None:
        _scan(plugin, thing)
    else:
        _set_up(plugin, setup)
    if plugin.is_empty:
        wanted = "a SubjectTable, a RouteTableDef, a Feature, a click command, or a function setup(app)"
        raise PluginError(plugin.name, plugin.made_at, f"declares nothing: expected {wanted}")
    return plugin


def _set_up(plugin: Plugin, setup: Any) -> None:
    where = start_of(setup)
    if not where[0]:
        where = plugin.made_at
    refusal = PluginError(plugin.name, where, f"expected a plain function setup(app), got {setup!r}")
    if not callable(setup) or inspect.iscoroutinefunction(setup) or not _takes_one(setup):
        raise refusal
    try:
        answer = setup(plugin)
    except (Exception, SystemExit) as error:  # whatever a plugin does in it
        raise PluginError(plugin.name, _last_line(error, Path(where[0])) or where, describe(error)) from error
    if inspect.iscoroutine(answer):
        answer.close()
    if inspect.isawaitable(answer):
        raise refusal


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(object())
    except (TypeError, ValueError):
        return False
    return True


def _scan(plugin: Plugin, module: ModuleType) -> None:
    """Takes the objects at the top of a module, each once; a command that is part of a group comes with the group."""
    things = {id(thing): thing for thing in vars(module).values()}.values()
    inner = {id(command) for group in things if isinstance(group, click.Group) for command in group.commands.values()}
    for thing in things:
        if isinstance(thing, SubjectTable):
            plugin.add_subjects(thing)
        elif isinstance(thing, web.RouteTableDef):
            plugin.add_routes(thing)
        elif isinstance(thing, click.Command) and id(thing) not in inner and _is_of(thing, module):
            plugin.add_command(thing)
        elif isinstance(thing, Feature):
            plugin.add_feature(thing)


def _is_of(command: click.Command, module: ModuleType) -> bool:
    """Whether the module has made the command; of a group without a function nobody can tell."""
    return command.callback is None or command.callback.__module__ == module.__name__


def describe(error: BaseException) -> str:
    """One line: an error of ours as it is, another one with its class."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    line = " ".join(text.split())
    return line if isinstance(error, AppError) else f"{type(error).__name__}: {line}"


def start_of(thing: Any) -> Line:
    """Where a module, a function, a class, a callable object or a subject table begins; an empty file if unknown."""
    if isinstance(thing, SubjectTable):
        return thing.made_at
    if isinstance(thing, ModuleType):
        return getattr(thing, "__file__", None) or "", 1
    codes = [code for part in _parts_of(thing) if (code := getattr(part, "__code__", None))]
    return (codes[0].co_filename, codes[0].co_firstlineno) if codes else ("", 0)


def _parts_of(thing: Any) -> list[Any]:
    """What may know the lines of a callable: itself, what it wraps, or its methods."""
    if isinstance(thing, functools.partial):
        return _parts_of(thing.func)
    if isinstance(thing, type):
        return list(vars(thing).values())
    return [inspect.unwrap(thing), type(thing).__call__]


def _place_of(error: BaseException, module: str) -> Line:
    """The last line of a plugin's own code on the way to an error: of its folder, else of its outermost package."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return error.filename, error.lineno or 1
    top, file = _files_of(module)
    if top is None or file is None:
        return "", 0
    folder = file if top == file else file.parent
    return _last_line(error, folder) or _last_line(error, top) or ((str(file), 1) if file.is_file() else ("", 0))


def _last_line(error: BaseException, within: Path) -> Line | None:
    """The last line of a file, or of a folder's files, on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(within)]
    return (own[-1].filename, own[-1].lineno or 1) if own else None


def _files_of(module: str) -> tuple[Path, Path] | tuple[None, None]:
    """The outermost package and the file of a module, the same for one that is in no package; None if there is none.

    Nothing is imported, for that may be what has failed.
    """
    outermost, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(outermost) if outermost else None
    except ValueError:  # a module that was made by hand
        spec = None
    if spec and spec.submodule_search_locations:
        top = Path(next(iter(spec.submodule_search_locations)))
        package = top.joinpath(*inner)
        return top, package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    return (Path(spec.origin), Path(spec.origin)) if spec and spec.origin else (None, None)
