"""``POST /score`` beside a FastAPI scorer, beside itself without a model, beside consumption, and through alias moves.

Everything runs on this machine: the worker with its NATS server and its decision log on, the peer on uvicorn, and the
clients in a process of their own. What is measured has the first core, everything else shares the second one, so that
the figures don't tell whom the scheduler preferred. Each round measures all, one after the other; the ratio is taken
within it.
"""

import asyncio
import contextlib
import datetime as dt
import hashlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import numpy as np
import xgboost

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from harness import free_port  # noqa: E402 (found by the line above)
from score_features import ADDED  # noqa: E402

from models.card import Card, TrainingData, feature_hash  # noqa: E402
from models.features import FEATURES, Assembler  # noqa: E402
from models.registry import Registry  # noqa: E402

NAME = "tip-scorer"
TREES = 200
CANDIDATES = 20
CLIENTS = 32
EVENTS_PER_S = 5_000
MOVES = 200
SCORED, LOGGED = '"degraded":false', '"logged":true'
COLUMNS = [*(name for name, feature in FEATURES.items() if feature.source == "candidate"), *ADDED]
DECLARED = {**FEATURES, **ADDED}
PROFILE = {
    **{"completion_rate_7d": 0.61, "acceptance_rate_30d": 0.34, "dismissal_rate_30d": 0.22, "preferred_hour": 9},
    **{"current_streak_days": 4, "days_since_signup": 210, "open_task_count": 17},
}


def make_model(seed: int) -> tuple[bytes, Card]:
    """A model of 200 trees over 24 columns, with a card that fits it."""
    rng = np.random.default_rng(seed)
    rows = rng.random((5_000, len(COLUMNS)), dtype=np.float32)
    labels = (rows[:, 0] + rows[:, 1] + rng.random(5_000) > 1.5).astype(np.float32)
    parameters = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1, "seed": seed}
    artifact = bytes(xgboost.train(parameters, xgboost.DMatrix(rows, labels, nthread=1), TREES).save_raw("ubj"))
    now = dt.datetime.now(dt.UTC)
    training = TrainingData(
        source="random numbers",
        is_simulated=True,
        row_count=len(rows),
        positive_ratio=float(labels.mean()),
        first_at=now,
        last_at=now,
        data_hash=hashlib.sha256(rows.tobytes()).hexdigest(),
    )
    card = Card(
        name=NAME,
        created_at=now,
        artifact_hash=hashlib.sha256(artifact).hexdigest(),
        feature_hash=feature_hash(COLUMNS),
        inputs=Assembler(COLUMNS, DECLARED).inputs,
        training=training,
        parameters={"trees": TREES},
        metrics=(),
        slices=(),
        fairness=(),
        limits=("For benchmarks only.",),
    )
    return artifact, card


def make_request(port: int) -> bytes:
    """The HTTP request that is sent again and again: 20 candidates of 24 features each, and a profile; 12 kB."""
    rng = np.random.default_rng(7)
    candidates = [
        {"id": f"tip-{number}", "features": {name: round(float(rng.random()), 4) for name in COLUMNS}}
        for number in range(CANDIDATES)
    ]
    body = json.dumps({"user_id": "ada", "candidates": candidates, "profile_features": PROFILE}).encode()
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def pin(pid: int, core: int) -> None:
    """Keeps a process on one core, with all the threads that it has; those to come inherit it."""
    if (os.cpu_count() or 1) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


