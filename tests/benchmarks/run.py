"""``make bench``: figures as ratios to a peer, interleaved in one run, and what an idle worker costs.

Every round runs this application and the peer one after the other on one server and one stream, so that a machine whose
speed drifts does the same to both; the ratio is taken within the round and the median over rounds is the result.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import nats  # noqa: E402 (a publisher outside the application)
from generate import measure_generating  # noqa: E402 (it lies beside this file)
from harness import NatsServer  # noqa: E402 (found by the line above)
from replay import measure_replay  # noqa: E402 (it lies beside this file)
from score import measure_scoring  # noqa: E402 (it lies beside this file)

COUNT = int(os.environ.get("BENCH_COUNT", "50000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
IDLE_S = 10.0
RATE = 500
LATENCY_S = 8.0


async def fill(url: str, count: int) -> None:
    """Fills a stream with small events over 1,000 keys."""
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=4000)
    await stream.add_stream(name="SIGNALS", subjects=["signals.>"])
    for number in range(count):
        event = {"user_id": f"u{number % 1000}", "provider": "todoist", "task_count": number}
        await stream.publish_async("signals.bench", json.dumps(event).encode())
    await stream.publish_async_completed()
    await client.close()


def run_script(script: str, *arguments: str) -> float:
    """Runs one consumer in a process of its own; messages per second."""
    command = [sys.executable, str(HERE / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return float(ended.stdout.split()[-1])


def measure_consumers(folder: Path) -> None:
    """Prints typed consumption with and without a durable write, beside FastStream's durable pull subscriber."""
    rates: dict[str, list[float]] = {"plain": [], "write": [], "none": [], "peer": []}
    with NatsServer(folder / "nats", jetstream="") as server:
        asyncio.run(fill(server.url, COUNT))
        for number in range(ROUNDS):
            for mode in ("plain", "peer", "write", "none"):
                if mode == "peer":
                    rate = run_script("consume_faststream.py", server.url, str(COUNT), f"peer{number}")
                else:
                    state = folder / f"{mode}{number}"
                    state.mkdir()
                    rate = run_script("consume_tipstream.py", server.url, str(COUNT), mode, str(state))
                rates[mode].append(rate)
    print(f"\nconsuming {COUNT:,} events of 60 bytes over 1,000 keys, medians of {ROUNDS} interleaved rounds")
    print(f"{'':44}{'msg/s':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}")
    print(f"{'FastStream 0.7, durable pull, typed':44}{statistics.median(rates['peer']):>10,.0f}")
    labels = {
        "plain": "typed, in order, position committed, ack",
        "write": "the same with one row written",
        "none": 'typed, order="none", marker committed, ack',
    }
    for mode, label in labels.items():
        ratios = [ours / theirs for ours, theirs in zip(rates[mode], rates["peer"], strict=True)]
        middle = statistics.median(rates[mode])
        print(f"{label:44}{middle:>10,.0f}{statistics.median(ratios):>7.1f}x{min(ratios):>7.1f}x{max(ratios):>8.1f}x")


async def send_at_rate(url: str, mode: str) -> None:
    """Publishes RATE events a second for LATENCY_S seconds, then the one that ends the consumer."""
    client = await nats.connect(url)
    started, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < LATENCY_S:
        while number < elapsed * RATE:
            user, kind = f"u{number % 100}", "ok"
            if mode == "slow" and number % (2 * RATE) == 0:
                user, kind = "slow", "slow"
            elif mode == "failing" and number % 10 == 0:
                user, kind = "bad", "bad"
            event = {"user_id": user, "kind": kind, "sent": time.time()}
            await client.publish("signals.bench", json.dumps(event).encode())
            number += 1
        await client.flush()
        await asyncio.sleep(0.001)
    end = {"user_id": "end", "kind": "end", "sent": time.time()}
    await client.jetstream().publish("signals.bench", json.dumps(end).encode())
    await client.close()


def measure_latency(folder: Path) -> None:
    """Prints what one slow key, and one failing key, do to the latency of the others."""
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "slow": [], "failing": []}
    for number in range(ROUNDS):
        for mode, figures in found.items():
            state, store = folder / f"latency-{mode}{number}", folder / f"nats-{mode}{number}"
            state.mkdir()
            store.mkdir()
            with NatsServer(store, jetstream="") as server:
                command = [sys.executable, str(HERE / "consume_latency.py"), server.url, str(state)]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
                    assert child.stdout is not None, "a pipe was asked for"
                    child.stdout.readline()
                    asyncio.run(send_at_rate(server.url, mode))
                    p50, p99 = map(float, child.stdout.readline().split())
            figures.append((p50, p99))
    print(f"\nlatency from publish to handler at {RATE:,} events/s over 100 keys, medians of {ROUNDS} rounds")
    print(f"{'':44}{'p50 ms':>10}{'p99 ms':>10}{'p99 moved by':>16}")
    alone = [p99 for _, p99 in found["alone"]]
    labels = {"alone": "alone", "slow": "beside a key that takes 2 s", "failing": "beside a tenth that fails, one key"}
    for mode, figures in found.items():
        moved = statistics.median(p99 - base for (_, p99), base in zip(figures, alone, strict=True))
        p50, p99 = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{labels[mode]:44}{p50:>10.2f}{p99:>10.2f}" + (f"{moved:>+13.2f} ms" if mode != "alone" else ""))


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_idle(folder: Path) -> None:
    """Prints what a worker with nothing to do costs, the nats-server apart."""
    env = {"PATH": os.environ["PATH"], "STATE_DIR": str(folder / "idle"), "HTTP_PORT": "0", "LOG_FORMAT": "json"}
    with subprocess.Popen([sys.executable, "-m", "app", "worker"], env=env, stderr=subprocess.DEVNULL) as worker:
        try:
            time.sleep(8)  # the starter model is there by then
            before, started = cpu_s(worker.pid), time.monotonic()
            time.sleep(IDLE_S)
            share = (cpu_s(worker.pid) - before) / (time.monotonic() - started)
            status = Path(f"/proc/{worker.pid}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        finally:
            worker.send_signal(signal.SIGTERM)
    print(f"\nidle worker over {IDLE_S:g} s: {share:.2%} of a core, {int(resident.split()[1]) / 1024:.0f} MB resident")


def measure_kit() -> None:
    """Prints what tests with the test kit cost."""
    subprocess.run([sys.executable, str(HERE / "kit.py")], timeout=300, check=True)


def main() -> None:
    """Runs everything and prints the tables."""
    with tempfile.TemporaryDirectory(prefix="tipstream-bench-") as name:
        folder = Path(name)
        (folder / "nats").mkdir()
        measure_consumers(folder)
        measure_latency(folder)
        measure_replay(folder / "replay", count=COUNT, rounds=ROUNDS)
        measure_idle(folder)
        measure_scoring(folder / "score", rounds=ROUNDS)
        measure_generating(folder / "generate", rounds=ROUNDS)
    sys.stdout.flush()
    measure_kit()


if __name__ == "__main__":
    main()
