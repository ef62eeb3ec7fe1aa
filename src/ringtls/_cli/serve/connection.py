"""One HTTP/1.1 connection of ``ringtls serve``. h11 keeps the state of the protocol.

Rules:

1. A request that has a body is answered with ``Connection: close``, and the body is not read:
   the end of the stream throws away what still comes. So nobody is told to continue (100).
2. While the server drains, a connection ends after its response.
3. A response that can't be completed ends the connection, cleanly: Content-Length tells the
   client that something is missing, and a reset would take from it what it has not read yet.
"""

from __future__ import annotations

import email.utils
import http
import logging
import time
from contextlib import closing
from pathlib import Path

import h11
import trio

from ..server import Connection, Service, Wait, access_logger
from .responses import Request, Response, check_root, error_response, respond

__all__ = ["Files"]

logger = logging.getLogger("ringtls.server")

#: Bytes that h11 is given at a time: it has no limit for what is complete at once.
RECEIVE_SIZE = 16384


class Files(Service):
    """Serves what is below a directory.

    Raises:
      StartError: it can't be read.
    """

    alpn = ("http/1.1",)

    def __init__(self, directory: Path) -> None:
        self._root = check_root(directory)

    async def handle(self, connection: Connection) -> None:
        await _Connection(self._root, connection).serve()

    async def say_last(self, connection: Connection) -> None:
        await connection.stream.send_all(_REQUEST_TIMEOUT)


class _Connection:
    """The requests of one connection, one after the other."""

    def __init__(self, root: Path, connection: Connection) -> None:
        self._root = root
        self._connection = connection
        self._stream = connection.stream
        self._peer = connection.peer
        self._http = h11.Connection(h11.SERVER)
        self._sent = 0  # of the body of the response at hand

    async def serve(self) -> None:
        """Answer requests until there is no other on this connection.

        Raises:
          trio.BrokenResourceError: the connection broke.
        """
        try:
            await self._serve_requests()
        except h11.RemoteProtocolError as error:
            logger.info("%s: bad request: %s", self._peer, error)
            await self._send(error_response(http.HTTPStatus(error.error_status_hint)), close=True)

    async def _serve_requests(self) -> None:
        wait = Wait.FIRST_REQUEST
        while True:
            if not self._http.trailing_data[0]:
                self._connection.begin(wait)
                await self._receive()
            self._connection.begin(Wait.REQUEST)
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return
            await self._serve_request(event)
            if self._connection.draining or self._http.our_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            wait = Wait.NEXT_REQUEST

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event that is not NEED_DATA."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        self._http.receive_data(await self._stream.receive_some(RECEIVE_SIZE))

    async def _serve_request(self, event: h11.Request) -> None:
        self._connection.begin(Wait.NOTHING)
        has_body = not isinstance(self._http.next_event(), h11.EndOfMessage)
        request = _request(event)
        response = await trio.to_thread.run_sync(respond, self._root, request)
        with closing(response.body):
            try:
                await self._send(response, close=has_body or self._connection.draining)
            finally:
                self._log_access(request, response)

    async def _send(self, response: Response, *, close: bool) -> None:
        """Send a response; if it could not be completed (rule 5), h11's state says so."""
        self._sent = 0
        headers = [("Date", email.utils.formatdate(usegmt=True)), ("Server", "ringtls")]
        headers += response.headers
        if close:
            headers.append(("Connection", "close"))
        head = h11.Response(
            status_code=response.status, headers=headers, reason=response.status.phrase
        )
        body = response.body
        await self._send_all(self._http.send(head) + self._data(body.start))
        while self._sent < body.length:
            piece = await trio.to_thread.run_sync(body.read, self._sent)
            if not piece:
                logger.warning("%s: a file became shorter while it was sent", self._peer)
                return
            await self._send_all(self._data(piece))
        self._http.send(h11.EndOfMessage())

    def _data(self, piece: bytes) -> bytes:
        if not piece:
            return b""
        self._sent += len(piece)
        return self._http.send(h11.Data(data=piece))

    async def _send_all(self, data: bytes) -> None:
        self._connection.begin(Wait.ROOM)
        await self._stream.send_all(data)

    def _log_access(self, request: Request, response: Response) -> None:
        """The combined format of Apache and others."""
        if not access_logger.isEnabledFor(logging.INFO):
            return
        host = self._peer.rsplit(":", 1)[0]
        access_logger.info(
            '%s - - [%s] "%s %s HTTP/%s" %d %d "%s" "%s"',
            host,
            time.strftime("%d/%b/%Y:%H:%M:%S %z"),
            request.method,
            _printable(request.target),
            request.version,
            response.status,
            self._sent,
            _printable(request.headers.get("referer", "-")),
            _printable(request.headers.get("user-agent", "-")),
        )


def _request(event: h11.Request) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(
        event.method.decode("ascii"),
        event.target.decode("ascii"),
        event.http_version.decode("ascii"),
        headers,
    )


def _printable(text: str) -> str:
    """A text of the client's that can't end its field, or its line, in a log."""
    return "".join(
        char
        if char.isascii() and char.isprintable() and char not in '"\\'
        else f"\\x{ord(char):02x}"
        for char in text
    )


_REQUEST_TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\nServer: ringtls\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)
