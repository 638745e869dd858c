"""Plugins: three ways to be found, all that can be wrong with one, and that a refused one leaves nothing behind."""

import functools
import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from app.main import App, build
from app.plugins import Found, find_plugins, load_plugin, plugin_of
from app.settings import Settings
from models.errors import PluginError
from streams import SubjectTable

NAMES = (f"plugin_of_tests_{number}" for number in itertools.count())

HEAD = """
import attrs
import click
from aiohttp import web
from pathlib import Path
from streams import Context, Policy, SubjectTable, Table

@attrs.frozen(kw_only=True)
class Seen:
    user_id: str

@attrs.frozen(kw_only=True)
class Row:
    count: int = 0
"""
SUBJECTS = """
ROWS = Table("seen", Row)
subjects = SubjectTable("seen", tables=[ROWS])

@subjects.on("signals.seen")
async def seen(event: Seen, ctx: Context) -> None: ...
"""
ROUTE = """
routes = web.RouteTableDef()

@routes.get("/seen")
async def show(request: web.Request) -> web.Response:
    return web.json_response({"seen": True})
"""
COMMAND = """
@click.command("count-seen")
def count_seen() -> None:
    click.echo("42")
"""
CALLABLE = """class Setup:
    def __call__(self, app):
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that can be imported, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write_module(text: str) -> str:
        name = next(NAMES)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return name

    return write_module


def settings_for(tmp_path: Path, *plugins: str, errors: str = "stop") -> Settings:
    """Settings that start nothing, with these plugins."""
    return Settings(nats_url="", state_dir=tmp_path / "var", http_port=0, plugins=plugins, plugin_errors=errors)


def test_module_of_setting_brings_tables_routes_and_commands(write: Write, tmp_path: Path) -> None:
    """Module-level objects of a module named in PLUGINS are taken, each once, whatever other names they have."""
    app = build(settings_for(tmp_path, write(HEAD + SUBJECTS + ROUTE + COMMAND + "same = subjects\n")))
    assert [table.name for table in app.subject_tables] == ["feedback", "generations", "signals", "seen"]
    assert "/seen" in {resource.canonical for resource in app.http.router.resources()}
    assert [command.name for command in app.commands] == ["count-seen"]
    assert [(plugin.name[:6], plugin.origin) for plugin in app.plugins[-1:]] == [("plugin", "PLUGINS")]


def test_setup_is_called_instead_of_a_look_at_the_module(write: Write, tmp_path: Path) -> None:
    """A module with setup(app) brings what that adds, and nothing else."""
    text = HEAD + SUBJECTS + ROUTE + "def setup(app):\n    app.add_subjects(subjects)\n"
    app = build(settings_for(tmp_path, write(text)))
    assert app.subject_tables[-1].name == "seen"
    assert "/seen" not in {resource.canonical for resource in app.http.router.resources()}


def install(folder: Path, *points: str) -> None:
    """Puts the metadata of an installed distribution with these entry points into a folder of sys.path."""
    info = folder / "seen-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seen\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[tipstream.plugins]", *points, ""]))
    importlib.invalidate_caches()


def test_entry_point_is_found_without_a_setting(write: Write, tmp_path: Path) -> None:
    """An installed distribution with the entry point is a plugin, once, under the entry point's name."""
    name = write(HEAD + SUBJECTS + "def begin(app):\n    app.add_subjects(subjects)\n")
    install(tmp_path, f"sightings = {name}:begin")
    app = build(settings_for(tmp_path, name))
    assert [(plugin.name, plugin.origin) for plugin in app.plugins[-1:]] == [("sightings", "entry point")]
    assert app.subject_tables[-1].name == "seen"


def test_two_functions_of_a_module_are_two_plugins(write: Write, tmp_path: Path) -> None:
    """Entry points that name different functions both count, the module itself no more; dots reach into a class."""
    text = "class B:\n    @staticmethod\n    def begin(app):\n        app.add_routes(routes)\n"
    name = write(HEAD + SUBJECTS + ROUTE + text + "def begin(app):\n    app.add_subjects(subjects)\n")
    install(tmp_path, f"a = {name}:begin", f"b = {name}:B.begin", f"c = {name}:begin", f"d = {name}")
    app = build(settings_for(tmp_path, name, name))
    assert [(plugin.name, plugin.origin) for plugin in app.plugins[-2:]] == [("a", "entry point"), ("b", "entry point")]


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        pytest.param("no module!", "ModuleNotFoundError: No module named 'no module!'", id="no-name"),
        pytest.param(":begin", "ValueError: Empty module name", id="no-module"),
        pytest.param("json:nothing", "AttributeError: module 'json' has no attribute 'nothing'", id="no-attribute"),
        pytest.param("json:dumps", "expected a plain function setup.app.|TypeError", id="no-setup"),
    ],
)
def test_entry_point_that_leads_nowhere_is_named(tmp_path: Path, write: Write, point: str, problem: str) -> None:
    """An installed distribution whose entry point can't be used is refused by its name, like any other plugin."""
    install(tmp_path, f"sightings = {point}")
    with pytest.raises(PluginError, match=problem) as caught:
        build(settings_for(tmp_path))
    assert str(caught.value).startswith("plugin 'sightings'")
    good = write(HEAD + SUBJECTS)
    assert build(settings_for(tmp_path, good, errors="skip")).subject_tables[-1].name == "seen"


