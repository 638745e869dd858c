"""Builds the app, runs it and stops it.

``build`` makes every object and passes it in. ``run`` binds HTTP first, so that a taken port is found before anything
starts; then the embedded server, the connection and the stream service start, and stop in reverse order. Nothing is
decided about messages here: that is the business of streams/.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from pathlib import Path

import click
from aiohttp import web

from app.cards import open_registry
from app.generating import Generating
from app.metrics import Metrics
from app.middleware import BODY_LIMIT_BYTES, LINE_LIMIT_BYTES, middlewares
from app.openapi import openapi_document, operations_of
from app.openapi_schemas import Json
from app.plugin_checks import check_plugin
from app.plugins import Plugin, find_plugins, load_plugin, plugin_of
from app.prompts import gateway_config, running_catalog, with_prompts
from app.rows import ROWS, RowReader
from app.scoring import Scoring
from app.serving import ModelServing, Starter, train_starter
from app.settings import Settings
from app.user_rows import UserRowReader
from app.views import docs, feedback, generate, health, metrics, models, prompts, score, state
from models.errors import PluginError, SettingsError, StoreUnwritable
from models.features import FEATURES
from models.profile_reader import ProfileReader, UnknownFeatures
from models.scorer import Scorer
from prompts.catalog import Catalog
from prompts.gateway import Gateway
from prompts.writer import Writer
from state.schema import examine_database, has_database
from state.store import store_path
from streams.access import Access
from streams.broker import Broker
from streams.decision_log import DecisionLog
from streams.health import (
    Health,
    NatsHealth,
    StateHealth,
    judge,
    judge_decisions,
    with_decisions,
    with_model,
    with_reasons,
)
from streams.locks import read_mounts, refuse_network_filesystem
from streams.server import EmbeddedServer
from streams.service import ServiceConfig, StreamService
from streams.subjects import SubjectTable
from streams.table_health import Limits

log = logging.getLogger(__name__)

SITE_S = 2.0
LINGER_S = 1.0
"""How long the rest of a body is read that was refused before its end, so that its sender sees the answer."""
STUCK_S = 1.0
BACKLOG = 1024
"""Connections that the system takes for a busy loop; one more is dropped, and its client tries again after a second."""


class App:
    """The subject tables and routes of one process, and what runs them.

    Start and stop are driven by the ``cleanup_ctx`` of ``http``, the aiohttp application inside.

    Args:
        settings: as the operator set them.
        starter: trains the first model of an empty registry; None: nobody does.
    """

    def __init__(self, settings: Settings, *, starter: Starter | None = None) -> None:
        self.settings = settings
        self.plugins: list[Plugin] = []
        self._refused: list[str] = []
        self.metrics = Metrics(self)
        self.http = web.Application(
            middlewares=middlewares(observer=self.metrics, tokens=settings.api_tokens),
            client_max_size=BODY_LIMIT_BYTES,
        )
        self.features = dict(FEATURES)
        self.models = ModelServing(
            settings.model_name, open_registry(settings), Scorer(), features=self.features, train_starter=starter
        )
        self.nats_url: str | None = None
        self.ended = asyncio.Event()
        self.catalog: Catalog | None = None
        self.gateway: Gateway | None = None
        self.decisions = DecisionLog(settings.state_dir)
        self._broker: Broker | None = None
        self._service: StreamService | None = None
        self._running: asyncio.Task[None] | None = None
        self.http.cleanup_ctx.extend([self._provide_prompts, self._provide_gateway, self._provide_server])
        self.http.cleanup_ctx.extend([self._provide_broker, self._provide_decisions])
        self.http.cleanup_ctx.extend([self._provide_models, self._provide_service])

    def add_plugin(self, plugin: Plugin) -> None:
        """Adds all that a plugin brings, or nothing of it.

        Raises:
            PluginError: something of it clashes with what is there, or is declared wrongly.
        """
        check_plugin(plugin, self.plugins, prefix=self.settings.nats_durable_prefix)
        for routes in plugin.routes:
            self.http.add_routes(routes)
        for table in plugin.subject_tables:
            table.seal()
        self.features |= {feature.name: feature for feature in plugin.features}
        self.plugins.append(plugin)

    def add_subjects(self, table: SubjectTable) -> None:
        """Adds a subject table.

        Raises:
            PluginError: its name is taken, another one owns one of its row tables, or no stream has its subjects.
        """
        self.add_plugin(plugin_of(table))

    def add_routes(self, routes: web.RouteTableDef) -> None:
        """Adds HTTP routes.

        Raises:
            PluginError: one of them is taken.
        """
        self.add_plugin(plugin_of(routes, name="routes"))

    def refuse_plugin(self, error: PluginError) -> None:
        """Goes on without a plugin; /health says so."""
        self._refused.append(str(error))

    @property
    def refused(self) -> Sequence[str]:
        """Why plugins were left out."""
        return self._refused

    @property
    def subject_tables(self) -> list[SubjectTable]:
        """All subject tables, in the order in which they were added."""
        return [table for plugin in self.plugins for table in plugin.subject_tables]

    @property
    def commands(self) -> list[click.Command]:
        """The commands that plugins bring."""
        return [command for plugin in self.plugins for command in plugin.commands]

    @property
    def prompt_folders(self) -> list[Path]:
        """The folders of prompt variants that plugins bring."""
        return [folder for plugin in self.plugins for folder in plugin.prompt_folders]

    @property
    def broker(self) -> Broker | None:
        """The connection to NATS, once it has been begun; None when NATS is disabled."""
        return self._broker

    @property
    def service(self) -> StreamService | None:
        """What runs the subject tables, once there is a connection to NATS."""
        return self._service

    def openapi(self) -> Json:
        """The OpenAPI document of all routes, those of plugins among them."""
        has_tokens = bool(self.settings.api_tokens)
        return openapi_document(operations_of(self.plugins), version=version("tipstream"), has_tokens=has_tokens)

    def health(self) -> Health:
        """What /health shows, as of now."""
        health = with_reasons(self._service.health(), self._refused) if self._service else self._health_without_nats()
        health = with_model(health, self.models.health())
        if self.catalog:
            health = with_prompts(health, self.catalog, self.settings, self.gateway)
        return with_decisions(health, judge_decisions(self.decisions.facts()))

    def _health_without_nats(self) -> Health:
        mode = self.settings.nats_mode
        nats = NatsHealth(enabled=mode != "disabled", mode=mode, connected=False)
        return judge(nats, StateHealth(), error=None, extra=tuple(self._refused))

    async def finish(self) -> None:
        """Stops intake, lets running handlers finish inside SHUTDOWN_S, and commits.

        Raises:
            AppError: why the stream service ended, if it ended by itself.
        """
        if self._service and self._running:
            self._service.stop()
            await self._running

    async def _provide_prompts(self, _: web.Application) -> AsyncIterator[None]:
        async with running_catalog(self.settings, self.prompt_folders) as catalog:
            self.catalog = catalog
            yield

    async def _provide_gateway(self, _: web.Application) -> AsyncIterator[None]:
        config = gateway_config(self.settings)
        if config is None:
            yield
            return
        async with Gateway(config) as gateway:
            self.gateway = gateway
            yield

    async def _provide_server(self, _: web.Application) -> AsyncIterator[None]:
        settings = self.settings
        if settings.nats_mode != "embedded":
            self.nats_url = ",".join(settings.nats_urls) or None
            yield
            return
        async with EmbeddedServer(settings.state_dir, settings.nats_embedded_port) as server:
            self.nats_url = server.url
            yield

    async def _provide_broker(self, _: web.Application) -> AsyncIterator[None]:
        if self.nats_url is None:
            yield
            return
        name = f"{self.settings.nats_durable_prefix}-worker"
        async with Broker(self.nats_url.split(","), name=name, access=access_of(self.settings)) as broker:
            self._broker = broker
            yield

    async def _provide_decisions(self, _: web.Application) -> AsyncIterator[None]:
        if self._broker is None:
            yield
            return
        async with self.decisions.publishing(self._broker):
            yield

    async def _provide_models(self, _: web.Application) -> AsyncIterator[None]:
        async with self.models:
            yield

    async def _provide_service(self, _: web.Application) -> AsyncIterator[None]:
        if self._broker is None:
            yield
            return
        self._service = StreamService(
            service_config(self.settings),
            self.subject_tables,
            self._broker,
            observe_commit=self.metrics.observe_commit,
        )
        self._running = asyncio.create_task(self._service.run(self.settings.shutdown_s), name="streams")
        self._running.add_done_callback(lambda _: self.ended.set())
        yield
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


def access_of(settings: Settings) -> Access:
    """How to log in to NATS."""
    return Access(
        creds=settings.nats_creds,
        tls_ca=settings.nats_tls_ca,
        tls_cert=settings.nats_tls_cert,
        tls_key=settings.nats_tls_key,
    )


def service_config(settings: Settings) -> ServiceConfig:
    """What the stream service needs of the settings."""
    return ServiceConfig(
        state_dir=settings.state_dir,
        durable_prefix=settings.nats_durable_prefix,
        limits=Limits(max_deliver=settings.nats_max_deliver, parked_max=settings.parked_max),
        replicas=settings.stream_replicas,
        mode=settings.nats_mode,
    )


def build(settings: Settings, *, plugins: Sequence[Plugin] | None = None, starter: Starter | None = None) -> App:
    """Builds the app with everything that ships with it and every plugin that is found.

    Args:
        plugins: take these and no others.
        starter: trains the first model of an empty registry.

    Raises:
        PluginError: a plugin can't be loaded, or clashes with what is there; with PLUGIN_ERRORS=skip it is left out.
    """
    app = App(settings, starter=starter)
    reader = RowReader(store_path(settings.state_dir))
    app.http[ROWS] = reader
    scoring, generating = _provide_answers(app)
    for routes, operations in (
        (health.health_routes(app), health.OPERATIONS),
        (state.state_routes(reader), state.OPERATIONS),
        (metrics.metrics_routes(app.metrics), metrics.OPERATIONS),
        (score.score_routes(scoring), score.OPERATIONS),
        (generate.generate_routes(generating), generate.OPERATIONS),
        (feedback.feedback_routes(app), feedback.OPERATIONS),
        (prompts.prompts_routes(store_path(settings.state_dir)), prompts.OPERATIONS),
        (models.models_routes(open_registry(settings), app.models.served), models.OPERATIONS),
        (docs.docs_routes(app.openapi), docs.OPERATIONS),
    ):
        app.add_plugin(Plugin(name="tipstream", origin="shipped", routes=[routes], operations=operations))
    if plugins is None:
        for found in find_plugins(settings.plugins):
            try:
                app.add_plugin(load_plugin(found))
            except PluginError as error:
                if settings.plugin_errors == "stop" or found.origin == "shipped":
                    raise
                app.refuse_plugin(error)
    for plugin in plugins or ():
        app.add_plugin(plugin)
    reader.declare(table.name for subjects in app.subject_tables for table in subjects.tables)

    async def close_reader(_: web.Application) -> None:
        reader.close()

    app.http.on_cleanup.append(close_reader)
    return app


def _provide_answers(app: App) -> tuple[Scoring, Generating]:
    """Builds what answers ``/score`` and ``/generate``."""
    rows = UserRowReader(store_path(app.settings.state_dir))

    async def close_rows(_: web.Application) -> None:
        rows.close()

    app.http.on_cleanup.append(close_rows)
    unknown = UnknownFeatures(app.metrics.count_unknown_feature)
    profiles = ProfileReader(unknown=unknown, outside=app.metrics.count_outside_feature)

    def catalog() -> Catalog:
        assert app.catalog, "there is one before a request is answered"
        return app.catalog

    settings = app.settings
    writer = Writer(
        lambda: app.gateway,
        release=lambda variant: catalog().release(variant),
        model=settings.llm_model,
        fallback_model=settings.llm_fallback_model,
    )
    generating = Generating(
        writer,
        defaults=settings.default_prompt_version,
        catalog=catalog,
        rows=rows,
        read_profile=profiles.read,
        decisions=app.decisions,
        observe=app.metrics.observe_generation,
    )

    async def stop_writing(_: web.Application) -> None:
        writer.stop()

    app.http.on_shutdown.append(stop_writing)
    app.metrics.show_tokens(lambda: app.gateway.ledger.facts() if app.gateway else {})
    scoring = Scoring(
        app.models.scorer,
        rows,
        profiles.read,
        app.decisions,
        note_unknown=UnknownFeatures(app.metrics.count_unknown_candidate_feature, kind="candidate").note,
        features=app.features,
    )
    app.metrics.show_degraded_scores(lambda: scoring.degraded_counts)
    return scoring, generating


def check_state_dir(path: Path) -> None:
    """Makes STATE_DIR and looks at the store in it, if there is one, without changing it.

    Raises:
        StoreError: it can't be made or entered, is on a network file system, or holds a store that can't be used.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(path, f"STATE_DIR can't be made ({error})") from error
    refuse_network_filesystem(path.resolve(), read_mounts())
    if has_database(store_path(path)):
        examine_database(store_path(path), is_deep=False)


