"""The real LiteLLM proxy as a process, in front of a model of ours that does as a test says (llm_kit.py)."""

import asyncio
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from harness import HOST, free_port, wait_until

PROGRAM = Path(__file__).parents[1] / ".venv-gateway" / "bin" / "litellm"
START_S = 120.0
STOP_S = 15.0

MOCK_TEXT = "Put the phone away."


@attrs.frozen(kw_only=True)
class Proxy:
    """Where the proxy is, what opens it, and the port on which it expects its model."""

    url: str
    key: str = attrs.field(repr=False)
    model_port: int


def config(key: str, model_port: int) -> dict[str, object]:
    """Two models: "m" is ours, "mock" the proxy's own; the proxy itself neither retries nor leaves a model alone."""
    ours = {
        "model": "openai/m",
        "api_base": f"http://{HOST}:{model_port}/v1",
        "api_key": "of-the-model",
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06,
    }
    mock = {"model": "openai/gpt-4o-mini", "api_key": "none", "mock_response": MOCK_TEXT}
    return {
        "model_list": [{"model_name": "m", "litellm_params": ours}, {"model_name": "mock", "litellm_params": mock}],
        "litellm_settings": {"num_retries": 0},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": key},
    }


def answers(url: str) -> bool:
    """Whether the proxy answers by now."""
    try:
        with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running_proxy(folder: Path) -> Iterator[Proxy]:
    """A proxy with its files in a folder, which answers by now, and is ended in the end."""
    assert PROGRAM.is_file(), "the LiteLLM proxy is not installed: run make test-gateway"
    port, model_port, key = free_port(), free_port(), "sk-key-of-the-tests"
    (folder / "config.yaml").write_text(json.dumps(config(key, model_port)))  # JSON is YAML as well
    env = {"PATH": f"{PROGRAM.parent}:{os.defpath}", "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(PROGRAM), "--config", "config.yaml", "--host", HOST, "--port", str(port), "--telemetry", "False"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        url = f"http://{HOST}:{port}"
        asyncio.run(wait_until(lambda: process.poll() is not None or answers(url), START_S, poll_s=0.1))
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield Proxy(url=url, key=key, model_port=model_port)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
