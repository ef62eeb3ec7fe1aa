"""The two ends of a connection through a terminator: a TLS client, and a plain backend.

Both are blocking, and see how the other side ends in the words of their protocols. The client
drives an ssl.SSLObject over a socket, so it can also do what a stock client can't: half of an end,
or none.
"""

from __future__ import annotations

import enum
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..peer import RECEIVE_BUFFER, TIMEOUT

__all__ = [
    "HOST",
    "Backend",
    "Received",
    "Saw",
    "TlsClient",
    "bound_socket",
    "read_to_end",
    "receive",
    "reset",
]

HOST = "127.0.0.1"

PIECE = 65536

#: struct linger for SO_LINGER: close(2) resets the connection (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Saw(enum.Enum):
    """How a side saw its connection end."""

    CLOSE_NOTIFY = "close_notify"
    FIN = "FIN"
    """To a client this is a truncation."""
    RESET = "reset"
    NOTHING = "no end"
    GARBAGE = "garbage"


@dataclass(frozen=True)
class Received:
    """What came, and how it ended."""

    data: bytes
    end: Saw


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes.

    Raises:
      EOFError: there are less.
    """
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def read_to_end(sock: socket.socket) -> Received:
    """All that comes on a plain connection."""
    data = bytearray()
    try:
        while piece := sock.recv(PIECE):
            data += piece
    except ConnectionResetError:
        return Received(bytes(data), Saw.RESET)
    except TimeoutError:
        return Received(bytes(data), Saw.NOTHING)
    return Received(bytes(data), Saw.FIN)


class TlsClient:
    """A connection to a terminator, after its handshake.

    Args:
      pause: what is called before each look at what has come.

    Raises:
      OSError, EOFError: there is none, or it ends in its handshake.
    """

    def __init__(
        self, port: int, context: ssl.SSLContext, pause: Callable[[], object] = lambda: None
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._pause = pause
        self.sock = socket.socket()
        self.sock.settimeout(TIMEOUT)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            self.sock.connect((HOST, port))
            self._shake_hands()
        except BaseException:
            self.sock.close()
            raise

    def _shake_hands(self) -> None:
        while True:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(PIECE)
                if not data:
                    raise EOFError from None
                self._incoming.write(data)
            else:
                self._flush()
                return

    def send(self, data: bytes) -> None:
        self._ssl.write(data)
        self._flush()

    def receive_byte(self) -> None:
        """Receive one.

        Raises:
          OSError, EOFError: there is none.
        """
        while True:
            with suppress(ssl.SSLWantReadError):
                if not self._ssl.read(1):
                    raise EOFError
                return
            data = self.sock.recv(PIECE)
            if not data:
                raise EOFError
            self._incoming.write(data)

    def send_close_notify(self) -> None:
        with suppress(ssl.SSLWantReadError):  # the answer may come later
            self._ssl.unwrap()
        self._flush()

    def truncate(self) -> None:
        """Send FIN, and no close_notify before it."""
        self.sock.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> Received:
        """All until close_notify, or until TCP ends without it."""
        data = bytearray()
        try:
            while True:
                try:
                    piece = self._ssl.read(PIECE)
                except ssl.SSLWantReadError:
                    self._pause()
                    ciphertext = self.sock.recv(PIECE)
                    if not ciphertext:
                        return Received(bytes(data), Saw.FIN)
                    self._incoming.write(ciphertext)
                else:
                    if not piece:
                        break
                    data += piece
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError:
            return Received(bytes(data), Saw.GARBAGE)
        except ConnectionError:
            return Received(bytes(data), Saw.RESET)
        except TimeoutError:
            return Received(bytes(data), Saw.NOTHING)
        return Received(bytes(data), Saw.CLOSE_NOTIFY)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.sock.sendall(self._outgoing.read())


def bound_socket(port: int = 0) -> socket.socket:
    """A socket that keeps a port: nobody is given it, and a connection to it is refused.

    A server that asks for this very port with SO_REUSEADDR, as servers do, can still listen on it.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    return sock


class Backend:
    """A server that plays scripts: each connection in a thread of its own."""

    def __init__(self) -> None:
        self._bound = bound_socket()
        self.port: int = self._bound.getsockname()[1]

    @contextmanager
    def playing(self, play: Callable[[socket.socket], object]) -> Iterator[None]:
        """Meanwhile it is there; otherwise connections are refused.

        All that has begun to be played has ended when this is left.
        """
        with bound_socket(self.port) as listener:
            listener.listen(1024)
            accepting = threading.Thread(target=_accept, args=(listener, play))
            accepting.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
                accepting.join()

    def close(self) -> None:
        self._bound.close()


def _accept(listener: socket.socket, play: Callable[[socket.socket], object]) -> None:
    threads = []
    with suppress(OSError):
        while True:
            sock, _ = listener.accept()
            thread = threading.Thread(target=_serve, args=(sock, play))
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join()


def _serve(sock: socket.socket, play: Callable[[socket.socket], object]) -> None:
    with sock:
        sock.settimeout(TIMEOUT)
        play(sock)
