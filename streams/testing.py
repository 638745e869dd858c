"""What the tests of a plugin import: ``run_handler`` without a broker, and ``live_app`` on a real nats-server."""

from streams.testing_outcome import Outcome, run_handler

__all__ = ["Outcome", "run_handler"]
