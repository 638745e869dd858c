"""What commands share: the connection, and how output looks."""

import json
import logging
from pathlib import Path

import pytest
from harness import NatsServer, free_port

from app.cli.session import connected, print_json, print_table, run_command
from app.settings import Settings
from models.errors import BrokerUnavailable, SettingsError
from streams.server_program import is_answering, read_address

ROWS = [("a", 1), ("b\nc\x1b[31m", "[red]")]


def test_run_command_runs_a_coroutine_and_keeps_warnings_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command's answer is returned; of its log only errors are shown, on stderr, so that its output stays whole."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    async def command() -> int:
        logging.getLogger("app").warning("still trying")
        logging.getLogger("app").error("given up")
        return 7

    assert run_command(command()) == 7
    out, err = capsys.readouterr()
    assert (out, "given up" in err, "still trying" in err) == ("", True, False)


async def test_connected_refuses_when_nats_is_disabled() -> None:
    """A command that needs NATS names the setting that switched it off."""
    with pytest.raises(SettingsError, match="NATS_URL: this command needs NATS"):
        async with connected(Settings(nats_url="")):
            pass


async def test_connected_gives_up_on_a_server_that_is_not_there() -> None:
    """A server that does not answer is an error that says how long was waited, and why it failed."""
    settings = Settings(nats_url=f"nats://127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnavailable, match=r"NATS does not answer within 0\.3 s \(.*Connect call failed"):
        async with connected(settings, connect_s=0.3):
            pass


async def test_connected_uses_the_server_that_is_named(nats_server: NatsServer) -> None:
    """With NATS_URL the connection answers at once and nothing else is started."""
    async with connected(Settings(nats_url=nats_server.url)) as broker:
        assert (await broker.api("INFO"))["streams"] == 0


async def test_connected_starts_the_embedded_server_for_its_time(tmp_path: Path) -> None:
    """Without NATS_URL the server of STATE_DIR runs while the command does, and not longer."""
    async with connected(Settings(state_dir=tmp_path)) as broker:
        assert (await broker.api("INFO"))["streams"] == 0
        address = read_address(tmp_path)
        assert address is not None and await is_answering(address)
    assert not await is_answering(address)


def test_table_is_a_line_a_row_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere than on a terminal cells stand between tabs, without headings, control characters escaped."""
    print_table(("name", "count"), ROWS)
    assert capsys.readouterr().out == "a\t1\nb\\nc\\x1b[31m\t[red]\n"


def test_table_has_headings_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal columns have headings, and neither markup nor control characters of a value count."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("name", "count"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "name" in lines[0] and "count" in lines[0]
    assert "b\\nc\\x1b[31m" in lines[2] and "[red]" in lines[2]


def test_json_keeps_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON output is readable by people and programs alike."""
    print_json({"key": "é🦊", "path": Path("a")})
    out = capsys.readouterr().out
    assert "é🦊" in out and json.loads(out) == {"key": "é🦊", "path": "a"}
