"""What a plugin may bring: every clash and every refusal, each with the line it comes from."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import click
import pytest
from aiohttp import web

from app.cli.group import cli
from app.plugin_checks import OUR_COMMANDS, check_plugin
from app.plugins import Origin, Plugin
from models.errors import PluginError
from prompts.registry import SHIPPED
from streams import Context, SubjectTable, Table

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class Seen:
    user_id: str


@attrs.frozen(kw_only=True)
class Row:
    count: int = 0


async def answer(_: web.Request) -> web.Response:
    """Answers with nothing."""
    return web.Response()


def brings(
    *things: SubjectTable | web.RouteTableDef | click.Command | Path, name: str = "mine", origin: Origin = "given"
) -> Plugin:
    """A plugin that brings these."""
    plugin = Plugin(name=name, origin=origin, made_at=("mine.py", 1))
    for thing in things:
        if isinstance(thing, SubjectTable):
            plugin.add_subjects(thing)
        elif isinstance(thing, click.Command):
            plugin.add_command(thing)
        elif isinstance(thing, Path):
            plugin.add_prompts(thing)
        else:
            plugin.add_routes(thing)
    return plugin


def table(name: str = "mine", *subjects: str, rows: tuple[str, ...] = (), former: str | None = None) -> SubjectTable:
    """A subject table with a handler for each subject."""
    made = SubjectTable(name, tables=[Table(row, Row) for row in rows], renamed_from=former)
    for number, subject in enumerate(subjects):

        async def handle(event: Seen, ctx: Context) -> None: ...

        handle.__name__ = f"handle_{number}"
        made.on(subject)(handle)
    return made


def routes(*paths: str, method: str = "GET") -> web.RouteTableDef:
    """Routes of one method."""
    made = web.RouteTableDef()
    for path in paths:
        made.route(method, path)(answer)
    return made


def files(prefix: str, folder: Path) -> web.RouteTableDef:
    """A route to a folder's files."""
    made = web.RouteTableDef()
    made.static(prefix, folder)
    return made


OURS = brings(routes("/state/{table:[^/]+}/{key:[^/]*}", "/health"), name="tipstream", origin="shipped")


def check(plugin: Plugin, *others: Plugin) -> None:
    """Checks a plugin beside others."""
    check_plugin(plugin, others, prefix="test")


def refused(plugin: Plugin, *others: Plugin) -> PluginError:
    """The error with which a plugin is refused."""
    with pytest.raises(PluginError) as caught:
        check(plugin, *others)
    return caught.value


def test_our_commands_are_those_of_the_group() -> None:
    """The names that no plugin may take are the names of our commands."""
    assert set(cli.commands) == OUR_COMMANDS


def test_plugin_beside_others_is_taken(tmp_path: Path) -> None:
    """Names, tables, routes and commands that nobody else has are fine; two tables may read one subject."""
    other = brings(table("other", "signals.a"), routes("/a/{x}"), files("/files", tmp_path), click.Command("a"))
    mine = brings(table("mine", "signals.a"), routes("/a/{x}/y", "/b"), routes("/a/{z}", method="POST"))
    check(mine, OURS, other)


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        pytest.param(table("other"), "name: another subject table has it", id="name"),
        pytest.param(table(rows=("rows",)), "tables: 'rows' belongs to subject table 'other'", id="two-owners"),
        pytest.param(table(rows=("a", "a")), "tables: two are called 'a'", id="twins"),
        pytest.param(table("mine", "nowhere.a"), "subject 'nowhere.a': no stream has it", id="no-stream"),
        pytest.param(table("mine", "signals.a", "feedback.a"), "subjects: expected all in one", id="two-streams"),
        pytest.param(table("mine", ">"), "subject '>': lies in several streams", id="all-streams"),
        pytest.param(table(former="other"), "renamed_from: 'other' is a name of", id="renamed-from-a-live-one"),
        pytest.param(table(former="old"), "renamed_from: 'old' is a name of", id="renamed-from-the-same"),
        pytest.param(table("old"), "name: subject table 'other' was renamed from it", id="former-name"),
    ],
)
def test_table_that_does_not_fit_is_refused(mine: SubjectTable, problem: str) -> None:
    """A subject table is held against the other tables and the streams; the error has the line that made it."""
    error = refused(brings(mine), brings(table("other", "signals.a", rows=("rows",), former="old"), name="p"))
    assert error.where == mine.made_at and error.where[0] == __file__
    assert error.problem.startswith(f"subject table {mine.name!r}: {problem}")


