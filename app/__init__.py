"""The application: wires streams, state and HTTP views together, and runs them."""

from app.main import App, build

__all__ = ["App", "build"]