def test_commands_of_a_group_come_with_the_group(write: Write, tmp_path: Path) -> None:
    """A command inside a group is none by itself, and one that was imported is not the module's."""
    text = COMMAND + "tools = click.Group('tools', commands=[count_seen])\nfrom app.cli.handlers import handlers\n"
    app = build(settings_for(tmp_path, write(HEAD + text)))
    assert [command.name for command in app.commands] == ["tools"]


def test_shipped_handlers_come_first() -> None:
    """The files of streams/handlers/ are plugins like others."""
    assert [(found.name, found.origin) for found in find_plugins([])][:3] == [
        ("feedback", "shipped"),
        ("generations", "shipped"),
        ("signals", "shipped"),
    ]


REFUSED = [
    pytest.param("x = 1\n", ":1", "declares nothing: expected a SubjectTable", id="nothing"),
    pytest.param("def f(:\n", ":1", "SyntaxError", id="syntax"),
    pytest.param("import attrs\nimport nowhere_to_be_found\n", ":2", "No module named 'nowhere_", id="import"),
    pytest.param("a = 1\nb = a / 0\n", ":2", "ZeroDivisionError", id="raises"),
    pytest.param("a = 1\nraise ValueError('one\\ntwo')\n", ":2", "ValueError: one two$", id="raises-lines"),
    pytest.param("import sys\nsys.exit(3)\n", ":2", "SystemExit: 3", id="exits"),
    pytest.param("a = 1\nexec('b =')\n", ":2", "SyntaxError: invalid syntax", id="syntax-elsewhere"),
    pytest.param("a = 1\n\0\n", ":1", "SyntaxError: source code .* null bytes", id="null-byte"),
    pytest.param("# -*- coding: none -*-\n", ":1", "SyntaxError: unknown encoding", id="encoding"),
    pytest.param("setup = 3\n", "", "expected a plain function setup\\(app\\), got 3", id="setup-is-no-function"),
    pytest.param("async def setup(app): ...\n", ":1", "expected a plain function setup", id="setup-is-async"),
    pytest.param("def setup(): ...\n", ":1", "expected a plain function setup", id="setup-takes-nothing"),
    pytest.param("def setup(app):\n    raise ValueError('no')\n", ":2", "ValueError: no", id="setup-raises"),
    pytest.param("def setup(app):\n    raise SystemExit(3)\n", ":2", "SystemExit: 3", id="setup-exits"),
    pytest.param(CALLABLE + "        raise ValueError('no')\nsetup = Setup()\n", ":3", "ValueError: no", id="callable"),
    pytest.param(
        CALLABLE.replace("def __call", "async def __call") + "        pass\nsetup = Setup()\n",
        ":2",
        "expected a plain function setup",
        id="callable-is-async",
    ),
    pytest.param("def setup(app):\n    app.add_subjects(3)\n", ":2", "expected a SubjectTable, got 3", id="no-table"),
    pytest.param("def setup(app):\n    app.add_routes(3)\n", ":2", "expected a RouteTableDef", id="no-routes"),
    pytest.param("def setup(app):\n    app.add_command(3)\n", ":2", "expected a Command", id="no-command"),
    pytest.param("def setup(app):\n    app.add_prompts(3)\n", ":2", "expected a Path", id="no-folder"),
    pytest.param(
        HEAD + "from pathlib import Path\ndef setup(app):\n    app.add_prompts(Path('/nowhere'))\n",
        ":",
        "expected a folder with .j2 files",
        id="no-such-folder",
    ),
    pytest.param(
        HEAD + SUBJECTS.replace('"signals.seen"', '"signals.seen", policy=Policy(max_deliver=0)'),
        ":19",
        "handler 'seen': policy: max_deliver",
        id="policy",
    ),
    pytest.param(HEAD + SUBJECTS.replace("event: Seen", "event: int"), ":19", "annotated with an attrs", id="event"),
    pytest.param(HEAD + SUBJECTS.replace("signals.seen", "elsewhere.seen"), ":17", "subject table 'seen'", id="stream"),
    pytest.param(
        HEAD + SUBJECTS + "@subjects.on('feedback.seen')\nasync def other(event: Seen, ctx: Context) -> None: ...\n",
        ":17",
        "subject table 'seen'",
        id="two-streams",
    ),
    pytest.param(
        HEAD + SUBJECTS.replace('SubjectTable("seen"', 'SubjectTable("signals"'), ":17", "another subject", id="name"
    ),
    pytest.param(HEAD + SUBJECTS.replace('"seen", Row', '"user_sync", Row'), ":17", "belongs to", id="two-owners"),
    pytest.param(HEAD + SUBJECTS.replace("[ROWS]", "[ROWS, ROWS]"), ":17", "two are called 'seen'", id="twins"),
    pytest.param(HEAD + ROUTE.replace("/seen", "/health"), ":18", "route GET /health: plugin 'tipstream'", id="route"),
    pytest.param(HEAD + ROUTE + ROUTE.replace("routes", "more"), ":24", "route GET /seen: plugin", id="own-route"),
    pytest.param(
        HEAD + ROUTE.replace("/seen", "seen"), ":18", "route GET seen: ValueError: path should be started", id="path"
    ),
    pytest.param(
        HEAD + ROUTE.replace("/seen", "/{seen"), ":18", "route GET /{seen: ValueError: Invalid path", id="braces"
    ),
    pytest.param(
        HEAD + SUBJECTS + ROUTE + 'routes.static("/files", "/nowhere")\n', ":", "route GET /files/: ", id="files"
    ),
    pytest.param("import sys\nsys.exit(3)\n", ":2", "SystemExit: 3", id="exits"),
    pytest.param("def setup(app):\n    raise SystemExit('no')\n", ":2", "SystemExit: no", id="setup-exits"),
    pytest.param(HEAD + COMMAND.replace("count-seen", "worker"), ":16", "command 'worker'", id="command"),
]


