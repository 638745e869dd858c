"""The README's sections for a teammate and for an engineer at night, carried out exactly as printed."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from process_kit import Worker, environment, publish, run_app
from readme_kit import blocks, carry_out, steps

LINE_LIMIT = 15
FRESH = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A module that is changed within a second, to one of the same size, would be taken from its cache."""


@pytest.mark.parametrize("title", ["Add a handler", "Test it"])
def test_readme_code_is_short(title: str) -> None:
    """What a teammate has to write is under 15 lines of code."""
    [code] = blocks(title, "python")
    assert 0 < len([line for line in code.splitlines() if line.strip()]) < LINE_LIMIT


async def test_readme_handler_runs_as_printed(tmp_path: Path) -> None:
    """The module of "Add a handler", with PLUGINS=streaks and nothing else, turns an event into a row."""
    (tmp_path / "streaks.py").write_text(blocks("Add a handler", "python")[0])
    with Worker(tmp_path, PLUGINS="streaks", **FRESH) as worker:
        await worker.start()
        sent = await run_app("send", "signals.streak.broken", '{"user_id": "ada"}', worker=worker)
        assert sent.code == 0, sent.err
        await worker.wait_counts("tipstream-streaks", processed=1)
        assert (await worker.get("/state/streaks/ada")).json["row"] == {"count": 1}
        assert "streaks.streak_broken" in (await run_app("handlers", worker=worker)).out


async def test_readme_incident_is_found_corrected_and_verified(tmp_path: Path) -> None:
    """A handler that wrote a wrong field is found by replay, mended, and its rows are rebuilt and verified."""
    module, right = tmp_path / "streaks.py", blocks("Add a handler", "python")[0]
    module.write_text(right.replace("row.count + 1", "row.count + 2"))
    (look,), (verify, rebuild) = (steps(block) for block in blocks("Find out what happened", "console"))
    with Worker(tmp_path, PLUGINS="streaks", **FRESH) as worker:
        await worker.consume()
        await publish(worker.nats, "signals.streak.broken", [{"user_id": user} for user in ("ada", "bob", "ada")])
        await worker.wait_counts("tipstream-streaks", processed=3)
        assert (await carry_out(*look, worker)).code == 0
        module.write_text(right)
        assert (await carry_out(*verify, worker)).code == 3
        refused = await run_app("state", "rebuild", "streaks", "--yes", worker=worker)
        assert (refused.code, "a worker owns STATE_DIR: stop it first" in refused.err) == (1, True)
        assert await worker.stop() == 0
        assert (await carry_out(*rebuild, worker)).code == 0
        assert (await run_app("state", "verify", "streaks", worker=worker)).code == 0
        await worker.start()
        assert (await worker.get("/state/streaks/ada")).json["row"] == {"count": 2}


async def test_readme_test_passes_as_printed(tmp_path: Path) -> None:
    """The tests of "Test it" pass on the module of "Add a handler", and fail on one that counts wrongly."""
    right = blocks("Add a handler", "python")[0]
    (tmp_path / "test_streaks.py").write_text(blocks("Test it", "python")[0])
    command = [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    for text, ended in ((right, "2 passed"), (right.replace("row.count + 1", "row.count + 2"), "2 failed")):
        (tmp_path / "streaks.py").write_text(text)
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, env=environment(tmp_path, FRESH), capture_output=True, text=True
        )
        assert ended in done.stdout, done.stdout + done.stderr
