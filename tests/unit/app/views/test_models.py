"""``/models`` and the card of each version, asked for through a real server with the application's middlewares."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st
from registry_kit import NAME, NOW, filled_registry
from yarl import URL

from app.cards import ServedModel
from app.metrics import Metrics
from app.middleware import middlewares
from app.views.models import models_routes, wanted_format
from models.registry import Registry
from streams.health import Health, NatsHealth, StateHealth

PAGE = "text/html; charset=utf-8"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
SERVED = {"champion": ServedModel(version="1", reason="model 2: card.json: it is missing; version 1 goes on")}


class FakeSource:
    """A worker in good health."""

    def health(self) -> Health:
        """All is well."""
        nats = NatsHealth(enabled=False, mode="disabled", connected=False)
        return Health(status="ok", reasons=[], nats=nats, state=StateHealth())


@attrs.frozen(kw_only=True)
class Server:
    """A listening server with a registry of two versions, of which the second is the champion."""

    registry: Registry
    port: int
    session: ClientSession

    async def ask(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Asks for a path exactly as written; status, headers and body."""
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.session.get(url, headers=headers) as response:
            return response.status, dict(response.headers), await response.text()

    async def json(self, path: str) -> tuple[int, Any]:
        """Status and document."""
        status, _, body = await self.ask(path)
        return status, json.loads(body)


@contextlib.asynccontextmanager
async def serve(routes: web.RouteTableDef, registry: Registry) -> AsyncIterator[Server]:
    """Listens with these routes."""
    app = web.Application(middlewares=middlewares(observer=Metrics(FakeSource()), tokens=[]))
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with ClientSession() as session:
            yield Server(registry=registry, port=runner.addresses[0][1], session=session)
    finally:
        await runner.cleanup()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A process that still answers with version 1."""
    registry = filled_registry(tmp_path)
    registry.promote("1", now=NOW)
    registry.promote("2", reason="better", now=NOW)
    async with serve(models_routes(registry, lambda: SERVED), registry) as one:
        yield one


@pytest.fixture
async def without_registry(tmp_path: Path) -> AsyncIterator[Server]:
    """A process with MODEL_REGISTRY=none."""
    async with serve(models_routes(None, dict), Registry(tmp_path, NAME)) as one:
        yield one


async def test_models_lists_versions_and_what_is_served(server: Server) -> None:
    """Each version with its facts, the aliases, and why the process answers with another one."""
    status, document = await server.json("/models")
    first = document["versions"][0]
    assert (status, document["name"], document["aliases"]) == (200, NAME, {"champion": "2", "shadow": None})
    assert document["served"] == {"champion": attrs.asdict(SERVED["champion"])}
    assert [(one["version"], one["aliases"]) for one in document["versions"]] == [("1", []), ("2", ["champion"])]
    assert (first["created_at"], first["is_simulated"], first["problem"]) == ("2026-03-01T12:00:00Z", True, None)
    assert first["metric"]["name"] == "auc" and len(first["artifact_hash"]) == 64


async def test_models_lists_a_version_whose_card_is_spoiled(server: Server) -> None:
    """One bad version hides no other, and says what is wrong with it."""
    (server.registry.folder / "versions" / "1" / "card.json").write_bytes(b"{}")
    _, document = await server.json("/models")
    assert [one["problem"] for one in document["versions"]] == ["card.json: name: missing", None]


async def test_models_tells_one_state_of_the_aliases(tmp_path: Path) -> None:
    """An alias that moves while the versions are read is either here or there, throughout the document."""

    class Moving(Registry):
        def aliases(self) -> Mapping[str, str]:
            found = super().aliases()
            other = "2" if found["champion"] == "1" else "1"
            (self.folder / "aliases.json").write_text(json.dumps({"champion": other}))
            return found

    filled_registry(tmp_path).promote("1", now=NOW)
    registry = Moving(tmp_path, NAME)
    async with serve(models_routes(registry, dict), registry) as server:
        _, document = await server.json("/models")
        named = [one["version"] for one in document["versions"] if "champion" in one["aliases"]]
        assert named == [document["aliases"]["champion"]]


async def test_card_is_the_whole_card_with_its_history(server: Server) -> None:
    """By number or by alias: the card's fields, and the moves of the version."""
    status, by_number = await server.json("/models/2/card")
    assert (status, by_number["version"], by_number["aliases"]) == (200, "2", ["champion"])
    assert [line["reason"] for line in by_number["rollouts"]] == ["better"]
    assert (by_number["card_schema"], by_number["training"]["is_simulated"]) == (1, True)
    assert (await server.json("/models/champion/card"))[1] == by_number


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        pytest.param("", "*/*", "application/json", id="curl"),
        pytest.param("", BROWSER, PAGE, id="browser"),
        pytest.param("", "text/html", PAGE, id="html"),
        pytest.param("", "application/json, text/html;q=0.5", "application/json", id="rather json"),
        pytest.param("?format=html", "application/json", PAGE, id="asked for html"),
        pytest.param("?format=json", BROWSER, "application/json", id="asked for json"),
    ],
)
async def test_card_comes_in_the_form_that_is_wanted(server: Server, query: str, accept: str, kind: str) -> None:
    """A browser gets a page, a program JSON, and the query decides."""
    status, headers, body = await server.ask(f"/models/2/card{query}", Accept=accept)
    assert (status, headers["Content-Type"]) == (200, kind)
    assert (headers["Vary"], headers["Cache-Control"]) == ("Accept", "no-store")
    assert body.startswith("<!doctype html>" if kind == PAGE else '{"version":"2"')


