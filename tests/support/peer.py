"""The other end: a blocking stdlib-ssl peer that records exactly how a connection ended.

It drives an ssl.SSLObject over a plain socket, so that it sees both what TLS says
(close_notify, alert, nothing) and what TCP says (FIN, RST).
"""

from __future__ import annotations

import enum
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from ringtls import SocketStream, TlsStream

from .streams import reset, tcp_pair
from .waiting import LIMIT

if TYPE_CHECKING:
    from ..conftest import Contexts

#: Bytes, more than any test sends: who reads more than this reads for ever.
MOST = 1 << 26


def trio_socket_stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


class _ForeignSocket(trio.socket.SocketType):
    """A socket that is not of trio's own class, and so is not put on the ring."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_sock"), name)


def adapted_socket_stream(sock: socket.socket) -> trio.SocketStream:
    """A stream of trio's over which TLS uses the adapter, as all do where io_uring is forbidden."""
    return trio.SocketStream(_ForeignSocket(trio.socket.from_stdlib_socket(sock)))


#: What is put below TLS: a stream on the ring, or trio's, which the adapter is for.
MakeTransport = Callable[[socket.socket], trio.abc.Stream]


class Transport(enum.Enum):
    FIN = "FIN"
    RST = "RST"


@dataclass(frozen=True)
class End:
    """How the peer saw the connection end."""

    data: bytes
    close_notify: bool
    transport: Transport
    trailing: int
    error: str | None

    @property
    def is_clean(self) -> bool:
        """All that C1 promises: one close_notify, then FIN, and nothing else."""
        return (
            self.close_notify
            and self.transport is Transport.FIN
            and not self.trailing
            and self.error is None
        )


class Peer:
    """A TLS endpoint in plain blocking code."""

    def __init__(self, sock: socket.socket, contexts: Contexts, *, server_side: bool) -> None:
        sock.settimeout(LIMIT)
        self.sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = contexts.server if server_side else contexts.client
        self.ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else "localhost",
        )

    def handshake(self) -> None:
        while True:
            try:
                self.ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            else:
                self._flush()
                return

    def send(self, data: bytes) -> None:
        self.ssl.write(data)
        self._flush()

    def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes. EOFError if close_notify comes before."""
        data = b""
        while len(data) < count:
            try:
                piece = self.ssl.read(count - len(data))
            except ssl.SSLWantReadError:
                self._feed()
            else:
                if not piece:
                    raise EOFError
                data += piece
        return data

    def send_close_notify(self) -> None:
        try:
            self.ssl.unwrap()
        except ssl.SSLWantReadError:
            pass  # the answer may come later
        except ssl.SSLError as error:  # the alert is made, and data lies before the answer
            if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                raise
        self._flush()

    def read_to_end(self) -> End:
        """Read until TCP ends; what TLS made of it is in the result."""
        data = bytearray()
        close_notify = False
        error: str | None = None
        while True:
            while not close_notify and error is None:
                try:
                    piece = self.ssl.read(65536)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    piece = b""
                except ssl.SSLError as exc:
                    error = exc.reason
                    break
                data += piece
                if len(data) > MOST:
                    self.vanish()
                    raise AssertionError("our side does not end")
                close_notify = not piece
            try:
                ciphertext = self.sock.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                seen = Transport.RST
                break
            if not ciphertext:
                seen = Transport.FIN
                break
            self._incoming.write(ciphertext)
        return End(bytes(data), close_notify, seen, self._incoming.pending, error)

    def end(self) -> End:
        """Read to the end, then close."""
        end = self.read_to_end()
        self.sock.close()
        return end

    def vanish(self) -> None:
        """Reset the connection."""
        reset(self.sock)

    def _feed(self) -> None:
        ciphertext = self.sock.recv(65536)
        if not ciphertext:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF")
        self._incoming.write(ciphertext)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.sock.sendall(self._outgoing.read())


async def meet(
    contexts: Contexts,
    *,
    transport: MakeTransport = SocketStream,
    server_side: bool = True,
    buffer_size: int | None = None,
    https_compatible: bool = False,
    shutdown_timeout: float = LIMIT / 2,
    handshake: bool = True,
    pair: Callable[[int | None], tuple[socket.socket, socket.socket]] = tcp_pair,
) -> tuple[TlsStream[Any], Peer]:
    """A stream of ours and a peer, connected by ``pair``; ``server_side`` says what ours is."""
    ours, theirs = pair(buffer_size)
    stream: TlsStream[Any] = TlsStream(
        transport(ours),
        contexts.server if server_side else contexts.client,
        server_side=server_side,
        server_hostname=None if server_side else "localhost",
        https_compatible=https_compatible,
        shutdown_timeout=shutdown_timeout,
    )
    peer = Peer(theirs, contexts, server_side=not server_side)
    if handshake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, peer.handshake)
            nursery.start_soon(stream.do_handshake)
    return stream, peer


Meet = Callable[..., Awaitable[tuple[TlsStream[Any], Peer]]]
