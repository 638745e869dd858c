"""The wheel, built from what the image copies, installed into an empty environment and run from another folder."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
TOPS = ("app", "streams", "state", "prompts", "models")

pytestmark = pytest.mark.timeout(300)


def wait(predicate: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Returns as soon as the predicate is true; an answer that is not there yet is none."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if predicate():
                return
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def run(command: list[str], folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end in ``folder``."""
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a folder that holds what the Dockerfile copies and nothing else."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copies).split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    built = run([sys.executable, "-m", "build", "--wheel", "--outdir", str(target), str(source)], target)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment in which nothing but the wheel and what it asks for is installed."""
    folder = tmp_path_factory.mktemp("environment")
    made = run([sys.executable, "-m", "venv", str(folder)], folder)
    assert made.returncode == 0, made.stdout + made.stderr
    python = folder / "bin" / "python"
    installed = run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return python


def test_wheel_holds_every_package_and_nothing_else(wheel: Path) -> None:
    """Each module, type marker and template of the packages is in the wheel; tests and tools are not."""
    files = {path.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("*") if path.is_file()}
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{top}/py.typed" for top in TOPS} <= expected


def test_wheel_asks_for_what_is_declared(wheel: Path) -> None:
    """An install without extras brings the runtime's dependencies, in the declared ranges."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    declared = re.findall(r"^([a-z0-9-]+)", parser["options"]["install_requires"], re.MULTILINE)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    required = re.findall(r"^Requires-Dist: ([a-z0-9-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    assert sorted(required) == sorted(declared)


def test_wheel_runs_from_another_folder(python: Path, tmp_path: Path) -> None:
    """The installed application needs no checkout: it prints its settings in an empty folder, leaving nothing."""
    env = {"PATH": os.defpath, "STATE_DIR": str(tmp_path / "state")}
    result = run([str(python), "-m", "app", "settings"], tmp_path, env)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"STATE_DIR\t{tmp_path / 'state'}\tenvironment" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert (python.parent / "nats-server").is_file()


def test_wheel_works_from_another_folder(python: Path, tmp_path: Path) -> None:
    """The installed worker starts, answers, stops with 0, and writes in STATE_DIR alone, as a read-only image needs."""
    env = {"PATH": os.defpath, "STATE_DIR": str(tmp_path / "state"), "HTTP_PORT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-m", "app", "worker"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            ready = next(found for line in worker.stderr if (found := json.loads(line))["message"] == "ready")
            with urllib.request.urlopen(f"{ready['http']}/health/live", timeout=PATIENCE_S) as answer:
                assert answer.status == 200
        finally:
            worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.fixture(scope="module")
def python_with_plugin(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same environment, with the worked plugin installed beside the application."""
    source = tmp_path_factory.mktemp("plugin") / "worked_plugin"
    shutil.copytree(ROOT / "tests" / "worked_plugin", source, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(source)]
    installed = run(command, python.parent)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return python


def get_json(url: str) -> object:
    """Reads a JSON answer."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def test_installed_plugin_is_among_the_handlers(python_with_plugin: Path, tmp_path: Path) -> None:
    """A package with the entry point is found without a setting: its handler and its timer are listed."""
    result = run([str(python_with_plugin), "-m", "app", "handlers", "--json"], tmp_path, {"PATH": os.defpath})
    assert result.returncode == 0, result.stderr
    mine = [(row["handler"], row["stream"]) for row in json.loads(result.stdout) if row["plugin"] == "streaks"]
    assert mine == [("streaks.streak_broken", "SIGNALS"), ("streak_ticks.beat", "TIMERS")]


def test_installed_plugin_handles_its_subject_timer_and_route(python_with_plugin: Path, tmp_path: Path) -> None:
    """Beside the app, not a line of which was changed, the plugin's event becomes a row that its route shows."""
    env = {"PATH": os.defpath, "STATE_DIR": str(tmp_path / "state"), "HTTP_PORT": "0"}
    program = [str(python_with_plugin), "-m", "app"]
    with subprocess.Popen([*program, "worker"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stderr is not None
            ready = next(found for line in worker.stderr if (found := json.loads(line))["message"] == "ready")
            sent = run([*program, "send", "signals.streak.broken", '{"user_id": "ada", "days": 9}'], tmp_path, env)
            assert sent.returncode == 0, sent.stderr
            wait(lambda: get_json(f"{ready['http']}/streaks/ada") == {"broken_count": 1, "longest_days": 9})
            wait(lambda: "row" in get_json(f"{ready['http']}/state/streak_beats/all"))
            health = get_json(f"{ready['http']}/health")
        finally:
            worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0
    consumers = health["nats"]["consumers"]  # type: ignore[index]
    assert {"tipstream-streaks", "tipstream-streak_ticks"} <= consumers.keys()
    assert consumers["tipstream-streaks"]["handlers"]["streaks.streak_broken"]["processed"] == 1
