"""The watchdog in a service: the handler that blocks the loop is found by the slot in which it runs."""

import logging
import time
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from service_kit import Step, client, payload, publish, rows_become, running_service, step_table, stream_is_there

from streams.context import Context


async def test_service_names_the_handler_that_blocks_the_loop(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names handler and line, and /health shows it afterwards; nothing is lost."""

    def stood_still() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage() == "the event loop stands still"]

    async def block_once(event: Step, ctx: Context) -> None:
        while event.n == 1 and not stood_still():
            time.sleep(0.05)

    async with running_service(nats_server.url, tmp_path, [step_table(block_once)]) as running:
        async with client(nats_server.url) as nc:
            await stream_is_there(nc)
            await publish(nc, [payload("ana", n) for n in range(3)])
        await rows_become(tmp_path, {"ana": [0, 1, 2]})
        await running.says("in steps.step (service_kit.py:")
        await wait_until(lambda: running.service.health().status == "degraded", what="it is no longer down")
    found = stood_still()
    assert [record.__dict__["fields"]["handler"] for record in found] == ["steps.step"]
    assert any(line.startswith("test_watchdog.py:") for line in found[0].__dict__["fields"]["frames"])
