"""Plugins of a real worker: beside broken ones, with a route, a command and a prompt variant."""

from pathlib import Path

import pytest
from process_kit import Worker, publish, run_app

GOOD = """
from pathlib import Path
import attrs
import click
from aiohttp import web
from app import fetch_row
from streams import Context, SubjectTable, Table

@attrs.frozen(kw_only=True)
class Seen:
    user_id: str

@attrs.frozen(kw_only=True)
class Row:
    count: int = 0

ROWS = Table("seen", Row)
subjects = SubjectTable("seen", tables=[ROWS])
failing = SubjectTable("failing")
routes = web.RouteTableDef()

@subjects.on("signals.seen")
async def seen(event: Seen, ctx: Context) -> None:
    row = ctx.get(ROWS, event.user_id) or Row()
    ctx.put(ROWS, event.user_id, Row(count=row.count + 1))

@failing.on("signals.seen")
async def fail(event: Seen, ctx: Context) -> None:
    raise RuntimeError("always")

@routes.get("/seen/{user_id}")
async def show(request: web.Request) -> web.Response:
    row = await fetch_row(request, ROWS, request.match_info["user_id"])
    return web.json_response({"count": row.count if row else 0})

@click.command("greet")
@click.argument("name")
def greet(name: str) -> None:
    \"\"\"Greet somebody.\"\"\"
    click.echo(f"hello {name}")

def setup(app):
    app.add_subjects(subjects)
    app.add_subjects(failing)
    app.add_routes(routes)
    app.add_command(greet)
    app.add_prompts(Path(__file__).parent / "variants")
"""
CLASH = """
from aiohttp import web

routes = web.RouteTableDef()

@routes.get("/mine")
async def show(request: web.Request) -> web.Response:
    return web.Response()

@routes.get("/health")
async def show_health(request: web.Request) -> web.Response:
    return web.Response()
"""
VARIANT = """---
version: terse
purpose: one word
variables: {tip_kind: the topic}
limits: {max_chars: 20}
---
Answer in one word.
--- user
{{ tip_kind }}
"""


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """A worker with a good plugin and a broken one, which is left out; not started."""
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "terse.j2").write_text(VARIANT)
    return Worker(tmp_path, PLUGINS="good,broken", PLUGIN_ERRORS="skip")


async def test_good_plugin_works_beside_a_broken_one(worker: Worker) -> None:
    """Its handler, row and route work; /health says what was left out; a handler of its that fails stops no other."""
    with worker:
        await worker.start()
        await worker.wait_health(lambda health: "tipstream-seen" in health["nats"]["consumers"], what="the durable")
        await worker.wait_health(lambda health: health["nats"]["connected"], what="a connection")
        assert (await run_app("send", "signals.seen", '{"user_id": "ada"}', worker=worker)).code == 0
        await publish(worker.nats, "signals.seen", [{"user_id": "ada"}] * 4)
        await worker.wait_counts("tipstream-seen", processed=5)
        assert (await worker.get("/seen/ada")).json == {"count": 5}
        assert (await worker.get("/seen/bob")).json == {"count": 0}
        health = await worker.wait_health(lambda health: health["status"] == "degraded", what="degraded")
        assert any("plugin 'broken'" in reason and "not today" in reason for reason in health["reasons"])
        await worker.wait_health(lambda now: now["nats"]["consumers"]["tipstream-failing"]["errors"], what="errors")


async def test_commands_of_plugins_are_found(worker: Worker) -> None:
    """A plugin's command runs and is in the help; a broken plugin is a line on stderr, and our commands don't mind."""
    with worker:
        greeted = await run_app("greet", "ada", worker=worker)
        assert (greeted.code, greeted.out) == (0, "hello ada\n")
        assert "warning: left out: plugin 'broken'" in greeted.err
        assert "greet" in (await run_app("--help", worker=worker)).out
        unknown = await run_app("nosuch", worker=worker)
        assert (unknown.code, "No such command 'nosuch'" in unknown.err) == (2, True)
        settings = await run_app("settings", worker=worker)
        assert (settings.code, settings.err) == (0, "")
        handlers = await run_app("handlers", worker=worker)
        assert "warning: left out: plugin 'broken'" in handlers.err
        assert "seen.seen\tsignals.seen\tSIGNALS\ttipstream-seen\tSeen\tuser_id\tgood" in handlers.out.splitlines()


async def test_prompt_variants_of_plugins_are_listed(worker: Worker) -> None:
    """A variant in a plugin's folder is one among those that ship."""
    with worker:
        listed = await run_app("prompts", "list", worker=worker)
    assert listed.code == 0, listed.err
    assert [line.partition("\t")[0] for line in listed.out.splitlines()] == ["v1", "v2", "v3", "terse"]


async def test_broken_plugin_stops_the_start(worker: Worker) -> None:
    """By default it is one error with its name, file and line; the help still works."""
    worker.settings["PLUGIN_ERRORS"] = "stop"
    with worker:
        ended = await run_app("worker", worker=worker)
        assert ended.code == 1
        assert ended.err.strip().endswith("broken.py:1): RuntimeError: not today")
        assert (await run_app("--help", worker=worker)).code == 0
        worker.settings["PLUGINS"] = "no-module"
        helped = await run_app("--help", worker=worker)
        assert (helped.code, "warning: no plugin's commands: PLUGINS: expected" in helped.err) == (0, True)


async def test_route_of_a_plugin_is_behind_the_tokens(worker: Worker) -> None:
    """With API_TOKENS a plugin's route needs one as ours do, and its answers carry the request's id."""
    worker.settings |= {"API_TOKENS": "ui:a-token-of-this-test", "NATS_URL": ""}
    with worker:
        await worker.start()
        without = await worker.get("/seen/ada")
        ids = {"Authorization": "Bearer a-token-of-this-test", "X-Request-Id": "r1"}
        answer = await worker.get("/seen/ada", **ids)
        assert (without.status, without.json["status"]) == (401, 401)
        assert (answer.status, answer.json, answer.headers["X-Request-Id"]) == (200, {"count": 0}, "r1")


@pytest.mark.parametrize("plugins", ["good,clash", "clash,good"], ids=["last", "first"])
async def test_plugin_that_clashes_is_left_out_whole(worker: Worker, plugins: str) -> None:
    """None of its routes is there when one of them is ours, whatever its place; log and health name file and line."""
    (worker.folder / "clash.py").write_text(CLASH)
    worker.settings |= {"PLUGINS": plugins, "NATS_URL": ""}
    with worker:
        await worker.start()
        assert [(await worker.get(path)).status for path in ("/seen/ada", "/mine", "/health")] == [200, 404, 200]
        error = f"plugin 'clash' ({worker.folder}/clash.py:10): route GET /health: plugin 'tipstream' has it"
        assert (await worker.health())["reasons"] == [error]
        assert [(line["level"], line["error"]) for line in worker.said("plugin left out")] == [("error", error)]