def bind(settings: Settings) -> socket.socket:
    """Takes the HTTP address.

    Raises:
        SettingsError: the port is taken, or the address is not this machine's.
    """
    host, port = settings.http_host, settings.http_port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # Python adds the address once more
        if error.errno == errno.EADDRNOTAVAIL or (error.errno or 0) < 0:  # below 0: the name is not known
            raise SettingsError("HTTP_HOST", host, f"expected an address of this machine ({reason})") from error
        raise SettingsError("HTTP_PORT", str(port), f"can't listen on {host} ({reason})") from error


async def run(settings: Settings) -> None:
    """Runs the worker until SIGTERM, SIGINT or a failure.

    Raises:
        AppError: what can't be started, or why it ended by itself.
    """
    check_state_dir(settings.state_dir)
    listening = bind(settings)
    app = build(settings, starter=train_starter)
    for refused in app.refused:
        log.error("plugin left out", extra={"fields": {"error": refused}})
    stop = asyncio.Event()
    _stop_on_signals(stop)
    runner = web.AppRunner(
        app.http,
        access_log=None,
        max_line_size=LINE_LIMIT_BYTES,
        logger=_silent(),
        shutdown_timeout=SITE_S,
        lingering_time=LINGER_S,
    )
    await runner.setup()
    try:
        await app.models.first_look()
        await web.SockSite(runner, listening, backlog=BACKLOG).start()
        _announce(app, listening)
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(app.ended.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        await app.finish()
    finally:
        await runner.cleanup()
    await _leave_stuck_handlers()
    log.info("stopped")


async def _leave_stuck_handlers() -> None:
    """Ends the process if a handler ignores its cancellation; nothing of it was committed or acked."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    stuck = (await asyncio.wait(tasks, timeout=STUCK_S))[1] if tasks else set()
    if stuck:
        names = sorted(task.get_name() for task in stuck)
        log.error("a handler can't be cancelled; its message comes again", extra={"fields": {"tasks": names}})
        logging.shutdown()
        os._exit(1)


def _stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and a first Ctrl-C stop in order; a second one leaves at once, which loses nothing that was acked."""

    def interrupt() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)


