"""The application: wires streams, state and HTTP views together, and runs them."""

from app.main import App, build
from app.plugins import Plugin
from app.rows import fetch_row

__all__ = ["App", "Plugin", "build", "fetch_row"]
