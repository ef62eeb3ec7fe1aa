"""hypercorn's HTTP/1, and what it leaves open at an end.

Rules:

1. An answer to a client of HTTP/1.0 that does not tell its length is over when its connection is
   (RFC 9112, section 6.3). Where that ends before, the client must not read an end.
2. While an answer is on its way, what the client has sent behind its request waits (RFC 9112,
   section 9.3.2). Reading goes on, or nobody would notice that the client is gone.
3. What a proxy in front may have understood otherwise is refused, and the connection ended (RFC
   9112, section 6.1): both Content-Length and Transfer-Encoding, the latter in HTTP/1.0, too; and
   another version than HTTP/1.
4. A request that is refused before the application hears of it ends its connection, as its answer
   says. hypercorn keeps that open, for ever.
5. The preface of HTTP/2 is no request: the connection is idle until one comes.
6. A CONNECT is answered with 501 (RFC 9110, section 9.3.6): an application that took it for a
   request would tell its client of a tunnel.
"""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import h11
import trio
from hypercorn.events import RawData, Updated
from hypercorn.protocol.events import Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.utils import suppress_body

from ._websockets import PROTOCOL_ERROR, adopted, close

if TYPE_CHECKING:
    from hypercorn.protocol.events import Event

__all__ = ["Http1"]


class Http1(H11Protocol):
    """HTTP/1.

    Args:
      read_ahead: goes on reading until it is cancelled; what it raises at an end comes out of
        ``handle``.
    """

    _lasts_until_the_end = False  # the answer, by its head

    def __init__(self, read_ahead: Callable[[], Awaitable[None]], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.can_read = _Turn(read_ahead)
        self.connection = _Requests(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )

    @property
    def stream(self) -> HTTPStream | WSStream | None:
        return self._stream

    @stream.setter
    def stream(self, made: HTTPStream | WSStream | None) -> None:
        self._stream: HTTPStream | WSStream | None = adopted(made)

    async def _check_protocol(self, event: h11.Request) -> None:
        try:
            await super()._check_protocol(event)
        except H2ProtocolAssumedError:
            await self.send(Updated(idle=True))  # rule 5
            raise

    async def _create_stream(self, request: h11.Request) -> None:
        await super()._create_stream(request)
        if self.stream is not None and self.stream.app_put is None:  # rule 4
            await self.stream_send(StreamClosed(STREAM_ID))

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, Response):
            self._lasts_until_the_end = self._tells_no_length(event)
        elif isinstance(event, StreamClosed) and (last := close(self.stream, PROTOCOL_ERROR)):
            await self.send(RawData(last))
        await super().stream_send(event)

    def _tells_no_length(self, response: Response) -> bool:
        if not isinstance(self.stream, HTTPStream):
            return False
        if self.stream.scope["http_version"] >= "1.1":
            return False
        if suppress_body(self.stream.scope["method"], response.status_code):
            return False
        names = {name.lower() for name, _ in response.headers}
        return b"content-length" not in names or b"transfer-encoding" in names

    @property
    def is_owed(self) -> bool:
        """True if the rest of a request's body is to come."""
        return self.connection.their_state is h11.SEND_BODY

    def last_words(self) -> bytes:
        return close(self.stream)

    @property
    def is_cut_short(self) -> bool:
        """True if the end of the connection would make a part of an answer look whole."""
        return self._lasts_until_the_end and self.connection.our_state is h11.SEND_BODY


class _Requests(h11.Connection):
    """By rules 3 and 6."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
        return event


def _check(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    version = request.http_version
    if b"transfer-encoding" in names and (b"content-length" in names or version < b"1.1"):
        raise h11.RemoteProtocolError("it is not certain where the request ends")
    if not version.startswith(b"1.") and request.method != b"PRI":  # which is HTTP/2's preface
        status = http.HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        raise h11.RemoteProtocolError("the version is not HTTP/1", status)
    if request.method == b"CONNECT":  # rule 6
        raise h11.RemoteProtocolError("there is no tunnel", http.HTTPStatus.NOT_IMPLEMENTED)


class _Turn(EventWrapper):
    """That of the next request (rule 2)."""

    def __init__(self, read_ahead: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._read_ahead = read_ahead
        self._waiting = trio.CancelScope()

    async def set(self) -> None:
        await super().set()
        self._waiting.cancel()

    async def wait(self) -> None:
        with trio.CancelScope() as self._waiting:
            await self._read_ahead()