def _silent() -> logging.Logger:
    """A logger for aiohttp's own parser errors, whose tracebacks quote paths and so keys of users."""
    logger = logging.getLogger("aiohttp.server")
    logger.setLevel(logging.CRITICAL)
    return logger


def _announce(app: App, listening: socket.socket) -> None:
    """Says where everything is: lines for a person on a terminal, one log line elsewhere."""
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    settings = app.settings
    mode = settings.nats_mode
    nats = {"disabled": "disabled (NATS_URL is empty)", "external": "as NATS_URL says"}.get(mode, app.nats_url)
    handlers = [handler for table in app.subject_tables for handler in table.handlers]
    facts: dict[str, object] = {
        "http": url,
        "nats": f"{nats} ({mode})" if mode == "embedded" else nats,
        "state": str(store_path(settings.state_dir).resolve()),
    }
    if settings.log_format == "json" or (settings.log_format is None and not sys.stderr.isatty()):
        log.info("ready", extra={"fields": facts | {"handlers": [handler.name for handler in handlers]}})
    else:
        lines = [f"tipstream {version('tipstream')}", *(f"  {name:9}{value}" for name, value in facts.items())]
        lines += [f"  {'handler':9}{handler.name}  <-  {handler.subject}" for handler in handlers]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    if mode == "embedded" and not sys.stderr.isatty():
        log.warning("NATS_URL is unset: this worker runs a NATS server of its own, for one machine only")
