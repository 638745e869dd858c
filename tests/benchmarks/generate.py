"""``POST /generate``: what it adds to a direct call to the same gateway, and what open generations do to ``/score``.

The gateway is a stand-in in a process of its own, so that both ways meet the same one. Time to the first byte of text
is taken by one client for both, in turns; what is measured has the first core, everything else shares the second one.
"""

import asyncio
import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from score import CLIENTS, HERE, NAME, free_port, load, make_model, process, ratios

from models.registry import Registry

CONCURRENT = 50
FIRST_S, PAUSE_S = 0.2, 0.02
SLOW_PAUSE_S = 1.0

Body = Callable[[int], bytes]


def direct_body(number: int) -> bytes:
    """A chat completion as our gateway client sends it."""
    messages = [{"role": "system", "content": "You write tips." * 20}, {"role": "user", "content": f"user {number}"}]
    return json.dumps(
        {"model": "tips", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    ).encode()


def tip_body(number: int) -> bytes:
    """A request for a streamed tip."""
    return json.dumps({"user_id": f"u{number}", "signals": [f"did {number}"], "stream": True}).encode()


async def first_byte_s(port: int, path: str, body: bytes) -> float:
    """Seconds from sending a request to the first text of its answer; the rest is read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    started = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b"data: ")
    took_s = time.perf_counter() - started
    await reader.read()
    writer.close()
    return took_s


async def latencies(port: int, path: str, body: Body, seconds: float) -> list[float]:
    """The times to the first byte, 50 requests at once for some seconds."""
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def keep_asking(number: int) -> None:
        await asyncio.sleep(number * (FIRST_S + 12 * PAUSE_S) / CONCURRENT)  # not all in step
        while time.perf_counter() < until:
            number += CONCURRENT
            found.append(await first_byte_s(port, path, body(number)))

    await asyncio.gather(*(keep_asking(number) for number in range(CONCURRENT)))
    return sorted(found)


async def hold_open(port: int, count: int, until: float) -> None:
    """Keeps so many generations open."""

    async def keep(number: int) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    await first_byte_s(port, "/generate", tip_body(number))
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                await asyncio.sleep(0.1)

    await asyncio.gather(*(keep(number) for number in range(count)))


def worker_env(folder: Path, port: int, upstream: int) -> dict[str, str]:
    """The settings of the worker."""
    return {
        **{"STATE_DIR": str(folder), "HTTP_PORT": str(port), "LOG_FORMAT": "json"},
        **{"MODEL_REGISTRY": str(folder.parent / "registry"), "LITELLM_URL": f"http://127.0.0.1:{upstream}"},
        **{"PLUGINS": "score_features", "PYTHONPATH": str(HERE)},
    }


def measure_overhead(folder: Path, rounds: int, seconds: float) -> None:
    """Prints the times to the first byte, and what ours are above those of a direct call."""
    upstream, port = free_port(), free_port()
    gateway = [sys.executable, str(HERE / "llm_upstream.py"), str(upstream), str(FIRST_S), str(PAUSE_S)]
    found: dict[str, list[list[float]]] = {"direct": [], "ours": []}
    with (
        process(gateway, {}, upstream, "/health", "ok", core=1),
        process([sys.executable, "-m", "app", "worker"], worker_env(folder, port, upstream), port, "/health", '"1"'),
    ):
        for _ in range(rounds):
            found["direct"].append(uvloop.run(latencies(upstream, "/v1/chat/completions", direct_body, seconds)))
            found["ours"].append(uvloop.run(latencies(port, "/generate", tip_body, seconds)))
    print(f"\nPOST /generate, streamed, {CONCURRENT} at once, gateway's first byte after {1000 * FIRST_S:g} ms")
    print(f"{'':44}{'p50 ms':>9}{'p99 ms':>9}")
    for label, name in (("the gateway itself", "direct"), ("through /generate", "ours")):
        p50, p99 = (statistics.median(at(one, share) for one in found[name]) for share in (0.5, 0.99))
        print(f"{label:44}{p50:>9.1f}{p99:>9.1f}")
    for share in (0.5, 0.99):
        added = [
            at(ours, share) - at(theirs, share) for ours, theirs in zip(found["ours"], found["direct"], strict=True)
        ]
        print(f"{f'added at p{100 * share:g}':44}{statistics.median(added):>+9.2f}")


def at(sorted_s: list[float], share: float) -> float:
    """A quantile in milliseconds."""
    return 1000 * sorted_s[min(len(sorted_s) - 1, int(len(sorted_s) * share))]


def measure_score_beside(folder: Path, rounds: int, seconds: float) -> None:
    """Prints the tail of /score with and without 50 slow generations open."""
    upstream, port = free_port(), free_port()
    gateway = [sys.executable, str(HERE / "llm_upstream.py"), str(upstream), str(FIRST_S), str(SLOW_PAUSE_S)]
    alone, beside = [], []
    with (
        process(gateway, {}, upstream, "/health", "ok", core=1),
        process([sys.executable, "-m", "app", "worker"], worker_env(folder, port, upstream), port, "/health", '"1"'),
    ):
        load(port, folder.parent, 1)
        for _ in range(rounds):
            alone.append(load(port, folder.parent, seconds))
            beside.append(asyncio.run(load_beside(port, folder.parent, seconds)))
    print(f"\nPOST /score with {CONCURRENT} slow generations open, {CLIENTS} clients, medians of {rounds} rounds")
    print(f"{'p99 alone; beside':44}{statistics.median(one['p99_ms'] for one in alone):>9.1f}", end="")
    print(f"{statistics.median(one['p99_ms'] for one in beside):>9.1f}")
    print(f"{'p99 beside to alone':44}{ratios({'a': beside, 'b': alone}, 'a', 'b', 'p99_ms')}")


async def load_beside(port: int, folder: Path, seconds: float) -> dict[str, float]:
    """Puts load on /score while generations are open."""
    opened = asyncio.create_task(hold_open(port, CONCURRENT, time.monotonic() + seconds + 2))
    await asyncio.sleep(1.5)
    found: dict[str, float] = await asyncio.to_thread(load, port, folder, seconds)
    await opened
    return found


def measure_generating(folder: Path, *, rounds: int, seconds: float = 5) -> None:
    """Prints both."""
    folder.mkdir()
    registry = Registry(folder / "registry", NAME)
    registry.publish(*make_model(1))
    registry.promote("1", reason="benchmark", now=dt.datetime.now(dt.UTC))
    measure_overhead(folder / "overhead", rounds, seconds)
    measure_score_beside(folder / "score", rounds, seconds)


if __name__ == "__main__":
    measure_generating(Path(sys.argv[1]), rounds=int(sys.argv[2]), seconds=float(sys.argv[3]))
