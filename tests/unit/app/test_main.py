"""How the app is put together, and what stops a start before anything runs."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from harness import NatsServer, free_port, wait_until
from process_kit import environment

from app.main import App, access_of, bind, build, check_state_dir, run, service_config
from app.settings import Settings
from models.errors import PluginError, SettingsError, StoreCorrupt, StoreError, StoreUnwritable
from state.sqlite import SqliteStore
from state.store import store_path
from state.tables import Table
from streams.subjects import SubjectTable

AiohttpClient = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


@attrs.frozen(kw_only=True)
class Row:
    n: int = 0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that start nothing."""
    return Settings(model_registry="none", nats_url="", state_dir=tmp_path / "var", http_port=0)


def test_app_refuses_two_subject_tables_of_one_name(settings: Settings) -> None:
    """A name is a durable's, so it may be used once."""
    app = App(settings)
    app.add_subjects(SubjectTable("a", tables=[]))
    with pytest.raises(PluginError, match="subject table 'a': name: another subject table has it"):
        app.add_subjects(SubjectTable("a", tables=[]))


def test_app_refuses_two_owners_of_one_row_table(settings: Settings) -> None:
    """Rows are written by one subject table alone; the message names both."""
    app = App(settings)
    app.add_subjects(SubjectTable("a", tables=[Table("rows", Row)]))
    with pytest.raises(PluginError, match="subject table 'b': tables: 'rows' belongs to subject table 'a'"):
        app.add_subjects(SubjectTable("b", tables=[Table("others", Row), Table("rows", Row)]))
    assert [table.name for table in app.subject_tables] == ["a"]


def test_app_adds_routes_of_others(settings: Settings) -> None:
    """A table of routes is served by the app's HTTP application."""
    routes = web.RouteTableDef()

    @routes.get("/mine")
    async def show(_: web.Request) -> web.Response:
        return web.Response()

    app = App(settings)
    app.add_routes(routes)
    assert {resource.canonical for resource in app.http.router.resources()} == {"/mine"}


def test_build_has_all_tables_and_routes(settings: Settings) -> None:
    """What ships is there: two subject tables and the documented routes."""
    app = build(settings)
    assert [table.name for table in app.subject_tables] == ["feedback", "generations", "signals"]
    assert {resource.canonical for resource in app.http.router.resources()} == {
        "/docs",
        "/openapi.json",
        "/generate",
        "/feedback",
        "/prompts/analytics",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/models",
        "/models/{version}/card",
        "/score",
        "/state/{table}/{key}",
    }


def test_build_twice_makes_apps_of_their_own(settings: Settings) -> None:
    """Nothing is shared through a module: two apps in one process don't meet."""
    assert build(settings).http is not build(settings).http


@pytest.mark.parametrize(
    ("url", "mode", "status"),
    [("", "disabled", "ok"), (None, "embedded", "down"), ("nats://127.0.0.1:1", "external", "down")],
    ids=["disabled", "embedded", "external"],
)
def test_health_before_the_start(settings: Settings, url: str | None, mode: str, status: str) -> None:
    """An app that has not started is down, unless it has no NATS to start."""
    health = build(attrs.evolve(settings, nats_url=url)).health()
    assert (health.status, health.nats.mode, health.nats.connected) == (status, mode, False)


async def test_decisions_of_the_app_reach_their_stream(
    settings: Settings, nats_server: NatsServer, aiohttp_client: AiohttpClient
) -> None:
    """What a view writes is stored by JetStream, also when the app stops right after, and /health counts it."""
    check_state_dir(settings.state_dir)
    app = build(attrs.evolve(settings, nats_url=nats_server.url), plugins=[])
    client = await aiohttp_client(app.http)
    await wait_until(lambda: app.health().status == "ok")
    assert app.decisions.admit("r1") == 1.0
    assert app.decisions.write("decisions.score", b"{}")
    await wait_until(lambda: app.decisions.facts().published == 1)
    shown = (await (await client.get("/health")).json())["decisions"]
    assert (shown["status"], shown["rate"], shown["published"]) == ("ok", 1.0, 1)
    assert app.decisions.write("decisions.score", b"{}")
    await client.close()
    assert app.decisions.facts().published == 2
    assert app.decisions.admit("r1") is None


async def test_decisions_without_nats_are_not_logged(settings: Settings, aiohttp_client: AiohttpClient) -> None:
    """With NATS disabled nothing is logged, which degrades nothing."""
    app = build(settings, plugins=[])
    client = await aiohttp_client(app.http)
    assert app.decisions.admit("r1") is None
    health = await (await client.get("/health")).json()
    assert (health["status"], health["decisions"]["status"], health["decisions"]["rate"]) == ("ok", "ok", 0.0)


async def test_finish_without_streams_does_nothing(settings: Settings) -> None:
    """Stopping an app that has nothing running returns at once."""
    app = build(settings)
    await app.finish()
    assert app.service is None


def test_services_get_what_the_operator_set(settings: Settings, tmp_path: Path) -> None:
    """Limits, prefix, replicas and login of the settings reach the streams."""
    limits = {"nats_max_deliver": 3, "parked_max": 7}
    chosen = attrs.evolve(settings, **limits, nats_durable_prefix="p", stream_replicas=3, nats_creds=tmp_path)
    config = service_config(chosen)
    assert (config.limits.max_deliver, config.limits.parked_max) == (3, 7)
    assert (config.durable_prefix, config.replicas, config.state_dir) == ("p", 3, tmp_path / "var")
    assert (access_of(chosen).creds, access_of(chosen).tls_context()) == (tmp_path, None)


