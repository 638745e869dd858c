"""What a plugin may bring: checked as a whole, against itself and everything that is there.

Refused are names that clash, tables with two owners, subjects outside any stream or in two, routes that another one
has or that lie below ours, and whatever aiohttp would not take. Nothing is added here: app/main.py does, afterwards.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import attrs
from aiohttp import web

from app.plugins import Line, Plugin, describe, start_of
from models.errors import AppError, DeclarationError, PluginError
from models.features import FEATURES, feature_problems
from prompts.registry import SHIPPED, load_variants
from prompts.samples import SAMPLES
from streams.service import consumer_specs
from streams.subjects import SubjectTable

OUR_COMMANDS = frozenset(
    (
        *("audit", "deadletters", "handlers", "models", "new", "prompts", "replay"),
        *("schema", "send", "settings", "state", "streams", "worker"),
    )
)
"""Names that no plugin's command may have; app/cli/group.py has these commands."""

_PARAMETER = re.compile(r"\{[_a-zA-Z][_a-zA-Z0-9]*")


def check_plugin(plugin: Plugin, others: Iterable[Plugin], *, prefix: str) -> None:
    """Checks what a plugin brings against itself and against what is there.

    Args:
        prefix: NATS_DURABLE_PREFIX.

    Raises:
        PluginError: naming what clashes, file and line.
    """
    others = list(others)
    tables = [table for other in others for table in other.subject_tables]
    for table in plugin.subject_tables:
        for problem in _table_problems(table, tables, prefix):
            raise PluginError(plugin.name, table.made_at, problem)
        tables.append(table)
    problems = (
        *_route_problems(plugin, others),
        *_command_problems(plugin, others),
        *_feature_problems(plugin, others),
    )
    for where, problem in problems:
        raise PluginError(plugin.name, where if where[0] else plugin.made_at, problem)
    if plugin.prompt_folders:
        _check_prompts(plugin, others)


def _check_prompts(plugin: Plugin, others: Iterable[Plugin]) -> None:
    folders = [folder for other in (*others, plugin) for folder in other.prompt_folders]
    try:
        load_variants([SHIPPED, *folders], samples=SAMPLES)
    except AppError as error:
        raise PluginError(plugin.name, plugin.made_at, describe(error)) from error


def _table_problems(table: SubjectTable, others: Iterable[SubjectTable], prefix: str) -> Iterator[str]:
    where = f"subject table {table.name!r}"
    names = [rows.name for rows in table.tables]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{where}: tables: two are called {name!r}"
    for other in others:
        if other.name == table.name:
            yield f"{where}: name: another subject table has it"
        for former in {table.renamed_from} & {other.name, other.renamed_from} - {None}:
            yield f"{where}: renamed_from: {former!r} is a name of subject table {other.name!r}"
        if other.renamed_from == table.name:
            yield f"{where}: name: subject table {other.name!r} was renamed from it"
        for rows in sorted({row.name for row in other.tables} & set(names)):
            yield f"{where}: tables: {rows!r} belongs to subject table {other.name!r}"
    try:
        consumer_specs([table], prefix)
    except DeclarationError as error:
        yield str(error)


@attrs.frozen(kw_only=True)
class _Route:
    """A route, and what of it may clash: two that differ in nothing but the names of their parameters do."""

    plugin: Plugin
    definition: web.AbstractRouteDef
    methods: frozenset[str]
    path: str

    @property
    def shape(self) -> str:
        return _PARAMETER.sub("{", self.path)

    @property
    def segment(self) -> str:
        """What a token's scope is held against."""
        return self.path.strip("/").partition("/")[0]

    @property
    def where(self) -> Line:
        return start_of(getattr(self.definition, "handler", None))

    def clashes_with(self, other: "_Route") -> bool:
        """Whether some request would fit both."""
        return self.shape == other.shape and bool("*" in self.methods | other.methods or self.methods & other.methods)

    def __str__(self) -> str:
        return f"route {'/'.join(sorted(self.methods - {'HEAD'})) or 'HEAD'} {self.path}"


def _routes(plugin: Plugin) -> list[_Route]:
    """Every route of a plugin; a folder of files is a GET of what is below it, and GET answers HEAD too."""
    found = []
    for definition in (definition for routes in plugin.routes for definition in routes):
        method, path = "GET", f"{getattr(definition, 'prefix', '')}/"
        if isinstance(definition, web.RouteDef):
            method, path = definition.method, definition.path
        methods = frozenset({method, "HEAD"} if method == "GET" else {method})
        found.append(_Route(plugin=plugin, definition=definition, methods=methods, path=path))
    return found


def _route_problems(plugin: Plugin, others: Sequence[Plugin]) -> Iterator[tuple[Line, str]]:
    """Compares, and tries the routes out on a router of their own, so that the app's never gets some of them only."""
    router = web.UrlDispatcher()
    taken = [route for other in others for route in _routes(other)]
    for route in taken:
        route.definition.register(router)
    for route in _routes(plugin):
        for other in taken:
            if route.clashes_with(other):
                yield route.where, f"{route}: plugin {other.plugin.name!r} has it"
            elif plugin.origin != "shipped" == other.plugin.origin and route.segment == other.segment:
                yield route.where, f"{route}: what lies below /{other.segment} belongs to {other.plugin.name!r}"
        try:
            route.definition.register(router)
        except Exception as error:  # whatever aiohttp refuses: a path, a folder, a method that is no method
            yield route.where, f"{route}: {describe(error)}"
        taken.append(route)


def _feature_problems(plugin: Plugin, others: Sequence[Plugin]) -> Iterator[tuple[Line, str]]:
    taken = dict.fromkeys(FEATURES, "tipstream")
    taken |= {feature.name: other.name for other in others for feature in other.features}
    for feature in plugin.features:
        if feature.name in taken:
            yield start_of(feature.value), f"feature {feature.name!r}: plugin {taken[feature.name]!r} has it"
        taken[feature.name] = plugin.name
        for problem in feature_problems(feature):
            yield start_of(feature.value), f"feature {feature.name!r}: {problem}"


def _command_problems(plugin: Plugin, others: Sequence[Plugin]) -> Iterator[tuple[Line, str]]:
    taken = dict.fromkeys(OUR_COMMANDS, "tipstream")
    taken |= {str(command.name): other.name for other in others for command in other.commands}
    for command in plugin.commands:
        if command.name in taken:
            yield start_of(command.callback), f"command {command.name!r}: plugin {taken[command.name]!r} has it"
        taken[str(command.name)] = plugin.name
