"""The application: wires streams, state and HTTP views together, and runs them."""

from app.main import App, build
from app.rows import fetch_row

__all__ = ["App", "build", "fetch_row"]