@pytest.mark.parametrize(("text", "line", "problem"), REFUSED)
def test_refused_plugin_is_named_with_file_and_line(
    write: Write, tmp_path: Path, text: str, line: str, problem: str
) -> None:
    """The start stops with one error: plugin, file, line, and what is wrong; another plugin would be left out."""
    name = write(text)
    with pytest.raises(PluginError, match=problem) as caught:
        build(settings_for(tmp_path, name))
    assert str(caught.value).startswith(f"plugin {name!r}")
    if line:
        assert f"{name}.py{line}" in str(caught.value)
    app = build(settings_for(tmp_path, name, write(HEAD + SUBJECTS), errors="skip"))
    assert [table.name for table in app.subject_tables] == ["feedback", "generations", "signals", "seen"]
    assert app.refused == [str(caught.value)]


def test_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A slip in PLUGINS is an error that names the module."""
    with pytest.raises(PluginError, match=r"plugin 'no_such\.module': ModuleNotFoundError: No module named 'no_such'"):
        build(settings_for(tmp_path, "no_such.module"))


async def test_left_out_plugin_shows_in_health(write: Write, tmp_path: Path) -> None:
    """With PLUGIN_ERRORS=skip the app runs without it, is degraded, and says why; nothing of it was added."""
    app = build(settings_for(tmp_path, write(HEAD + ROUTE + SUBJECTS.replace("signals.", "nowhere.")), errors="skip"))
    async with TestClient(TestServer(app.http)) as client:
        health = await (await client.get("/health")).json()
        assert health["status"] == "degraded"
        assert "subject table 'seen'" in health["reasons"][0]
        assert (await client.get("/seen")).status == 404


def test_module_itself_function_table_and_routes_are_plugins(write: Write) -> None:
    """What a test hands over is taken like what is found."""
    module = importlib.import_module(write(HEAD + SUBJECTS + ROUTE))
    routes = web.RouteTableDef()
    routes.static("/files", ".")

    def setup(app: object) -> None:
        module.routes  # noqa: B018 (a setup may look at anything)
        app.add_routes(routes)  # type: ignore[attr-defined]

    assert plugin_of(module).subject_tables == [module.subjects]
    assert plugin_of(module.subjects).name == "seen"
    assert plugin_of(routes, name="routes").routes == plugin_of(setup).routes == [routes]


def test_static_routes_clash_too(tmp_path: Path) -> None:
    """Two folders under one path are a clash like two handlers."""
    app = App(settings_for(tmp_path))
    for _ in range(2):
        routes = web.RouteTableDef()
        routes.static("/files", tmp_path)
        if not app.plugins:
            app.add_routes(routes)
    with pytest.raises(PluginError, match="route GET /files/"):
        app.add_routes(routes)


async def test_refused_plugin_adds_no_handler_to_a_table_of_others(write: Write, tmp_path: Path) -> None:
    """A table that is in use takes no handler more, so that what a refused plugin does to it leaves nothing behind."""
    text = """
