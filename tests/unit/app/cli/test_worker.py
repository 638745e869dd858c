"""``worker``: its options; what it does is seen in processes of its own."""

import sys

import pytest
from process_kit import invoke

from models.errors import DeclarationError


def test_worker_reload_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that watches files nothing starts."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    error = invoke("worker", "--reload", NATS_URL="", PLUGINS="one, two,").exception
    assert isinstance(error, DeclarationError) and "pip install 'tipstream[reload]'" in str(error)
