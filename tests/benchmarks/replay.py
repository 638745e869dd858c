"""How fast ``replay`` runs a handler that writes a row, beside reading the same messages and doing nothing."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import nats
from harness import NatsServer

from streams.broker import Broker
from streams.reading import read_messages

SUBJECT = "signals.task.synced"


async def fill(url: str, count: int) -> None:
    """Fills a stream with synchronisations of 1,000 users."""
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=4000)
    await stream.add_stream(name="SIGNALS", subjects=["signals.>"])
    for number in range(count):
        event = {"user_id": f"u{number % 1000}", "provider": "todoist", "synced_at": "2026-03-01T09:00:00Z"}
        await stream.publish_async(SUBJECT, json.dumps(event | {"task_count": number}).encode())
    await stream.publish_async_completed()
    await client.close()


async def read_all(url: str, count: int) -> float:
    """Seconds that it takes to read the messages on the loop that replay has."""
    async with Broker([url], name="bench") as broker:
        await broker.connected.wait()
        started, seen = time.perf_counter(), 0
        async for _ in read_messages(broker, "SIGNALS", [SUBJECT], 1, count):
            seen += 1
        assert seen == count, seen
        return time.perf_counter() - started


def replay_all(url: str, folder: Path, count: int) -> float:
    """Seconds from the command's start to its end, every message printed as JSON."""
    env = {"PATH": os.environ["PATH"], "NATS_URL": url, "STATE_DIR": str(folder / "state")}
    started = time.perf_counter()
    with (folder / "lines").open("wb") as out:
        command = [sys.executable, "-m", "app", "replay", SUBJECT, "--json"]
        subprocess.run(command, env=env, stdout=out, stderr=subprocess.PIPE, check=True, timeout=120)
    elapsed = time.perf_counter() - started
    assert (folder / "lines").read_bytes().count(b"\n") == count
    return elapsed


def measure_replay(folder: Path, *, count: int, rounds: int) -> None:
    """Prints messages per second, both ways, as medians of interleaved rounds."""
    folder.mkdir()
    with NatsServer(folder, jetstream="") as server:
        asyncio.run(fill(server.url, count))
        bare, ours = [], []
        for _ in range(rounds):
            bare.append(count / asyncio.run(read_all(server.url, count)))
            ours.append(count / replay_all(server.url, folder, count))
    ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
    print(f"\nreplaying {count:,} events through a handler that writes a row, medians of {rounds} interleaved rounds")
    print(f"{'reading alone':44}{statistics.median(bare):>10,.0f} msg/s")
    print(f"{'replay --json, the command as a whole':44}{statistics.median(ours):>10,.0f} msg/s{ratio:>8.2f}x")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tipstream-bench-") as name:
        measure_replay(Path(name, "replay"), count=int(os.environ.get("BENCH_COUNT", "50000")), rounds=3)
