"""``live_app``: each verb does what it says, to the application itself on a real nats-server."""

import asyncio
import types
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from harness import wait_until
from service_kit import api, client

from app.rows import fetch_row
from models.errors import BrokerUnavailable, DeclarationError, PluginError, Reject, Retry, SettingsError, StoreFenced
from state.sqlite import SqliteStore
from state.store import store_path
from state.tables import Table
from streams.context import Context
from streams.handlers import signals
from streams.policy import Policy
from streams.subjects import SubjectTable
from streams.testing import LiveApp, live_app

SUBJECT = "signals.step.made"
Behaviour = Callable[["Step", Context], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int = 1


@attrs.frozen(kw_only=True)
class Walk:
    steps: int = 0


@attrs.frozen(kw_only=True)
class Day:
    count: int = 0


class Steps:
    """A subject table that adds up, after a behaviour of the test's own; ``seen`` counts the runs by sequence."""

    def __init__(
        self, behaviour: Behaviour | None = None, *, policy: Policy | None = None, subject: str = SUBJECT
    ) -> None:
        self.seen: Counter[int] = Counter()
        self.walks = Table("walks", Walk)
        self.subjects = SubjectTable("walks", tables=[self.walks])

        async def step_made(event: Step, ctx: Context) -> None:
            self.seen[ctx.message.seq] += 1
            if behaviour:
                await behaviour(event, ctx)
            row = ctx.get(self.walks, event.user_id) or Walk()
            ctx.put(self.walks, event.user_id, Walk(steps=row.steps + event.n))

        self.subjects.on(subject, policy=policy)(step_made)


async def consumer_seq(app: LiveApp) -> int:
    """How many deliveries the server has counted since the durable's last reset."""
    async with client(app.server_url) as nc:
        found = await api(nc, "CONSUMER.INFO.SIGNALS.tipstream-walks")
    return int(found["delivered"]["consumer_seq"])


async def test_live_app_applies_what_is_published() -> None:
    """A record, a dict and bytes are stored, applied and read back as rows and as events."""
    steps = Steps()
    async with live_app(steps.subjects) as app:
        sent = [Step(user_id="ada"), {"user_id": "ada", "n": 2}, b'{"user_id": "bob"}']
        assert [await app.publish(SUBJECT, event) for event in sent] == [1, 2, 3]
        await app.quiet()
        assert app.row(steps.walks, "ada") == Walk(steps=3)  # 1 + 2
        assert app.rows(steps.walks) == {"ada": Walk(steps=3), "bob": Walk(steps=1)}
        assert app.row(steps.walks, "nobody") is None
        assert await app.published("signals.>") == [
            {"user_id": "ada", "n": 1},
            {"user_id": "ada", "n": 2},
            {"user_id": "bob"},
        ]


async def test_live_app_answers_http_with_routes_of_its_own() -> None:
    """Shipped views and a plugin's routes answer on a port of its own, and health is that of the application."""
    steps, routes = Steps(), web.RouteTableDef()

    @routes.get("/walks/{user_id}")
    async def walk(request: web.Request) -> web.Response:
        row = await fetch_row(request, steps.walks, request.match_info["user_id"])
        return web.json_response({"steps": row.steps if row else 0})

    async with live_app(steps.subjects, routes) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert await (await app.get("/walks/ada")).json() == {"steps": 1}
        assert (await app.get("/state/walks/ada")).status == 200
        assert list((await app.health())["nats"]["consumers"]) == ["tipstream-walks"]


async def test_live_app_touches_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the current folder nor the environment, nor the port and folder that settings would take, are used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_DURABLE_PREFIX", "mine")
    async with live_app(Steps().subjects) as app:
        folder = app.settings.state_dir.parent
        assert app.settings.nats_durable_prefix == "tipstream"
        assert app.url("/").startswith("http://127.0.0.1:") and ":8080" not in app.url("/")
    assert list(tmp_path.iterdir()) == []
    assert not folder.exists()


async def test_live_app_runs_modules_and_the_tables_that_ship_only_if_asked_to() -> None:
    """A module is a thing as well; what ships is there when it is named."""
    module = types.ModuleType("walking")
    vars(module)["subjects"] = Steps().subjects
    async with live_app(module, signals) as app:
        assert [table.name for table in app.app.subject_tables] == ["walks", "signals"]


@pytest.mark.parametrize(
    ("things", "options", "error", "problem"),
    [
        ((object(),), {}, PluginError, "expected a plain function setup"),
        ((Steps().subjects, Steps().subjects), {}, PluginError, "another subject table has it"),
        ((), {"time_scale": 0}, DeclarationError, "time_scale: expected a number above 0, got 0"),
        ((), {"env": {"NATS_MAX_DELIVER": "many"}}, SettingsError, "NATS_MAX_DELIVER"),
    ],
    ids=["nothing", "twice", "scale", "setting"],
)
async def test_live_app_names_what_it_can_not_start(things: Any, options: Any, error: Any, problem: str) -> None:
    """A bad argument is one error on entering, and nothing is left running."""
    with pytest.raises(error, match=problem):
        async with live_app(*things, **options):
            raise AssertionError("it has started")


async def test_quiet_waits_for_events_that_follow_from_events() -> None:
    """What a handler publishes is applied too before there is quiet."""

    async def follow(event: Step, ctx: Context) -> None:
        if event.n < 5:
            ctx.publish(SUBJECT, Step(user_id=f"user{event.n}", n=event.n + 1))

    steps = Steps(follow)
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, Step(user_id="user0", n=1))
        await app.quiet()
        assert sum(row.steps for row in app.rows(steps.walks).values()) == 15  # 1 + 2 + 3 + 4 + 5


