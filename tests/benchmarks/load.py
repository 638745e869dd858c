"""Sends one HTTP request again and again over some keep-alive connections, and prints what came back, as JSON.

A process of its own, so that it is no part of what it measures; a request costs it some microseconds, since it builds
nothing and looks at a response only as far as its length and whatever is asked to be counted in it.

Usage: load.py PORT REQUEST_FILE CLIENTS SECONDS [COUNT_TEXT …]
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast

import uvloop


class Client(asyncio.Protocol):
    """One connection with one request on its way."""

    def __init__(self, request: bytes, until: float, texts: list[bytes]) -> None:
        self.request, self.until, self.texts = request, until, texts
        self.latencies: list[float] = []
        self.statuses: dict[str, int] = {}
        self.counts = dict.fromkeys(texts, 0)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self.send()

    def send(self) -> None:
        """Sends the request, or ends when the time is over."""
        self.sent = time.perf_counter()
        if self.sent > self.until:
            self.transport.close()
        else:
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Takes a response when it is whole."""
        self.received = self.received + data if self.received else data
        head, mark, body = self.received.partition(b"\r\n\r\n")
        if not mark:
            return
        place = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[place:].split(b"\r\n", 1)[0]):
            return
        self.latencies.append(time.perf_counter() - self.sent)
        status = head[9:12].decode()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        for text in self.texts:
            self.counts[text] += text in body
        self.received = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        if not self.ended.done():
            self.ended.set_result(None)


async def load(port: int, request: bytes, clients: int, seconds: float, texts: list[bytes]) -> dict[str, object]:
    """Runs all connections for some seconds."""
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: Client(request, started + seconds, texts), "127.0.0.1", port)
        found.append(client)
    await asyncio.gather(*(client.ended for client in found))
    took_s = time.perf_counter() - started
    latencies = sorted(latency for client in found for latency in client.latencies)
    statuses: dict[str, int] = {}
    for client in found:
        for status, count in client.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "requests_per_s": len(latencies) / took_s,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
        "max_ms": 1000 * latencies[-1],
        "statuses": statuses,
        "counts": {text.decode(): sum(client.counts[text] for client in found) for text in texts},
    }


def main() -> None:
    """Reads the arguments and prints the figures."""
    port, file, clients, seconds, *texts = sys.argv[1:]
    request = Path(file).read_bytes()
    found = uvloop.run(load(int(port), request, int(clients), float(seconds), [text.encode() for text in texts]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
