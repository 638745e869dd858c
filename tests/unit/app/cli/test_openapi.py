"""``schema openapi``: the document without a worker."""

import json
from pathlib import Path

from process_kit import invoke

from app.main import build
from app.settings import load_settings


def test_schema_openapi_prints_what_a_worker_shows(tmp_path: Path) -> None:
    """The document is that of an app with the same settings; tokens in them count, and stay out of it."""
    env = {"NATS_URL": "", "STATE_DIR": str(tmp_path), "API_TOKENS": "ops:0123456789abcdef"}
    result = invoke("schema", "openapi", **env)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == build(load_settings(env)).openapi()
    assert "0123456789abcdef" not in result.stdout
