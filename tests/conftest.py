"""Fixtures that every kind of test may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NatsServer


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A real nats-server with JetStream, of this test alone."""
    folder = tmp_path / "nats-server"
    folder.mkdir()
    with NatsServer(folder) as server:
        yield server
