"""``streams plan`` and ``streams apply``, in this process, on a real server."""

import asyncio
import json
from pathlib import Path

import pytest
from harness import NatsServer
from nats.js.api import ConsumerConfig, StreamConfig
from process_kit import DURABLES, connect, invoke

from models.errors import BrokerError

STREAMS = ["SIGNALS", "FEEDBACK", "TIMERS", "DEAD_LETTERS", "DECISIONS"]
NAMES = [*STREAMS, *DURABLES, *(f"{durable}-redrive" for durable in DURABLES)]


@pytest.fixture
def env(nats_server: NatsServer, tmp_path: Path) -> dict[str, str]:
    """The settings for a server on which nothing is."""
    return {"NATS_URL": nats_server.url, "STATE_DIR": str(tmp_path / "var")}


def actions(*arguments: str, env: dict[str, str]) -> tuple[int, dict[str, str]]:
    """The exit code, and the action for each stream and durable."""
    result = invoke("streams", *arguments, "--json", **env)
    return result.exit_code, {step["name"]: step["action"] for step in json.loads(result.stdout)}


def test_plan_of_an_empty_server_creates_everything_and_changes_nothing(env: dict[str, str]) -> None:
    """Before anything exists a plan names all that is missing with exit code 3, again and again, and makes no store."""
    for _ in range(2):
        assert actions("plan", env=env) == (3, dict.fromkeys(NAMES, "create"))
    assert not Path(env["STATE_DIR"]).exists()


def test_apply_makes_a_plan_without_differences(env: dict[str, str]) -> None:
    """Apply creates what was planned, once; then a plan has no difference and exit code 0."""
    assert actions("apply", env=env) == (0, dict.fromkeys(NAMES, "create"))
    assert actions("plan", env=env) == (0, dict.fromkeys(NAMES, "none"))
    assert actions("apply", env=env) == (0, dict.fromkeys(NAMES, "none"))


def test_plan_prints_a_line_a_step(env: dict[str, str]) -> None:
    """In a pipe each stream and durable is one line: kind, name, action, difference."""
    lines = invoke("streams", "plan", **env).stdout.splitlines()
    assert lines[0] == "stream\tSIGNALS\tcreate\t" and len(lines) == len(NAMES)


def test_apply_mends_what_differs(env: dict[str, str]) -> None:
    """What an administrator changed is shown with both values; apply sets it, and the streams keep their messages."""
    invoke("streams", "apply", **env)

    async def change() -> None:
        client = await connect(env["NATS_URL"])
        stream = client.jetstream()
        await stream.publish("signals.kept", b"kept")
        info = await stream.stream_info("SIGNALS")
        info.config.max_msgs = 77
        info.config.max_msg_size = 1000
        await stream.update_stream(info.config)
        found = (await stream.consumer_info("FEEDBACK", DURABLES[0])).config
        found.max_ack_pending = 5
        await stream.add_consumer("FEEDBACK", found)
        await client.close()

    asyncio.run(change())
    result = invoke("streams", "plan", **env)
    assert result.exit_code == 3
    assert "stream\tSIGNALS\tupdate\tmax_msg_size: 1000 instead of 1032192" in result.stdout
    assert f"consumer\t{DURABLES[0]}\tupdate\tmax_ack_pending: 5 instead of 1000" in result.stdout
    assert actions("apply", env=env)[0] == 0
    assert actions("plan", env=env) == (0, dict.fromkeys(NAMES, "none"))
    assert invoke("send", "signals.more", "x", **env).exit_code == 0

    async def count() -> int:
        client = await connect(env["NATS_URL"])
        info = await client.jetstream().stream_info("SIGNALS")
        await client.close()
        assert info.config.max_msgs == 77, "what is not declared stays as the administrator set it"
        return info.state.messages

    assert asyncio.run(count()) == 2


def test_apply_leaves_a_durable_of_others_alone(env: dict[str, str]) -> None:
    """A durable of our name that somebody else made is refused with the reason: apply is 1, plan is 3."""

    async def occupy() -> None:
        client = await connect(env["NATS_URL"])
        await client.jetstream().add_stream(StreamConfig(name="FEEDBACK", subjects=["feedback.>"]))
        await client.jetstream().add_consumer("FEEDBACK", ConsumerConfig(durable_name=DURABLES[0]))
        await client.close()

    asyncio.run(occupy())
    for command, code in (("apply", 1), ("plan", 3)):
        result = invoke("streams", command, **env)
        assert result.exit_code == code
        assert (
            f"consumer\t{DURABLES[0]}\trefused\tdurable {DURABLES[0]} was not made by this application" in result.stdout
        )


def test_apply_says_what_the_server_refuses(env: dict[str, str]) -> None:
    """More replicas than the server has members is the server's error, in its words."""
    error = invoke("streams", "apply", STREAM_REPLICAS="3", **env).exception
    assert isinstance(error, BrokerError) and "replicas > 1 not supported" in str(error)
