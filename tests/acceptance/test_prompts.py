"""Prompt variants of a real worker: a new file while it runs, and a default that there is not."""

from pathlib import Path

from process_kit import Worker, run_app

VARIANT = (
    "---\nversion: v4\npurpose: A test.\nvariables: {}\nlimits:\n  max_chars: 100\n---\nGreet.\n--- user\nHello.\n"
)


async def test_worker_sees_a_new_variant(tmp_path: Path) -> None:
    """A file in PROMPTS_DIR is served without a restart, a bad one is a reason in /health, and so is a lost default.

    A restart makes nothing worse.
    """
    folder = tmp_path / "variants"
    folder.mkdir()
    (folder / "v4.j2").write_text(VARIANT)
    with Worker(tmp_path, NATS_URL="", PROMPTS_DIR=str(folder), DEFAULT_PROMPT_VERSION="v4") as worker:
        await worker.start()
        shown = {"versions": ["v1", "v2", "v3", "v4"], "default": ["v4"], "gateway": None}
        assert (await worker.health())["prompts"] == shown
        (folder / "v5.j2").write_text(VARIANT.replace("v4", "v5"))
        await worker.wait_health(lambda now: "v5" in now["prompts"]["versions"], what="the new variant")
        (folder / "v4.j2").write_text("no variant any more")
        health = await worker.wait_health(lambda now: now["reasons"], what="a reason")
        assert (health["status"], "v4" in health["prompts"]["versions"]) == ("degraded", True)
        (folder / "v4.j2").unlink()
        lost = "DEFAULT_PROMPT_VERSION: there is no variant 'v4' any more, v1 serves instead"
        await worker.wait_health(lambda now: now["reasons"] == [lost], what="the lost default")
        await worker.stop()
        await worker.start()
        health = await worker.wait_health(lambda now: now["reasons"] == [lost], what="the default that is still lost")
        assert health["status"] == "degraded"


async def test_unknown_default_stops_the_start(tmp_path: Path) -> None:
    """One line names the setting, the version and those that there are, and the exit code is that of a bad setting."""
    with Worker(tmp_path, NATS_URL="", DEFAULT_PROMPT_VERSION="v9") as worker:
        ended = await run_app("worker", worker=worker)
    expected = "error: DEFAULT_PROMPT_VERSION: there is no prompt variant 'v9', only v1, v2, v3, got 'v9'"
    assert (ended.code, ended.err.strip().splitlines()[-1]) == (2, expected)
