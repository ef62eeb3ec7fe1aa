"""One HTTP/1.1 connection of ``ringtls serve``. h11 keeps the state of the protocol.

Rules:

1. Whatever a peer does ends no more than its own connection, with one line in the log.
2. Nothing waits for a peer without a limit: not the handshake, not the next request, not its
   head, not room to send.
3. A request that has a body is answered with ``Connection: close``, and the body is not read:
   the end of the stream throws away what still comes. So nobody is told to continue (100).
4. While the server drains, a connection ends at once if nothing of a next request has come,
   and after its response otherwise.
5. A response that can't be completed ends the connection, cleanly: Content-Length tells the
   client that something is missing, and a reset would take from it what it has not read yet.
6. The end of a stream has little time, and can't be cut short. So it begins when the peer has
   all that it was sent (``_until_taken``), and the waiting for that is done before.
"""

from __future__ import annotations

import email.utils
import fcntl
import http
import logging
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import h11
import trio

from ringtls import TlsStream

from .responses import Request, Response, error_response, respond

__all__ = ["Drain", "access_logger", "serve_connection"]

logger = logging.getLogger("ringtls.serve")
access_logger = logging.getLogger("ringtls.access")

#: Bytes that h11 is given at a time: it has no limit for what is complete at once.
RECEIVE_SIZE = 16384

#: Seconds; see rule 2.
HANDSHAKE_TIMEOUT = 10.0
REQUEST_TIMEOUT = 20.0
IDLE_TIMEOUT = 75.0
SEND_TIMEOUT = 60.0

#: Seconds that the end of a stream may take while the server drains.
DRAIN_CLOSE_TIMEOUT = 1.0

#: Seconds between two looks at what the peer has acknowledged.
POLL_INTERVAL = 0.02

#: The state of a TCP connection that is over: TCP_CLOSE in Linux' net/tcp_states.h.
TCP_CLOSE = 7


class Drain:
    """Tells connections that the server is about to end."""

    def __init__(self) -> None:
        self.started = False
        self._idle: set[trio.CancelScope] = set()

    def start(self) -> None:
        self.started = True
        for scope in self._idle:
            scope.cancel()

    @contextmanager
    def idle(self, timeout: float) -> Iterator[trio.CancelScope]:
        """A scope for what is given up when the drain starts, or after ``timeout`` seconds."""
        with trio.move_on_after(timeout) as scope:
            if self.started:
                scope.cancel()
            self._idle.add(scope)
            try:
                yield scope
            finally:
                self._idle.discard(scope)


async def serve_connection(root: Path, drain: Drain, stream: TlsStream) -> None:
    """Serve what is below ``root`` until the connection ends (rule 1)."""
    peer = _peer_name(stream)
    async with stream:
        try:
            if await _shake_hands(stream, drain, peer):
                await _Connection(root, drain, stream, peer).serve()
                await _until_taken(stream)
        except trio.TooSlowError:
            logger.info("%s: takes in nothing, given up after %g s", peer, SEND_TIMEOUT)
        except trio.BrokenResourceError as error:
            logger.info("%s: %s", peer, error)
        except Exception:
            logger.exception("%s: unexpected error", peer)
        finally:
            if drain.started:
                stream.shutdown_timeout = DRAIN_CLOSE_TIMEOUT


async def _shake_hands(stream: TlsStream, drain: Drain, peer: str) -> bool:
    """True if it succeeded."""
    try:
        with drain.idle(HANDSHAKE_TIMEOUT) as scope:
            await stream.do_handshake()
    except trio.BrokenResourceError as error:
        logger.warning("%s: handshake failed: %s", peer, _handshake_failure(error))
        return False
    if scope.cancelled_caught and not drain.started:
        logger.warning("%s: handshake not complete after %g s", peer, HANDSHAKE_TIMEOUT)
    return not scope.cancelled_caught


def _handshake_failure(error: trio.BrokenResourceError) -> str:
    # Only errors that OpenSSL itself raised have a reason.
    if getattr(error.__cause__, "reason", None) == "HTTP_REQUEST":
        return "plain HTTP sent to the TLS port"
    return str(error)


async def _until_taken(stream: TlsStream) -> None:
    """Wait until the peer's TCP has acknowledged all, or is gone (rule 6)."""
    sock = stream.transport_stream.socket
    with trio.move_on_after(SEND_TIMEOUT):
        await stream.wait_sent()
        while _is_connected(sock) and _unacknowledged(sock):  # noqa: ASYNC110 (no event for it)
            await trio.sleep(POLL_INTERVAL)


def _is_connected(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_CLOSE


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes in the kernel's queue; see tcp(7) on SIOCOUTQ."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    assert isinstance(count, int)
    return count


def _peer_name(stream: TlsStream) -> str:
    try:
        host, port = stream.transport_stream.socket.getpeername()[:2]
    except OSError:
        return "a peer that is gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Connection:
    """The requests of one connection, one after the other."""

    def __init__(self, root: Path, drain: Drain, stream: TlsStream, peer: str) -> None:
        self._root = root
        self._drain = drain
        self._stream = stream
        self._peer = peer
        self._http = h11.Connection(h11.SERVER)
        self._sent = 0  # of the body of the response at hand

    async def serve(self) -> None:
        """Answer requests until there is no other on this connection.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.TooSlowError: the peer takes in nothing.
        """
        try:
            await self._serve_requests()
        except h11.RemoteProtocolError as error:
            logger.info("%s: bad request: %s", self._peer, error)
            await self._send(error_response(http.HTTPStatus(error.error_status_hint)), close=True)

    async def _serve_requests(self) -> None:
        idle_timeout = REQUEST_TIMEOUT
        while await self._await_request(idle_timeout):
            try:
                with trio.fail_after(REQUEST_TIMEOUT):
                    event = await self._next_event()
            except trio.TooSlowError:
                logger.info("%s: request not complete after %g s", self._peer, REQUEST_TIMEOUT)
                await self._send(error_response(http.HTTPStatus.REQUEST_TIMEOUT), close=True)
                return
            if not isinstance(event, h11.Request):
                return
            await self._serve_request(event)
            if self._drain.started or self._http.our_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            idle_timeout = IDLE_TIMEOUT

    async def _await_request(self, seconds: float) -> bool:
        """Wait until something of a request has come, or the peer's end. False if nothing did."""
        if self._http.trailing_data[0]:
            return True
        with self._drain.idle(seconds) as scope:
            await self._receive()
        return not scope.cancelled_caught

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event that is not NEED_DATA."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        self._http.receive_data(await self._stream.receive_some(RECEIVE_SIZE))

    async def _serve_request(self, event: h11.Request) -> None:
        has_body = not isinstance(self._http.next_event(), h11.EndOfMessage)
        request = _request(event)
        response = await trio.to_thread.run_sync(respond, self._root, request)
        with closing(response.body):
            try:
                await self._send(response, close=has_body or self._drain.started)
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
        with trio.fail_after(SEND_TIMEOUT):
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
