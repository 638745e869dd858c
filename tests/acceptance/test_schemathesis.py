"""The OpenAPI document is what a worker does: Schemathesis makes requests of it, good and bad, and checks answers."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from harness import wait_until
from process_kit import Worker, environment, publish, synced
from registry_kit import NOW, filled_registry

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CONFIG = Path(__file__).with_name("schemathesis.toml")
ANSWERED = (("GET", "/state/{table}/{key}"), ("GET", "/models/{version}/card"), ("POST", "/score"), ("GET", "/docs"))


def schemathesis(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Runs it over the document at a URL; what it leaves behind lies in the folder."""
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
    command = [*program, "run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"]
    return subprocess.run(command, cwd=folder, env=environment(folder, {}), capture_output=True, text=True, check=False)


async def has_data(worker: Worker) -> bool:
    """Whether what the document's examples ask for is there."""
    answers = [await worker.get(path, **BEARER) for path in ("/state/user_sync/u-1", "/models/champion/card")]
    return all(answer.status == 200 for answer in answers)


@pytest.mark.timeout(180)  # about 800 requests, each checked in many ways
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """No request is answered otherwise than the document says; the 200s that need data are among the answers."""
    filled_registry(tmp_path / "models", 1).promote("1", now=NOW)
    with Worker(tmp_path, API_TOKENS=f"ops:{TOKEN}", MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.task.synced", [synced("u-1")])
        await wait_until(lambda: has_data(worker), what="a row and a card are there")
        result = await asyncio.to_thread(schemathesis, tmp_path, worker.http)
        assert result.returncode == 0, f"{result.stdout[-6000:]} {result.stderr[-2000:]}"
        counts = (await worker.get("/metrics", **BEARER)).text
        for method, route in ANSWERED:
            assert f'method="{method}",route="{route}",status="200"' in counts, f"{route} never answered 200"
