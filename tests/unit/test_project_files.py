"""The files around the code agree with it: what is packaged, what the image copies, what each command runs."""

import configparser
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def declared(section: str, key: str) -> list[str]:
    """The lines of one value of setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser[section][key].split("\n")[1:]


def packages_on_disk() -> set[str]:
    """Each folder with an __init__.py under the folders that setup.cfg names, dotted."""
    tops = {package.split(".")[0] for package in declared("options", "packages")}
    found = [file.parent.relative_to(ROOT) for top in tops for file in (ROOT / top).rglob("__init__.py")]
    return {".".join(folder.parts) for folder in found}


def copied() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    lines = [line.split()[1:] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    return [source for words in lines for source in words[:-1]]


def script(path: Path, body: str) -> str:
    """Writes a shell script that stands in for python."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make reads."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def installed(checkout: Path) -> Path:
    """A checkout whose environment looks installed; its python says what it was asked to run."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    script(checkout / ".venv" / "bin" / "python", 'echo "ran $*"')
    for name in (".made", ".runtime"):
        (checkout / ".venv" / name).touch()
    return checkout


def make(folder: Path, target: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Runs make in a folder, as from a shell of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", target, f"PYTHON={python}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_setup_cfg_names_every_package() -> None:
    """No package is left out of the wheel, and none is named that does not exist."""
    assert set(declared("options", "packages")) == packages_on_disk()


def test_setup_cfg_marks_every_package_as_typed() -> None:
    """Each top-level package carries py.typed, on disk and in the declaration."""
    tops = {package.split(".")[0] for package in declared("options", "packages")}
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    assert {top for top in tops if "py.typed" in parser["options.package_data"].get(top, "")} == tops
    assert {top for top in tops if (ROOT / top / "py.typed").is_file()} == tops


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("options", "install_requires"),
        ("options.extras_require", "dev"),
        ("options.extras_require", "reload"),
        ("options.extras_require", "bench"),
    ],
    ids=["runtime", "dev", "reload", "bench"],
)
def test_setup_cfg_bounds_every_dependency(section: str, key: str) -> None:
    """Each dependency has a lowest and a highest version, so that an install next year is still this one."""
    lines = declared(section, key)
    assert lines
    assert [line for line in lines if not re.match(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+,<[0-9.]+(;.*)?$", line)] == []


def test_dockerfile_copies_what_exists_and_every_package() -> None:
    """Each COPY has a source in the checkout, and together they hold every package and what builds them."""
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    tops = {package.split(".")[0] for package in packages_on_disk()}
    assert tops | {"setup.cfg", "pyproject.toml"} <= set(copied())


def test_dockerignore_lets_through_what_the_dockerfile_copies() -> None:
    """The build sees each source of a COPY, and neither data nor a virtual environment."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def is_sent(name: str) -> bool:
        matching = [rule for rule in rules if fnmatch(name, rule.removeprefix("!"))]
        return not matching or matching[-1].startswith("!")

    assert [source for source in copied() if not is_sent(source)] == []
    assert [name for name in (".venv", "var", ".git", ".env") if is_sent(name)] == []


def test_dockerfile_runs_without_rights() -> None:
    """The image runs as its own user, writes to its volume alone, and tells how to open HTTP."""
    runtime = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER tipstream$", runtime, re.MULTILINE)
    assert runtime.index("install -d -o tipstream") < runtime.index("VOLUME /var/lib/tipstream")
    assert "STATE_DIR=/var/lib/tipstream" in runtime
    assert re.search(r'^ENTRYPOINT \["python", "-m", "app"\]\nCMD \["worker"\]$', runtime, re.MULTILINE)
    assert all(name in DOCKERFILE for name in ("HTTP_HOST=0.0.0.0", "API_TOKENS", "HTTP_ALLOW_OPEN=1"))


def test_dockerfile_health_check_is_python_that_compiles() -> None:
    """The health check needs no program but Python, and asks for liveness."""
    found = re.search(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE)
    assert found
    compile(found[1], "health check", "exec")
    assert "/health/live" in found[1]