@contextlib.contextmanager
def process(
    command: list[str], env: dict[str, str], port: int, path: str, ready: str, *, core: int = 0
) -> Iterator[int]:
    """Runs a server on a core until the block ends; entered once ``path`` answers with the text ``ready``."""
    with subprocess.Popen(
        command, env={"PATH": os.environ["PATH"]} | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            wait_for(port, path, ready)
            pin(child.pid, core)
            pin(os.getpid(), 1)
            if "STATE_DIR" in env:
                pin(json.loads((Path(env["STATE_DIR"]) / "server.json").read_text())["pid"], 1)
            yield child.pid
        finally:
            child.send_signal(signal.SIGTERM)


def fetch(port: int, path: str) -> str:
    """The body of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def wait_for(port: int, path: str, text: str) -> None:
    """Waits until a page has a text."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if text in fetch(port, path):
                return
        time.sleep(0.05)
    raise TimeoutError(f"port {port}: {path} never said {text}")


@contextlib.contextmanager
def worker(folder: Path, registry: str, ready: str) -> Iterator[int]:
    """A worker with its own NATS server; yields its port."""
    port = free_port()
    env = {"STATE_DIR": str(folder), "MODEL_REGISTRY": registry, "HTTP_PORT": str(port), "LOG_FORMAT": "json"}
    env |= {"PLUGINS": "score_features", "PYTHONPATH": str(HERE)}
    with process([sys.executable, "-m", "app", "worker"], env, port, "/health", ready):
        yield port


@contextlib.contextmanager
def peer(folder: Path, artifact: bytes) -> Iterator[int]:
    """The FastAPI scorer; yields its port."""
    port = free_port()
    file = folder / "model.ubj"
    file.write_bytes(artifact)
    command = [sys.executable, str(HERE / "score_fastapi.py"), str(port), str(file), json.dumps(COLUMNS)]
    with process(command, {}, port, "/openapi.json", "/score"):
        yield port


def load(port: int, folder: Path, seconds: float, *texts: str, clients: int = CLIENTS) -> Any:
    """Puts load on a server; what came of it."""
    file = folder / f"request-{port}"
    file.write_bytes(make_request(port))
    command = [sys.executable, str(HERE / "load.py"), str(port), str(file), str(clients), str(seconds), *texts]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)


def measure_peers(folder: Path, rounds: int, seconds: float) -> None:
    """Prints throughput and tail at 32 clients: with a model, without one, and the peer's."""
    found: dict[str, list[Any]] = {"model": [], "none": [], "peer": []}
    artifact, _ = make_model(1)
    with (
        worker(folder / "with", str(folder / "registry"), '"version":"1"') as ours,
        worker(folder / "without", "none", '"status":"ok"') as bare,
        peer(folder, artifact) as theirs,
    ):
        ports = {"model": ours, "peer": theirs, "none": bare}
        for port in ports.values():
            load(port, folder, 1)
        for _ in range(rounds):
            for name, port in ports.items():
                found[name].append(load(port, folder, seconds, SCORED, LOGGED))
        log = json.loads(fetch(ours, "/health"))["decisions"]
    print(f"\nPOST /score, {CANDIDATES} candidates x {len(COLUMNS)} features, {TREES} trees, {CLIENTS} clients,")
    print(f"one process each, medians of {rounds} interleaved rounds of {seconds:g} s")
    print(f"{'':44}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}")
    labels = {"peer": "FastAPI, uvicorn", "model": "tipstream", "none": "tipstream without a model (the prior)"}
    for name, label in labels.items():
        rate, p50, p99 = (middle(found[name], key) for key in ("requests_per_s", "p50_ms", "p99_ms"))
        print(f"{label:44}{rate:>10,.0f}{p50:>9.1f}{p99:>9.1f}")
    print(f"{'tipstream to FastAPI: rate; p99':44}{ratios(found, 'model', 'peer', 'requests_per_s')}")
    print(f"{'':44}{ratios(found, 'model', 'peer', 'p99_ms')}")
    print(f"{'with to without a model: rate':44}{ratios(found, 'model', 'none', 'requests_per_s')}")
    answers = sum(sum(one["statuses"].values()) for one in found["model"])
    scored, logged = (sum(one["counts"][text] for one in found["model"]) for text in (SCORED, LOGGED))
    print(f"answers {answers:,}, scored by the model {scored:,}, logged {logged:,}")
    dropped = sum(log["dropped"].values())
    print(f"decision log: stored {log['published']:,}, dropped {dropped}, sampled out {log['sampled_out']:,}")


def middle(found: list[Any], key: str) -> float:
    """The median of a figure over the rounds."""
    return statistics.median(one[key] for one in found)


def ratios(found: dict[str, list[Any]], one: str, other: str, key: str) -> str:
    """The median ratio within the rounds, with the lowest and the highest."""
    all_ = [mine[key] / theirs[key] for mine, theirs in zip(found[one], found[other], strict=True)]
    return f"{statistics.median(all_):>9.2f}x  ({min(all_):.2f} to {max(all_):.2f})"


async def publish_events(url: str, seconds: float) -> int:
    """Publishes 5,000 events a second over 1,000 keys."""
    client = await nats.connect(url)
    started, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        while number < elapsed * EVENTS_PER_S:
            event = {"user_id": f"u{number % 1000}", "provider": "todoist", "synced_at": "2026-03-01T09:00:00Z"}
            await client.publish("signals.task.synced", json.dumps(event | {"task_count": number}).encode())
            number += 1
        await asyncio.sleep(0.005)
    await client.flush()
    await client.close()
    return number


