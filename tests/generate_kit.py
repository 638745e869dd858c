"""``POST /generate`` over real sockets, in front of a model that does as it is told."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
from aiohttp import ClientSession, web
from llm_kit import FakeModel, Reply

from app.generating import Generating
from app.middleware import BODY_LIMIT_BYTES, answer_errors, carry_request_id
from app.user_rows import UserRowReader
from app.views.generate import generate_routes
from models.codec import decoder_for
from models.events import GenerateDecided
from models.profile_reader import ProfileReader, UnknownFeatures
from prompts.catalog import Catalog
from prompts.gateway import Gateway, GatewayConfig
from prompts.registry import SHIPPED
from prompts.retries import RetryConfig
from prompts.tips import Tip
from prompts.wire import WireConfig
from prompts.writer import Writer

GOOD = "Pick one small task and finish it today."
OTHER = "Close one open loop before lunch."
decode_decision = decoder_for(GenerateDecided)


@attrs.define
class Decisions:
    """A decision log that keeps what it gets."""

    rate: float | None = 1.0
    admitted: int = 0
    written: list[GenerateDecided] = attrs.field(factory=list)

    def admit(self, request_id: str) -> float | None:
        """The rate, whatever the id."""
        self.admitted += 1
        return self.rate

    def write(self, subject: str, payload: bytes) -> bool:
        """Keeps it."""
        assert subject == "decisions.generate"
        self.written.append(decode_decision(payload))
        return True


@attrs.define(kw_only=True)
class Served:
    """A running route."""

    session: ClientSession
    model: FakeModel
    gateway: Gateway
    decisions: Decisions
    observed: list[Tip]
    writer: Writer
    catalog: Catalog

    async def post(self, **fields: Any) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        headers = {"X-Deadline-Ms": str(fields.pop("deadline_ms", 30_000))}
        async with self.session.post("/generate", json={"user_id": "ada"} | fields, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def tip(self, **fields: Any) -> Any:
        """The answer to a request that fits."""
        status, answer = await self.post(**fields)
        assert status == 200, answer
        return answer

    async def events(self, **fields: Any) -> list[tuple[str, Any]]:
        """The events of a streamed answer."""
        headers = {"X-Deadline-Ms": str(fields.pop("deadline_ms", 30_000))}
        body = {"user_id": "ada", "stream": True} | fields
        async with self.session.post("/generate", json=body, headers=headers) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            text = await response.text()
        blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    fallback_model: str | None = None,
    has_gateway: bool = True,
    defaults: tuple[str, ...] = (),
    folders: tuple[Path, ...] = (),
    cache_s: float = 0.0,
    **script: list[Reply],
) -> AsyncIterator[Served]:
    """Serves the route while the block runs; models answer as the script says, any other with a text of three numbers.

    Args:
        folder: where the store would be.
        folders: of prompt variants beside the shipped ones.
    """
    catalog, decisions, observed = Catalog([SHIPPED, *folders]), Decisions(), list[Tip]()
    rows = UserRowReader(folder / "state.db")
    async with FakeModel(**script) as model:
        config = GatewayConfig(
            wire=WireConfig(url=model.url, api_key="sk-secret-of-the-test"),
            retry=RetryConfig(max_retries=0),
            cache_s=cache_s,
        )
        async with Gateway(config) as gateway:
            writer = Writer(
                lambda: gateway if has_gateway else None,
                release=catalog.release,
                model="tips",
                fallback_model=fallback_model,
            )
            generating = Generating(
                writer,
                defaults=defaults,
                catalog=lambda: catalog,
                rows=rows,
                read_profile=ProfileReader(unknown=UnknownFeatures(lambda _: None), outside=lambda _: None).read,
                decisions=decisions,
                observe=lambda tip, _: observed.append(tip),
            )
            app = web.Application(middlewares=[carry_request_id, answer_errors], client_max_size=BODY_LIMIT_BYTES)
            app.add_routes(generate_routes(generating))
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                async with ClientSession(url) as session:
                    yield Served(
                        writer=writer,
                        catalog=catalog,
                        session=session,
                        model=model,
                        gateway=gateway,
                        decisions=decisions,
                        observed=observed,
                    )
            finally:
                await runner.cleanup()
                rows.close()