async def test_card_page_may_run_nothing(server: Server) -> None:
    """The browser is told so, whatever a card says."""
    _, headers, _ = await server.ask("/models/2/card?format=html")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_card_refuses_a_format_that_there_is_not(server: Server) -> None:
    """400 names what there is."""
    status, document = await server.json("/models/2/card?format=pdf")
    assert (status, document["detail"]) == (400, "format: expected json or html")


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("9", "model '9': no such version; there is 1, 2"),
        ("shadow", "model shadow: no version has this alias yet"),
        ("..%2F..%2Fx", "model '../../x': no such version; there is 1, 2"),
        ("1%00", "model '1\\x00': no such version; there is 1, 2"),
        ("%D9%A1", "model '١': no such version; there is 1, 2"),
    ],
    ids=["version", "alias", "path", "nul", "other digit"],
)
async def test_card_of_nothing_is_404(server: Server, name: str, detail: str) -> None:
    """The document says what there is, as a page would."""
    for query in ("", "?format=html"):
        status, document = await server.json(f"/models/{name}/card{query}")
        assert (status, document["detail"]) == (404, detail)


async def test_card_that_can_not_be_used_is_503_with_the_reason(server: Server) -> None:
    """The reason names the field and no path of the machine."""
    (server.registry.folder / "versions" / "2" / "card.json").write_bytes(b'{"name": 1}')
    status, document = await server.json("/models/champion/card")
    assert (status, document["detail"]) == (503, "model 2: card.json: name: expected str, got int")


async def test_models_without_readable_aliases_is_503_with_the_reason(server: Server) -> None:
    """What is wrong with the registry is told, not hidden."""
    (server.registry.folder / "aliases.json").write_bytes(b'{"champion": 2}')
    status, document = await server.json("/models")
    assert status == 503
    assert document["detail"].startswith("model tip-scorer: aliases.json: champion: expected str")


async def test_models_without_a_registry_says_so(without_registry: Server) -> None:
    """The list is empty with the reason, and no card is there."""
    status, document = await without_registry.json("/models")
    assert (status, document["versions"], document["name"]) == (200, [], None)
    assert document["problem"] == "no models are looked for: MODEL_REGISTRY is none"
    status, problem = await without_registry.json("/models/1/card")
    assert (status, problem["detail"]) == (404, document["problem"])


@given(st.lists(st.sampled_from(["text/html", "application/json", ",", ";", "q=", "0.5", "1", "*/*", " ", "x"])))
def test_any_accept_header_has_a_format(pieces: list[str]) -> None:
    """Whatever a client sends, it gets one of the two."""
    assert wanted_format(None, "".join(pieces)) in ("json", "html")