def test_table_is_held_against_its_own_plugin() -> None:
    """Two tables of one plugin clash like those of two."""
    assert "name: another subject table has it" in str(refused(brings(table("a"), table("a"))))


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        pytest.param(routes("/a/{x}"), "route GET /a/{x}: plugin 'other' has it", id="same"),
        pytest.param(routes("/a/{y}"), "route GET /a/{y}: plugin 'other' has it", id="other-parameter-name"),
        pytest.param(routes("/a/{x}", method="HEAD"), "route HEAD /a/{x}: plugin 'other' has it", id="head"),
        pytest.param(routes("/a/{x}", method="*"), "route * /a/{x}: plugin 'other' has it", id="any-method"),
        pytest.param(routes("/any", method="POST"), "route POST /any: plugin 'other' has it", id="of-any-method"),
        pytest.param(routes("/b", "/b"), "route GET /b: ", id="twice"),
        pytest.param(routes("/health"), "route GET /health: plugin 'tipstream' has it", id="ours"),
        pytest.param(routes("/health", method="*"), "route * /health: plugin 'tipstream' has it", id="ours-any-method"),
        pytest.param(routes("/state/all"), "route GET /state/all: what lies below /state belongs to", id="below-ours"),
        pytest.param(routes("/c", method="B D"), "route B D /c: ValueError: B D is not allowed", id="bad-method"),
        pytest.param(routes("b"), "route GET b: ValueError: path should be started with /", id="no-slash"),
        pytest.param(routes("/{"), "route GET /{: ValueError: Invalid path", id="bad-pattern"),
    ],
)
def test_route_that_does_not_fit_is_refused(mine: web.RouteTableDef, problem: str) -> None:
    """A route is refused when a request would fit another one too, or lies below ours; the line is its function's."""
    error = refused(brings(mine), OURS, brings(routes("/a/{x}"), routes("/any", method="*"), name="other"))
    assert error.problem.startswith(problem)
    assert error.where == (__file__, answer.__code__.co_firstlineno)


def test_view_class_that_takes_our_route_is_refused() -> None:
    """A class-based view answers every method; the line is in the class."""
    mine = web.RouteTableDef()

    @mine.view("/health")
    class Mine(web.View):
        async def get(self) -> web.Response:
            return web.Response()

    error = refused(brings(mine), OURS)
    assert error.problem == "route * /health: plugin 'tipstream' has it"
    assert error.where == (__file__, Mine.get.__code__.co_firstlineno)


def test_folder_of_files_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A folder that is not there, or a second one under the same path, is refused; the line is the plugin's first."""
    missing = refused(brings(files("/files", tmp_path / "nowhere")))
    twice = refused(brings(files("/files", tmp_path)), brings(files("/files", tmp_path), name="other"))
    assert "does not exist" in missing.problem and missing.where == ("mine.py", 1)
    assert twice.problem == "route GET /files/: plugin 'other' has it"


def test_command_of_a_taken_name_is_refused() -> None:
    """No command may be called as ours are, as another plugin's, or as one of its own."""

    @click.command("worker")
    def mine() -> None: ...

    problems = [
        refused(brings(mine)),
        refused(brings(click.Command("a")), brings(click.Command("a"), name="other")),
        refused(brings(click.Command("b"), click.Command("b"))),
    ]
    owners = ("'worker': plugin 'tipstream'", "'a': plugin 'other'", "'b': plugin 'mine'")
    assert [error.problem for error in problems] == [f"command {owner} has it" for owner in owners]
    assert problems[0].where[0] == __file__ and problems[1].where == ("mine.py", 1)


def test_prompts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A folder of prompt variants must exist, and is read at once."""
    error = refused(brings(tmp_path / "nowhere"))
    assert "expected a folder with .j2 files" in error.problem and error.where == ("mine.py", 1)
    text = (SHIPPED / "v1.j2").read_text().replace("version: v1", "version: v4").replace("  signals:", "  signal:")
    (tmp_path / "v4.j2").write_text(text)
    problem = "v4.j2:6: variables.signal: unknown key, did you mean signals?"
    assert problem in refused(brings(tmp_path)).problem


def test_shipped_plugins_may_share_a_first_segment() -> None:
    """What ships is told apart by its whole path."""
    check(brings(routes("/health/more"), origin="shipped"), OURS)