from streams.handlers import signals

@signals.subjects.on("signals.seen")
async def seen(event: Seen, ctx: Context) -> None: ...
"""
    build(settings_for(tmp_path))
    app = build(settings_for(tmp_path, name := write(HEAD + text), errors="skip"))
    assert f"{name}.py:18): subject table 'signals', handler 'seen': the table is in use" in app.refused[0]
    assert [handler.name for handler in app.subject_tables[2].handlers] == [
        "signals.task_synced",
        "signals.tip_feedback",
    ]


def test_route_that_is_refused_leaves_nothing_behind(write: Write, tmp_path: Path) -> None:
    """When aiohttp would not take the second route of a plugin, the first one and the tables are not there either."""
    name = write(HEAD + SUBJECTS + ROUTE + ROUTE.replace("/seen", "no-slash").replace("routes", "more"))
    app = build(settings_for(tmp_path, name, errors="skip"))
    assert "route GET no-slash: ValueError: path should be started with /" in app.refused[0]
    assert "/seen" not in {resource.canonical for resource in app.http.router.resources()}
    assert [table.name for table in app.subject_tables] == ["feedback", "generations", "signals"]


def test_given_plugins_are_the_only_ones(tmp_path: Path) -> None:
    """A list of plugins replaces the discovery."""
    app = build(settings_for(tmp_path), plugins=[plugin_of(SubjectTable("alone"))])
    assert [table.name for table in app.subject_tables] == ["alone"]


def test_package_that_fails_is_named_by_its_inner_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a package the last line of its own on the way to the error is told."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / next(NAMES)
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "events.py").write_text("\n\nraise RuntimeError('broken')\n")
    (package / "plugin.py").write_text(f"from {package.name} import events\n")
    [found] = [found for found in find_plugins([f"{package.name}.plugin"]) if found.origin == "PLUGINS"]
    with pytest.raises(PluginError, match=r"events\.py:3\): RuntimeError: broken"):
        load_plugin(found)


def test_package_whose_beginning_fails_is_named_by_that_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails before the plugin's own module is reached, in the packages around it, is named too."""
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / (top := next(NAMES)) / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("\nimport nowhere_to_be_found\n")
    with pytest.raises(PluginError, match=rf"{top}/__init__\.py:2\): ModuleNotFoundError"):
        build(settings_for(tmp_path, f"{top}.inner"))


def test_setup_that_fails_elsewhere_is_named_by_its_own_line(write: Write) -> None:
    """The line is the plugin's, not that of what it calls; a function with arguments bound is seen through."""
    helper = write("def fail():\n    raise ValueError('no')\n")
    name = write(f"import {helper}\ndef begin(more, app):\n    {helper}.fail()\n")
    setup = functools.partial(importlib.import_module(name).begin, 1)
    with pytest.raises(PluginError, match=rf"{name}\.py:3\): ValueError: no"):
        plugin_of(setup)


def test_setup_may_be_a_class(write: Write) -> None:
    """A class that takes the app is a plain function too; the line is that of its first method."""
    name = write("class Setup:\n    def __init__(self, app):\n        raise ValueError('no')\n")
    with pytest.raises(PluginError, match=rf"'Setup' \(.*{name}\.py:3\): ValueError: no"):
        plugin_of(importlib.import_module(name).Setup)


def test_awaitable_that_is_no_coroutine_is_refused(write: Write) -> None:
    """Whatever would have to be awaited is refused, for nobody awaits it."""
    name = write("class Later:\n    def __await__(self):\n        yield\ndef setup(app):\n    return Later()\n")
    with pytest.raises(PluginError, match="expected a plain function setup"):
        plugin_of(importlib.import_module(name))


def test_module_without_a_file_has_no_line() -> None:
    """A module made by hand is named without a place."""
    with pytest.raises(PluginError, match=r"^plugin 'made': declares nothing"):
        plugin_of(ModuleType("made"))


def test_module_made_by_hand_fails_without_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows a file, the error has none; the name is enough."""
    made = ModuleType("made_by_hand")
    made.__spec__ = None
    monkeypatch.setitem(sys.modules, "made_by_hand", made)
    with pytest.raises(PluginError, match=r"^plugin 'made_by_hand\.x': ModuleNotFoundError"):
        load_plugin(Found(name="made_by_hand.x", origin="PLUGINS", module="made_by_hand.x"))
