"""The fixtures ``run_handler`` and ``live_app`` for the tests of whoever installs this application.

pytest imports this module in every run, so it imports nothing of the application before a test asks for a fixture.
``live_app`` closes what it started at the end of the test where pytest-asyncio is installed; elsewhere it is for
``async with`` alone.
"""

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streams.testing import LiveApp

HAS_ASYNCIO = importlib.util.find_spec("pytest_asyncio") is not None


class Starting:
    """An application that was asked for: await it, and it ends with the test, or enter it with ``async with``."""

    def __init__(self, app: "LiveApp", stack: contextlib.AsyncExitStack | None) -> None:
        self._app, self._stack = app, stack

    def __await__(self) -> Generator[Any, None, "LiveApp"]:
        if self._stack is None:
            raise pytest.UsageError("await live_app(…) needs pytest-asyncio; without it: async with live_app(…) as app")
        return self._stack.enter_async_context(self._app).__await__()

    async def __aenter__(self) -> "LiveApp":
        return await self._app.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._app.__aexit__(kind, error, trace)


@pytest.fixture
def run_handler() -> Callable[..., Any]:
    """``await run_handler(handler, event, state=…)``: what would become of a message; see streams/testing.py."""
    from streams.testing import run_handler

    return run_handler


def _starter(stack: contextlib.AsyncExitStack | None) -> Callable[..., Starting]:
    from streams.testing import live_app

    return lambda *things, **options: Starting(live_app(*things, **options), stack)


if HAS_ASYNCIO:
    import pytest_asyncio

    @pytest_asyncio.fixture(name="live_app")
    async def _live_app() -> AsyncIterator[Callable[..., Starting]]:
        """``app = await live_app(subjects)``: the application on a real nats-server, until the end of the test."""
        async with contextlib.AsyncExitStack() as stack:
            yield _starter(stack)

else:

    @pytest.fixture(name="live_app")
    def _live_app_to_enter() -> Callable[..., Starting]:
        """``async with live_app(subjects) as app``: the application on a real nats-server."""
        return _starter(None)
