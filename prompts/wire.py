"""One request to the gateway over HTTP, inside limits of time and size; every failure leaves here as a GatewayError.

This module owns the session and what is trusted of the network: no proxy and no file of the environment, no redirect,
no cookie, no compression, no more bytes than allowed. It never asks twice (prompts/gateway.py does) and doesn't know
what the bytes say (prompts/answers.py does). The key is in the session's headers and nowhere else.
"""

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import aiohttp
import attrs

from models.codec import between
from models.errors import GatewayError
from prompts.retries import error_word, refusal_of, retry_after

LAST_BYTES_S = 0.25
# Shorter than the 5 s after which LiteLLM's server closes an idle connection: none is used that is about to end.
KEEP_S = 4.0

_SECONDS = between(0.001, 3600)


@attrs.frozen(kw_only=True)
class WireConfig:
    """Where the gateway is, and the limits of one request.

    Args:
        url: its base; ``/v1`` at its end may be there or not.
        connect_timeout_s: until there is a connection.
        first_byte_timeout_s: until the answer begins; one that isn't streamed begins when it is whole.
        between_bytes_timeout_s: from one piece of the answer to the next.
        max_answer_bytes: the longest answer.
    """

    url: str
    api_key: str | None = attrs.field(default=None, repr=False)
    connect_timeout_s: float = attrs.field(default=2.0, validator=_SECONDS)
    first_byte_timeout_s: float = attrs.field(default=15.0, validator=_SECONDS)
    between_bytes_timeout_s: float = attrs.field(default=10.0, validator=_SECONDS)
    max_answer_bytes: int = attrs.field(default=1_000_000, validator=between(1, 10**9))

    @property
    def endpoint(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"


class Wire:
    """The connections to one gateway; an async context manager."""

    def __init__(self, config: WireConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def ask(self, body: bytes) -> AsyncIterator["Pieces"]:
        """Sends a request and gives the answer once it begins; leaving early closes the connection.

        Raises:
            GatewayError: there was no answer, or one that is not 200.
        """
        response = await self._send(body)
        pieces = Pieces(response, self._config)
        try:
            if response.status != 200:
                raise await self._refusal(response, pieces)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise GatewayError("bad_answer", "the answer is compressed, which was not asked for")
            yield pieces
        finally:
            response.close()  # what was read to its end has given its connection back by now

    async def _send(self, body: bytes) -> aiohttp.ClientResponse:
        assert self._session is not None, "the gateway was not entered"
        limit_s = self._config.first_byte_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._session.post(self._config.endpoint, data=body, allow_redirects=False)
        except aiohttp.ClientResponseError:
            # It holds the headers of the request, and so the key: it must not be in what is logged.
            raise GatewayError("bad_answer", "what came is no HTTP answer") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _no_answer(error, limit_s) from error

    async def _refusal(self, response: aiohttp.ClientResponse, pieces: "Pieces") -> GatewayError:
        try:
            body = await pieces.read()
        except GatewayError:
            body = b""  # the status says enough
        wait_s = retry_after(response.headers, dt.datetime.now(dt.UTC))
        return refusal_of(response.status, retry_after_s=wait_s, word=self._without_key(error_word(body)))

    def _without_key(self, word: str) -> str:
        key = self._config.api_key
        return "" if key and (key in word or (word and word in key)) else word

    def _headers(self) -> Mapping[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return headers | ({"Authorization": f"Bearer {self._config.api_key}"} if self._config.api_key else {})

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers(),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),  # prompts/slots.py bounds how many
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None


class Pieces:
    """The bytes of one answer as they come, and its headers."""

    def __init__(self, response: aiohttp.ClientResponse, config: WireConfig) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._content = response.content
        self._limit_s = config.between_bytes_timeout_s
        self._max_bytes = config.max_answer_bytes
        self._size = 0

    async def next(self) -> bytes:
        """The next bytes; none at all at the end.

        Raises:
            GatewayError: they stop coming, end too early, or are too many.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                piece = await self._content.readany()
        except TimeoutError as error:
            raise GatewayError("timeout", f"the answer stopped coming for {self._limit_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise GatewayError("cut", "the connection ended in the middle of the answer") from error
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise GatewayError("bad_answer", f"the answer is longer than {self._max_bytes} bytes")
        return piece

    async def read(self) -> bytes:
        """All that is left.

        Raises:
            GatewayError: as next does.
        """
        whole = bytearray()
        while piece := await self.next():
            whole += piece
        return bytes(whole)

    async def finish(self) -> None:
        """Waits a moment for the end of an answer that is known to be whole, so that its connection can be kept."""
        try:
            async with asyncio.timeout(LAST_BYTES_S):
                await self._content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # then the connection is not kept


def _no_answer(error: aiohttp.ClientError | OSError, limit_s: float) -> GatewayError:
    """Tells a connection that was never made, which cost nothing, from one that ended before an answer."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return GatewayError("connect", "no connection in time", may_retry=True)
    if isinstance(error, TimeoutError):
        return GatewayError("timeout", f"no answer began within {limit_s:g} s")
    if isinstance(error, aiohttp.ClientSSLError):
        return GatewayError("connect", "its certificate is not accepted")
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno or 0
        words = os.strerror(code) if code > 0 else error.os_error.strerror  # below 0: the name is not known
        return GatewayError("connect", words or "no connection", may_retry=True)
    return GatewayError("cut", "the connection ended before an answer", may_retry=True)
