"""The starter model as workers make it: several processes begin at once, and one version comes of it."""

import asyncio
from pathlib import Path

from process_kit import Worker, run_app


async def test_two_starters_at_once_make_one_version(tmp_path: Path) -> None:
    """Both end well and without a word on stderr; the one version that there is serves."""
    with Worker(tmp_path, NATS_URL="", MODEL_REGISTRY="") as worker:
        done = await asyncio.gather(*(run_app("models", "train", "--starter", worker=worker) for _ in range(2)))
        listed = await run_app("models", "list", "--json", worker=worker)
    assert [(one.code, one.err) for one in done] == [(0, ""), (0, "")]
    assert sorted(one.out == "" for one in done) == [False, True]
    assert [(one["version"], one["aliases"], one["is_simulated"]) for one in listed.json] == [("1", ["champion"], True)]
