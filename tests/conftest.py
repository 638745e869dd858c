"""Fixtures that every kind of test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from harness import NatsServer

# How long an example takes says nothing of what it shows; a test's own time limit bounds them all. CI tries the same
# examples for the same code, so that what it says of a change is about that change.
hypothesis.settings.register_profile("tipstream", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tipstream")


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A real nats-server with JetStream, of this test alone."""
    folder = tmp_path / "nats-server"
    folder.mkdir()
    with NatsServer(folder) as server:
        yield server
