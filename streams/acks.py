"""Answers deliveries whose outcomes are durable, all of one turn of the loop together."""

import asyncio
from collections.abc import Awaitable, Callable

from streams.broker import Broker
from streams.message import Message

ACK, TERM = b"+ACK", b"+TERM"


class Acks:
    """The answers of one worker.

    Args:
        then: called once they are sent.
    """

    def __init__(self, broker: Broker, then: Callable[[], Awaitable[None]]) -> None:
        self._broker = broker
        self._then = then
        self._finished: list[tuple[str, bytes]] = []

    def finish(self, message: Message, word: bytes = ACK) -> None:
        """Answers a delivery; a message out of the store has been answered."""
        if message.reply:
            if not self._finished:
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._send()))
            self._finished.append((message.reply, word))

    async def _send(self) -> None:
        finished, self._finished = self._finished, []
        for word in {word for _, word in finished}:
            await self._broker.ack([reply for reply, other in finished if other == word], word)
        await self._then()