def test_ci_runs_make_test() -> None:
    """CI is an executable script that runs the same commands as a person."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text()
    assert script.read_text().splitlines()[-2:] == ["make test", "exec make test-gateway"]


OLD = 'case "$*" in *version_info*) exit 1 ;; -V) echo Python 3.9.1 ;; esac'
WITHOUT_VENV = 'case "$*" in *ensurepip*) exit 1 ;; esac'


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param(OLD, "is Python 3.9.1, Python 3.11 or later is needed", id="old"),
        pytest.param(WITHOUT_VENV, "has no venv and ensurepip modules", id="no-venv"),
    ],
)
@pytest.mark.parametrize("target", ["worker", "test", "test-gateway", "bench", "demo"])
def test_make_says_what_it_needs(target: str, body: str, problem: str, checkout: Path) -> None:
    """A Python that is too old or can't make environments stops each command with one line, before anything is made."""
    result = make(checkout, target, python=script(checkout / "python", body))
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]
    assert result.returncode != 0
    assert [problem in line for line in lines] == [True]
    assert not (checkout / ".venv").exists()


def test_make_says_that_python_is_missing(checkout: Path) -> None:
    """Without any Python the line says so, and how to name one."""
    result = make(checkout, "worker", python="no-such-python")
    assert result.returncode != 0
    assert result.stderr.startswith("no-such-python was not found: install Python 3.11")


def test_make_worker_starts_what_is_installed(installed: Path) -> None:
    """Once installed, the worker starts at once, and nothing but the worker prints."""
    assert make(installed, "worker").stdout == "ran -m app worker\n"


def test_make_worker_installs_again_when_the_declaration_changes(installed: Path) -> None:
    """A newer setup.cfg is installed before the worker starts, and that once."""
    later = time.time() + 1
    os.utime(installed / "setup.cfg", (later, later))
    lines = make(installed, "worker").stdout.splitlines()
    assert [("pip install" in line, line == "ran -m app worker") for line in lines[1:]] == [
        (True, False),
        (False, True),
    ]
    os.utime(installed / ".venv" / ".runtime", (later, later))
    assert make(installed, "worker").stdout == "ran -m app worker\n"


def test_make_test_stops_at_the_first_failure(installed: Path) -> None:
    """After a tool that fails, none of the later ones runs."""
    (installed / ".venv" / ".dev").touch()
    script(installed / ".venv" / "bin" / "lint-imports", "echo ran lint-imports")
    script(installed / ".venv" / "bin" / "python", 'echo "ran $*"; case "$*" in *mypy*) exit 1 ;; esac')
    result = make(installed, "test")
    ran = [line for line in result.stdout.splitlines() if line.startswith("ran")]
    assert ran == ["ran -m ruff check", "ran -m ruff format --check", "ran -m mypy"]
    assert result.returncode != 0


def test_make_clean_removes_each_environment(installed: Path) -> None:
    """Both environments go, with all that was installed into them."""
    (installed / ".venv-gateway").mkdir()
    for name in ("app", "streams", "state", "prompts", "models", "tests"):
        (installed / name).mkdir()
    assert make(installed, "clean").returncode == 0
    assert list(installed.glob(".venv*")) == []


def test_make_test_gateway_runs_what_is_installed(installed: Path) -> None:
    """Once the gateway of that version is there, its tests run, in our environment."""
    gateway = installed / ".venv-gateway"
    gateway.mkdir()
    version = re.search(r"^LITELLM := ([0-9.]+)$", (installed / "Makefile").read_text(), re.MULTILINE)
    assert version
    (installed / ".venv" / ".dev").touch()
    (gateway / f".litellm-{version[1]}").touch()
    assert make(installed, "test-gateway").stdout.splitlines()[-1] == "ran -m pytest tests/gateway"


def test_make_worker_hands_ctrl_c_to_the_worker(installed: Path) -> None:
    """Ctrl-C reaches the worker, make waits for it and adds no line of its own."""
    # A make that finds its child gone when it first hears of the signal says so; a real worker takes longer than that.
    heard = 'while grep -q "Pnd:.*2$" /proc/$PPID/status; do :; done'
    trap = f"trap '{heard}; echo stopped; exit 0' INT; echo ready; while :; do sleep 0.05; done"
    script(installed / ".venv" / "bin" / "python", trap)
    command = ["make", "worker", f"PYTHON={sys.executable}"]
    with subprocess.Popen(
        command,
        cwd=installed,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.stdout.read() == "stopped\n"
