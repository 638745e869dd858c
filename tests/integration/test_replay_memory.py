"""Replaying more messages takes more time and no more memory."""

import subprocess
import sys
from pathlib import Path

from harness import NatsServer, wait_until
from process_kit import environment, synced
from service_kit import api, client

MESSAGES_COUNT = 20_000
SPARE_BYTES = 16_000_000
"""Less than the payloads alone, 20,000 of about 2,100 bytes are 42 MB, and than a record of each in memory."""


async def peak_bytes(folder: Path, url: str, *arguments: str) -> int:
    """The most memory that ``replay`` takes, as the kernel says near its end: the mark only rises."""
    command = [sys.executable, "-m", "app", "replay", "--json", *arguments]
    env = environment(folder, {"NATS_URL": url})
    found = [0]
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL) as process:

        def has_ended() -> bool:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            found.extend(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
            return process.poll() is not None

        await wait_until(has_ended, 50, what="the replay has ended")
    assert process.returncode == 0
    return max(found)


async def test_replay_takes_no_more_memory_for_more_messages(nats_server: NatsServer, tmp_path: Path) -> None:
    """Twenty thousand users, a row each, take about as much as two thousand."""
    async with client(nats_server.url, pending_size=64 * 1024 * 1024) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"], storage="memory")
        template = str(synced("user-0000000", note="x" * 2000)).replace("'", '"').encode()
        for number in range(MESSAGES_COUNT):
            await nc.publish("signals.task.synced", template.replace(b"0000000", b"%07d" % number))
        await nc.flush()

        async def is_stored() -> bool:
            return bool((await api(nc, "STREAM.INFO.SIGNALS"))["state"]["last_seq"] == MESSAGES_COUNT)

        await wait_until(is_stored, 20, what="all messages are stored")
    few = await peak_bytes(tmp_path, nats_server.url, "--to", "2000")
    many = await peak_bytes(tmp_path, nats_server.url)
    assert many - few < SPARE_BYTES, (few, many)