def test_bind_takes_a_free_port(settings: Settings) -> None:
    """Port 0 takes one that is free."""
    with bind(settings) as listening:
        assert listening.getsockname()[0] == "127.0.0.1" and listening.getsockname()[1] > 0


def test_bind_names_the_port_that_is_taken(settings: Settings) -> None:
    """A taken port is named with its setting, and the system's reason once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as raised:
            bind(attrs.evolve(settings, http_port=port))
    expected = f"HTTP_PORT: can't listen on 127.0.0.1 (Address already in use), got '{port}'"
    assert str(raised.value) == expected


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"], ids=["address", "name"])
def test_bind_names_a_host_that_is_not_this_machine(settings: Settings, host: str) -> None:
    """An address of another machine, or an unknown name, is the fault of HTTP_HOST."""
    with pytest.raises(SettingsError, match=rf"^HTTP_HOST: expected an address of this machine \(.*\), got '{host}'$"):
        bind(attrs.evolve(settings, http_host=host))


def test_state_dir_is_made(tmp_path: Path) -> None:
    """A missing STATE_DIR is made with its parents; nothing is put into it yet."""
    check_state_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_state_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Where no folder can be, the error names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnwritable, match="STATE_DIR can't be made"):
        check_state_dir(tmp_path / "file")


def test_state_dir_with_a_foreign_store_is_refused(tmp_path: Path) -> None:
    """A file of another program under the store's name stops the start before anything runs."""
    store_path(tmp_path).write_text("no database at all " * 100)
    with pytest.raises(StoreCorrupt, match="it was left as it is"):
        check_state_dir(tmp_path)


@contextlib.asynccontextmanager
async def stopped_when_ok(settings: Settings, number: signal.Signals) -> AsyncIterator[list[str]]:
    """Sends this process a signal as soon as /health of the app that runs meanwhile is ok; gives the modes it said."""
    modes: list[str] = []

    async def is_ok() -> bool:
        try:
            async with client.get(f"http://{host}:{settings.http_port}/health") as response:
                health = await response.json()
        except aiohttp.ClientConnectionError:
            return False
        modes.append(health["nats"]["mode"])
        return bool(health["status"] == "ok")

    async def stop() -> None:
        await wait_until(is_ok)
        os.kill(os.getpid(), number)

    host = f"[{settings.http_host}]" if ":" in settings.http_host else settings.http_host
    async with aiohttp.ClientSession() as client:
        stopping = asyncio.create_task(stop())
        try:
            yield modes
        finally:
            stopping.cancel()
            await asyncio.wait([stopping])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_run_without_nats_serves_until_a_signal(
    settings: Settings, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end the run in order; the log says that it was ready, where, and that it stopped."""
    caplog.set_level(logging.INFO, "app.main")
    chosen = attrs.evolve(settings, http_port=free_port(), log_format="json")
    async with stopped_when_ok(chosen, number) as modes:
        await run(chosen)
    first, last = (record for record in caplog.records if record.name == "app.main")
    assert (first.getMessage(), last.getMessage(), modes[-1]) == ("ready", "stopped", "disabled")
    assert first.__dict__["fields"]["http"] == f"http://127.0.0.1:{chosen.http_port}"
    assert "signals.task_synced" in first.__dict__["fields"]["handlers"]


async def test_run_with_a_server_of_its_own_says_so(
    settings: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without NATS_URL the embedded server and the streams start; elsewhere than on a terminal it warns of that."""
    chosen = attrs.evolve(settings, nats_url=None, http_host="::1", http_port=free_port(), log_format="text")
    async with stopped_when_ok(chosen, signal.SIGTERM) as modes:
        await run(chosen)
    out = capsys.readouterr().out
    assert modes[-1] == "embedded"
    assert f"  http     http://[::1]:{chosen.http_port}\n" in out and " (embedded)\n" in out
    assert "  handler  feedback.tip_rewarded  <-  feedback.tip.rewarded\n" in out
    assert "a NATS server of its own" in caplog.text


async def test_run_ends_with_the_reason_of_the_streams(settings: Settings, nats_server: NatsServer) -> None:
    """What ends the streams by itself ends the run: here a store that was filled under another prefix."""
    check_state_dir(settings.state_dir)
    store = SqliteStore(store_path(settings.state_dir))
    store.claim("other")
    store.close()
    with pytest.raises(StoreError, match="NATS_DURABLE_PREFIX 'other', not 'tipstream'"):
        await run(attrs.evolve(settings, nats_url=nats_server.url))


STUBBORN = """
import asyncio, os, signal
from pathlib import Path
from app.main import run
from app.settings import Settings

async def ignore_every_cancellation():
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def main():
    task = asyncio.create_task(ignore_every_cancellation(), name="stubborn-handler")
    await run(Settings(model_registry="none", nats_url="", state_dir=Path("var"), http_port=0, log_format="json"))

asyncio.run(main())
"""


def test_run_does_not_wait_for_ever_for_what_can_not_be_cancelled(tmp_path: Path) -> None:
    """After all else has stopped, a task that ignores its cancellation is named, and the process ends with code 1."""
    root = Path(__file__).parents[3]
    env = environment(tmp_path, {"PYTHONPATH": str(root)})
    ended = subprocess.run(
        [sys.executable, "-c", STUBBORN], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert "a handler can't be cancelled; its message comes again" in ended.stderr