def measure_beside_consumption(folder: Path, rounds: int, seconds: float) -> None:
    """Prints the tail with and without 5,000 events a second beside it; clients take all that is left of the core."""
    idle, busy = [], []
    with worker(folder / "beside", str(folder / "registry"), '"version":"1"') as port:
        url = json.loads((folder / "beside" / "server.json").read_text())["url"]
        load(port, folder, 1)
        for _ in range(rounds):
            idle.append(load(port, folder, seconds, clients=CLIENTS))
            command = [sys.executable, __file__, "publish", url, str(seconds + 1)]
            with subprocess.Popen(command) as publisher:
                time.sleep(0.5)
                busy.append(load(port, folder, seconds, clients=CLIENTS))
                publisher.wait(timeout=60)
        consumers = json.loads(fetch(port, "/health"))["nats"]["consumers"]
    print(f"\nPOST /score beside {EVENTS_PER_S:,} events/s with a row each, {CLIENTS} clients, {rounds} rounds")
    print(f"{'':44}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}")
    for label, found in (("alone", idle), ("beside consumption", busy)):
        rate, p50, p99 = (middle(found, key) for key in ("requests_per_s", "p50_ms", "p99_ms"))
        print(f"{label:44}{rate:>10,.0f}{p50:>9.1f}{p99:>9.1f}")
    print(f"{'p99 beside to alone':44}{ratios({'busy': busy, 'idle': idle}, 'busy', 'idle', 'p99_ms')}")
    processed = sum(one["processed"] for one in consumers.values())
    print(f"events applied {processed:,}, waiting {sum(one['pending'] for one in consumers.values()):,}")


def expected_answer(version: str, artifact: bytes) -> str:
    """The part of an answer that only this version gives; the request has no context, so nothing depends on time."""
    booster = xgboost.Booster(model_file=bytearray(artifact))
    booster.set_param({"nthread": 1})
    body = json.loads(make_request(0).partition(b"\r\n\r\n")[2])
    rows = [[one["features"].get(name, PROFILE.get(name)) for name in COLUMNS] for one in body["candidates"]]
    scores = booster.inplace_predict(np.array(rows, dtype=np.float32)).tolist()
    found = [{"id": one["id"], "score": score} for one, score in zip(body["candidates"], scores, strict=True)]
    return f'"model_version":"{version}","scores":{msgspec.json.encode(found).decode()}'


def measure_moves(folder: Path) -> None:
    """Prints what 200 moves of the champion alias do to the answers under load."""
    registry = Registry(folder / "registry", NAME)
    texts = [expected_answer(str(version), make_model(version)[0]) for version in (1, 2)]
    with worker(folder / "moves", str(folder / "registry"), '"version":"1"') as port:
        seconds = MOVES * 0.25
        file = folder / "moves-request"
        file.write_bytes(make_request(port))
        command = [sys.executable, str(HERE / "load.py"), str(port), str(file), "8", str(seconds + 1), *texts]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            for number in range(MOVES):
                time.sleep(0.25)
                registry.promote(str(2 - number % 2), reason="benchmark", now=dt.datetime.now(dt.UTC))
            out, _ = clients.communicate(timeout=120)
    found = json.loads(out)
    answers, (first, second) = sum(found["statuses"].values()), found["counts"].values()
    print(f"\n{MOVES} moves of the alias under load: {answers:,} answers, errors {answers - found['statuses']['200']},")
    print(f"by version 1 {first:,}, by version 2 {second:,}, mixed or degraded {answers - first - second}")


def measure_scoring(folder: Path, *, rounds: int, seconds: float = 5) -> None:
    """Prints all of it."""
    folder.mkdir()
    registry = Registry(folder / "registry", NAME)
    for seed in (1, 2):
        registry.publish(*make_model(seed))
    registry.promote("1", reason="benchmark", now=dt.datetime.now(dt.UTC))
    measure_peers(folder, rounds, seconds)
    measure_beside_consumption(folder, rounds, seconds)
    measure_moves(folder)


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        asyncio.run(publish_events(sys.argv[2], float(sys.argv[3])))
    else:
        measure_scoring(Path(sys.argv[1]), rounds=int(sys.argv[2]), seconds=float(sys.argv[3]))
