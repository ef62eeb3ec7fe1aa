"""Both ends of a relay: streams of each kind, their peers, and stories of how connections end."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ringtls import RelayOutcome, SocketStream, TlsStream, blocking, relay
from ringtls._drivers.blocking import BlockingDriver

from .peer import Peer, adapted_socket_stream
from .streams import tcp_pair
from .waiting import LIMIT

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = [
    "BLOCKING_KINDS",
    "END",
    "KINDS",
    "RESET",
    "TRUNCATED",
    "Kind",
    "Meeting",
    "Met",
    "Part",
    "Saw",
    "Talker",
    "TlsTalker",
    "pair_name",
    "play",
    "play_blocking",
    "run_beside",
]

#: What a peer that saw an end without errors saw, and what it must not take for that.
END, RESET, TRUNCATED = "end", "reset", "truncated"


@dataclass(frozen=True)
class Saw:
    """What a peer has read, and how that ended: END, RESET or TRUNCATED."""

    data: bytes
    end: str


class Talker(Protocol):
    """A peer of a relay, in plain blocking code."""

    sock: socket.socket

    def handshake(self) -> None: ...

    def send(self, data: bytes) -> None: ...

    def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""

    def half_close(self) -> None:
        """Say in order that nothing more will be sent."""

    def read(self) -> Saw:
        """Read to the end, and leave the connection open."""


class TlsTalker(Peer):
    """A TLS peer."""

    def half_close(self) -> None:
        unread = self._incoming.read()  # OpenSSL would destroy it
        with suppress(ssl.SSLError):  # as it does with what it has read already
            self.ssl.unwrap()
        self._flush()
        self._incoming.write(unread)

    def read(self) -> Saw:
        while True:  # to close_notify, after which TCP may stay open
            try:
                data = self.read_some()
            except ssl.SSLWantReadError:
                try:
                    self._feed()
                except ssl.SSLEOFError:
                    return Saw(bytes(self.seen), TRUNCATED)
                except ConnectionError:
                    return Saw(bytes(self.seen), RESET)
            except ssl.SSLZeroReturnError:
                return Saw(bytes(self.seen), END)
            except ssl.SSLError as error:
                return Saw(bytes(self.seen), error.reason or "")
            else:
                if not data:
                    return Saw(bytes(self.seen), END)

    def __init__(self, sock: socket.socket, contexts: Contexts, *, server_side: bool) -> None:
        super().__init__(sock, contexts, server_side=server_side)
        self.seen = bytearray()

    def read_some(self) -> bytes:
        data = self.ssl.read(65536)
        self.seen += data
        return data


class PlainTalker:
    """A peer without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        self.sock = sock

    def handshake(self) -> None:
        """There is none."""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece
            data += piece
        return data

    def half_close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # it was reset
                raise
            raise ConnectionResetError from error

    def read(self) -> Saw:
        seen = bytearray()
        try:
            while data := self.sock.recv(65536):
                seen += data
        except ConnectionError:
            return Saw(bytes(seen), RESET)
        return Saw(bytes(seen), END)


@dataclass(frozen=True)
class Kind:
    """A kind of stream: what is below it, and whether TLS is on it."""

    name: str
    transport: Callable[[socket.socket], Any]
    tls: Callable[..., Any] | None

    def __str__(self) -> str:
        return self.name

    def stream(
        self, sock: socket.socket, contexts: Contexts, *, server_side: bool, **options: Any
    ) -> Any:
        below = self.transport(sock)
        if self.tls is None:
            return below
        return self.tls(
            below,
            contexts.server if server_side else contexts.client,
            server_side=server_side,
            server_hostname=None if server_side else "localhost",
            **options,
        )

    def peer(self, sock: socket.socket, contexts: Contexts, *, server_side: bool) -> Talker:
        if self.tls is None:
            return PlainTalker(sock)
        return TlsTalker(sock, contexts, server_side=server_side)


KINDS = [
    Kind("tls", SocketStream, TlsStream),
    Kind("plain", SocketStream, None),
    Kind("tls over a stream", adapted_socket_stream, TlsStream),
    Kind("stream", adapted_socket_stream, None),
]


def pair_name(kinds: tuple[Kind, Kind]) -> str:
    return f"{kinds[0]} to {kinds[1]}"


BLOCKING_KINDS = [
    Kind("tls", blocking.SocketStream, blocking.TlsStream),
    Kind("plain", blocking.SocketStream, None),
]

#: What a peer does; what it returns is what it saw.
Part = Callable[[Talker], Saw | None]


@dataclass
class Met:
    """How a relay went."""

    client: Saw | None
    backend: Saw | None
    outcome: RelayOutcome


def run_beside(parts: list[Callable[[], Any]]) -> Callable[[], list[Any]]:
    """Start functions in threads; what is returned waits for what they return."""
    results: list[Any] = [None] * len(parts)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = parts[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()

    def join() -> list[Any]:
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    return join


class Meeting:
    """A client and a backend, with a relay between them."""

    def __init__(
        self,
        contexts: Contexts,
        kinds: tuple[Kind, Kind],
        client: Part,
        backend: Part,
        *,
        buffer_size: int | None = None,
        **options: Any,
    ) -> None:
        kind_a, kind_b = kinds
        theirs_a, self._a = tcp_pair(buffer_size)
        self.client_socket = theirs_a
        self._b, theirs_b = tcp_pair(buffer_size)
        self._contexts, self._kinds, self._options = contexts, kinds, options
        talkers = (
            kind_a.peer(theirs_a, contexts, server_side=False),
            kind_b.peer(theirs_b, contexts, server_side=True),
        )
        self.join = run_beside(
            [
                partial(_play_part, talker, part)
                for talker, part in zip(talkers, (client, backend), strict=True)
            ]
        )

    def streams(self) -> tuple[Any, Any]:
        kind_a, kind_b = self._kinds
        options = self._options if kind_a.tls else {}
        return (
            kind_a.stream(self._a, self._contexts, server_side=True, **options),
            kind_b.stream(self._b, self._contexts, server_side=False),
        )


def _shaking_hands(part: Part) -> Part:
    def shake_hands(talker: Talker) -> Saw | None:
        talker.handshake()
        return part(talker)

    return shake_hands


def _play_part(talker: Talker, part: Part) -> Saw | None:
    try:
        return part(talker)
    finally:
        talker.sock.close()


def play(
    contexts: Contexts, kinds: tuple[Kind, Kind], client: Part, backend: Part, **options: Any
) -> Met:
    """A relay between two peers, in a trio run of its own."""
    parts = _shaking_hands(client), _shaking_hands(backend)
    meeting = Meeting(contexts, kinds, *parts, **options)

    async def main() -> RelayOutcome:
        with trio.fail_after(LIMIT):
            return await relay(*meeting.streams())

    outcome = trio.run(main)
    client_saw, backend_saw = meeting.join()
    return Met(client_saw, backend_saw, outcome)


def play_blocking(
    contexts: Contexts, kinds: tuple[Kind, Kind], client: Part, backend: Part, **options: Any
) -> Met:
    """The same with blocking streams."""
    parts = _shaking_hands(client), _shaking_hands(backend)
    meeting = Meeting(contexts, kinds, *parts, **options)
    try:
        outcome = blocking.relay(*meeting.streams())
    finally:
        BlockingDriver.current().end()
    client_saw, backend_saw = meeting.join()
    return Met(client_saw, backend_saw, outcome)