async def test_quiet_says_what_is_under_way() -> None:
    """A handler that does not end is told as what is left, and quiet comes once it has ended."""
    may_end = asyncio.Event()

    async def wait(event: Step, ctx: Context) -> None:
        await may_end.wait()

    steps = Steps(wait)
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await wait_until(lambda: steps.seen, what="the handler runs")
        with pytest.raises(AssertionError, match="not quiet within 0.2 s: tipstream-walks: 1 messages in hand"):
            await app.quiet(0.2)
        may_end.set()
        await app.quiet()


async def test_quiet_lets_parked_messages_wait_if_told_so() -> None:
    """What is parked for later counts as under way unless ``parked``; its row is not there."""

    async def away(event: Step, ctx: Context) -> None:
        raise Retry("away", delay_s=3600)

    steps = Steps(away)
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet(parked=True)
        with pytest.raises(AssertionError, match="1 messages parked"):
            await app.quiet(0.1)
        assert app.row(steps.walks, "ada") is None


async def test_live_app_shows_dead_letters() -> None:
    """A message that is given up says by whom, why and what it was."""

    async def refuse(event: Step, ctx: Context) -> None:
        raise Reject("no")

    async with live_app(Steps(refuse).subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.publish(SUBJECT, b"{")
        await app.quiet()
        letters = sorted(await app.dead_letters(), key=lambda letter: letter.seq)  # they leave side by side
        assert [(letter.handler, letter.subject, letter.seq) for letter in letters] == [
            ("walks.step_made", SUBJECT, 1),
            ("walks.step_made", SUBJECT, 2),
        ]
        assert (letters[0].error, letters[0].event, letters[1].event) == ("Reject: no", {"user_id": "ada"}, b"{")


async def test_time_scale_shortens_the_waits_of_a_policy() -> None:
    """Backoffs of minutes, and an hour that a Retry asks for, pass within the test; the table itself is as it was."""

    async def fail_twice(event: Step, ctx: Context) -> None:
        if steps.seen[ctx.message.seq] == 1:
            raise RuntimeError("once")
        if steps.seen[ctx.message.seq] == 2:
            raise Retry("twice", delay_s=3600)

    steps = Steps(fail_twice, policy=Policy(backoff_s=(600,)))
    async with live_app(steps.subjects, time_scale=0.00001) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert app.row(steps.walks, "ada") == Walk(steps=1)
    assert steps.seen == {1: 3}
    assert steps.subjects.handlers[0].policy.backoff_s == (600,)


async def test_redeliver_brings_back_what_was_not_acked() -> None:
    """A message whose ack was lost is delivered a second time and applied once."""
    steps = Steps()
    async with live_app(steps.subjects) as app:
        with app.drop_acks():
            await app.publish(SUBJECT, {"user_id": "ada"})
            await app.quiet()
        with pytest.raises(AssertionError, match="1 messages unacked"):
            await app.quiet(1)  # the server is asked
        await app.redeliver()
        await app.quiet()
        assert await consumer_seq(app) == 2  # delivered once, and once more
        assert app.row(steps.walks, "ada") == Walk(steps=1)


async def test_redeliver_brings_back_everything_when_all_is_acked() -> None:
    """A server that begins anew finds each message applied already, with order and without it."""
    steps, days = Steps(), Table("days", Day, kind="counters")
    counts = SubjectTable("counts", tables=[days], order="none")

    async def count(event: Step, ctx: Context) -> None:
        ctx.add(days, "today", "count", 1)

    counts.on(SUBJECT)(count)
    async with live_app(steps.subjects, counts) as app, client(app.server_url) as nc:
        acks = await nc.subscribe("$JS.ACK.SIGNALS.tipstream-counts.>")
        await nc.flush()
        for _ in range(3):
            await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert await consumer_seq(app) == 3
        await wait_until(lambda: acks.pending_msgs == 3, what="three acks are seen")
        await app.redeliver()
        await app.quiet()
        assert (app.row(steps.walks, "ada"), app.row(days, "today")) == (Walk(steps=3), Day(count=3))
        assert await consumer_seq(app) == 0  # attached anew
        await wait_until(lambda: acks.pending_msgs == 6, what="all are acked once more")
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert (app.row(steps.walks, "ada"), app.row(days, "today")) == (Walk(steps=4), Day(count=4))


async def test_live_app_with_a_dead_server_ends_and_refuses_to_publish() -> None:
    """Without a server a publish says so at once, quiet says so in its time, and leaving is no error."""
    async with live_app(Steps().subjects) as app:
        await app.kill_server()
        with pytest.raises(BrokerUnavailable, match="the nats-server does not run"):
            await app.publish(SUBJECT, {"user_id": "ada"})
        with pytest.raises(AssertionError, match="not quiet within 0.2 s"):
            await app.quiet(0.2)


async def test_cut_has_the_worker_connect_anew() -> None:
    """After a cut connection the worker attaches again and goes on."""
    steps = Steps()
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        app.cut()
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert app.row(steps.walks, "ada") == Walk(steps=2)
        assert await consumer_seq(app) == 1  # the second message is the first delivery of a new attach


async def test_kill_server_and_restart_server_keep_what_was_stored() -> None:
    """A message that was stored before the kill is applied after the restart, once, and HTTP answers meanwhile."""
    may_end = asyncio.Event()

    async def wait(event: Step, ctx: Context) -> None:
        await may_end.wait()

    steps = Steps(wait)
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.kill_server()
        assert (await app.get("/health/live")).status == 200
        may_end.set()
        await app.restart_server()
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert app.row(steps.walks, "ada") == Walk(steps=2)


async def test_restart_goes_on_where_the_worker_was() -> None:
    """The worker that starts on the same data applies what came, and nothing twice."""
    steps = Steps()
    async with live_app(steps.subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        before = app.app
        await app.restart()
        assert app.app is not before
        await app.publish(SUBJECT, {"user_id": "ada"})
        await app.quiet()
        assert app.row(steps.walks, "ada") == Walk(steps=2)
        assert steps.seen == {1: 1, 2: 1}


async def test_quiet_passes_on_why_the_worker_has_ended() -> None:
    """A worker that ends by itself is no endless wait: its error comes out of quiet, and out of the end."""
    with pytest.raises(StoreFenced, match="another process has taken this store over"):
        async with live_app(Steps().subjects) as app:
            SqliteStore(store_path(app.settings.state_dir)).close()
            await app.publish(SUBJECT, {"user_id": "ada"})
            await app.quiet()
