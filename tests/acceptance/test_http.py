"""HTTP as a caller meets it: problem documents, ids, tokens, odd keys, and addresses that can't be had."""

import contextlib
import signal
import socket
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import NatsServer
from process_kit import Answer, Worker, publish, run_app, server_pid, synced

UI, OPS = "0123456789abcdef", "fedcba9876543210"
ODD_KEYS = ["../../etc/passwd", "a\0b", "🦊/é", "%2e%2e", "--help", "x" * 10_000, " ", ".", "a\nb"]


def is_problem(answer: Answer, status: int) -> bool:
    """Whether an answer is a problem document of this status, under the id of its header."""
    document = answer.json
    return (
        answer.status == document["status"] == status
        and answer.headers["Content-Type"].startswith("application/problem+json")
        and set(document) == {"type", "title", "status", "detail", "request_id"}
        and document["request_id"] == answer.headers["X-Request-Id"]
    )


async def test_http_answers_errors_as_problem_documents(tmp_path: Path) -> None:
    """Unknown routes, tables, rows and bad escapes answer alike; an id that was sent comes back, else one is minted."""
    with Worker(tmp_path, NATS_URL="") as worker:
        await worker.start()
        for path, status in {
            "/nothing": 404,
            "/state/nothing/x": 404,
            "/state/user_sync/nobody": 404,
            "/state/user_sync/%zz": 400,
            "/state/user_sync/%ff": 400,
        }.items():
            assert is_problem(await worker.get(path), status), path
        assert (await worker.get("/nothing", **{"X-Request-Id": "mine:1"})).json["request_id"] == "mine:1"
        minted = [(await worker.get("/health", **{"X-Request-Id": "not valid"})).headers["X-Request-Id"] for _ in "ab"]
        assert len(set(minted)) == 2 and "not valid" not in minted


async def test_http_with_tokens_opens_what_each_may_see(tmp_path: Path) -> None:
    """No token and a wrong one are 401, a missing scope is 403; live and ready are open to anybody."""
    with Worker(tmp_path, NATS_URL="", API_TOKENS=f"ui:{UI}:state+metrics,ops:{OPS}") as worker:
        await worker.start()
        assert is_problem(await worker.get("/health"), 401)
        assert is_problem(await worker.get("/health", Authorization="Bearer wrong"), 401)
        assert is_problem(await worker.get("/health", Authorization=f"Bearer {UI}"), 403)
        for path, token in {"/health": OPS, "/metrics": UI, "/health/live": "", "/health/ready": ""}.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            assert (await worker.get(path, **headers)).status == 200, path
        assert is_problem(await worker.get("/state/user_sync/x", Authorization=f"Bearer {UI}"), 404)


async def test_http_takes_a_burst_of_clients_while_the_loop_stands_still(tmp_path: Path) -> None:
    """Clients who come at once wait in the system's queue, instead of being dropped to try again a second later."""
    with Worker(tmp_path, NATS_URL="") as worker, contextlib.ExitStack() as clients:
        await worker.start()
        worker.signal(signal.SIGSTOP)
        port = int(worker.http.rpartition(":")[2])
        for _ in range(400):
            clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        worker.signal(signal.SIGCONT)
        assert (await worker.get("/health/live")).status == 200


async def test_http_keeps_odd_keys_apart(tmp_path: Path, nats_server: NatsServer) -> None:
    """Keys with slashes, NUL, line breaks, 10 kB or any Unicode come out over HTTP and in commands as they went in."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        events = [synced(key, task_count=number) for number, key in enumerate(ODD_KEYS)]
        await publish(nats_server.url, "signals.task.synced", events)
        await worker.wait_counts("tipstream-signals", processed=len(ODD_KEYS), errors=0)
        for number, key in enumerate(ODD_KEYS):
            shown = (await worker.get(f"/state/user_sync/{quote(key, safe='').replace('.', '%2E')}")).json
            assert (shown["key"], shown["stream_seq"]) == (key, number + 1)
            assert shown["row"]["providers"]["todo"]["task_count"] == number
        listed = await run_app("state", "list", "user_sync", "--json", worker=worker)
        assert sorted(row["key"] for row in listed.json) == sorted(ODD_KEYS)
        plain = (await run_app("state", "list", "user_sync", worker=worker)).out.splitlines()
        assert len(plain) == len(ODD_KEYS) and any(line.startswith("a\\nb\t") for line in plain)
        got = await run_app("state", "get", "user_sync", "../../etc/passwd", worker=worker)
        assert got.json["key"] == "../../etc/passwd"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["nats-server", "var"]


async def test_http_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    """A taken port ends the start with exit code 2 and a line that names HTTP_PORT, before any server is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Worker(tmp_path, HTTP_PORT=str(port)) as worker:
            assert await worker.spawn().ended() == 2
            expected = f"error: HTTP_PORT: can't listen on 127.0.0.1 (Address already in use), got '{port}'\n"
            assert (worker.noise, worker.logs) == ([expected], [])
            assert server_pid(worker.state_dir) is None
            assert not (worker.state_dir / "server.json").exists()


@pytest.mark.parametrize(
    ("settings", "code"),
    [({}, 2), ({"API_TOKENS": f"ui:{UI}"}, 0), ({"HTTP_ALLOW_OPEN": "1"}, 0)],
    ids=["open", "tokens", "allowed"],
)
async def test_http_beyond_loopback_needs_tokens(tmp_path: Path, settings: dict[str, str], code: int) -> None:
    """0.0.0.0 is refused without tokens, naming the two ways out; with either of them the worker starts."""
    with Worker(tmp_path, NATS_URL="", HTTP_HOST="0.0.0.0", **settings) as worker:
        if code:
            assert await worker.spawn().ended() == code
            (line,) = worker.noise
            assert "HTTP_HOST" in line and "API_TOKENS" in line and "HTTP_ALLOW_OPEN" in line
        else:
            await worker.start()
            assert await worker.stop() == 0


async def test_http_metrics_say_what_health_says(tmp_path: Path, nats_server: NatsServer) -> None:
    """The counts of /metrics are those of /health, by durable and handler, without a key of a user."""
    with Worker(tmp_path, NATS_URL=nats_server.url) as worker:
        await worker.consume()
        await publish(nats_server.url, "signals.task.synced", [synced("anna"), synced("bert"), b"broken"])
        await worker.wait_counts("tipstream-signals", processed=2, dead_lettered=1)
        text = (await worker.get("/metrics")).text
        labels = '{consumer="tipstream-signals",handler="signals.task_synced"}'
        assert f"tipstream_messages_processed_total{labels} 2.0" in text
        assert f"tipstream_dead_letters_total{labels} 1.0" in text
        assert "anna" not in text
