"""The README's section on scoring and models, carried out exactly as printed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from process_kit import PATIENT, Worker
from readme_kit import blocks, carry_out, steps


def body_of(command: str) -> Any:
    """What a curl command sends."""
    found = re.search(r"-d '(.*)'", command, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


async def serves(worker: Worker, version: str) -> None:
    """Waits until the worker says that a version serves."""
    await worker.wait_health(
        lambda health: health["model"]["version"] == version and health["model"]["status"] == "ok",
        what=f"version {version} serves",
    )


@pytest.mark.timeout(150)  # two models are trained
async def test_readme_model_is_trained_promoted_and_rolled_back(tmp_path: Path) -> None:
    """A first start trains the starter; scores, a new version, and both moves are as the README shows them."""
    [block] = blocks("Score, train, promote", "console")
    (curl, answer), train, promote, rollback = steps_with_bodies(block)
    with Worker(tmp_path, MODEL_REGISTRY=str(tmp_path / "models")) as worker:
        await worker.start()
        await serves(worker, "1")
        scored = (await worker.post("/score", body_of(curl), **PATIENT)).json
        shown = ".*".join(map(re.escape, answer[0].replace(", …", "…").split("…")))
        assert re.match(shown, json.dumps(scored, separators=(",", ":")))
        assert (scored["simulated"], scored["degraded"], scored["logged"]) == (True, False, True)
        assert (await carry_out(*train, worker)).code == 0
        assert (await carry_out(*promote, worker)).code == 0
        await serves(worker, "2")
        assert (await worker.post("/score", body_of(curl), **PATIENT)).json["model_version"] == "2"
        assert (await carry_out(*rollback, worker)).code == 0
        await serves(worker, "1")


def steps_with_bodies(block: str) -> list[tuple[str, list[str]]]:
    """The steps of a block whose first command goes over several lines."""
    (first, lines), *others = steps(block)
    end = next(number for number, line in enumerate(lines) if line.endswith("'")) + 1
    return [("\n".join([first, *lines[:end]]), lines[end:]), *others]
