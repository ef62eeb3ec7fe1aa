"""The faces of a TLS stream, so that a case is written once and played on each.

A story is a coroutine function that makes its stream with ``face.stream()``. On the blocking faces
it gets a blocking stream in an asynchronous one's clothes, and never suspends.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
import trio

from ringtls import SocketStream, TlsStream, blocking
from ringtls._drivers.blocking import BlockingDriver, complete
from ringtls._streams.closing import Closing

from ..conftest import Contexts
from .signals import signal_in_the_ring
from .waiting import cut_off

#: Seconds after which a call that does not end by itself is timed out: any number would do.
MOMENT = 0.05


class Blocking:
    """A blocking stream with an asynchronous one's methods."""

    def __init__(self, stream: blocking.TlsStream) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    async def do_handshake(self) -> None:
        self.stream.do_handshake()

    async def send_all(self, data: bytes) -> None:
        self.stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return self.stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        self.stream.send_eof()

    async def unwrap(self) -> tuple[Any, bytes]:
        transport_stream, trailing = self.stream.unwrap()
        return BlockingSocket(transport_stream), trailing

    async def aclose(self, *, shutdown_timeout: float | None = None) -> None:
        self.stream.close(shutdown_timeout=shutdown_timeout)

    async def __aenter__(self) -> Blocking:
        self.stream.__enter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.stream.__exit__(*exc_info)


class BlockingSocket:
    """The same for a SocketStream."""

    def __init__(self, stream: blocking.SocketStream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes) -> None:
        self.stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.stream.close()


AnyStream = Any  # a TlsStream or a Blocking
Story = Callable[["Face"], Awaitable[None]]


class Face(Protocol):
    """How a story is played. One object for one connection."""

    closing: Closing

    cue: threading.Event
    """Set by the story where the peer is to go on."""

    def __init__(self, sock: socket.socket, contexts: Contexts) -> None: ...

    def stream(self, **options: Any) -> AnyStream:
        """The stream over the socket, server-side unless options say something else."""

    async def interrupted(
        self, stream: AnyStream, function: Callable[[], Awaitable[object]]
    ) -> None:
        """Call a function that waits for the peer, interrupt it there and catch what comes out.

        Where it waits first is where it is interrupted: what should not be, goes before.
        """

    def play(self, story: Story) -> None:
        """Run the story, and what the face's end still does."""


def server(contexts: Contexts, options: dict[str, Any]) -> dict[str, Any]:
    return {"ssl_context": contexts.server, "server_side": True, **options}


class TrioFace:
    """ringtls.TlsStream; a cancellation interrupts."""

    def __init__(self, sock: socket.socket, contexts: Contexts) -> None:
        self._sockets = [sock]
        self._contexts = contexts
        self.cue = threading.Event()

    def stream(self, **options: Any) -> TlsStream:
        stream = TlsStream(SocketStream(self._sockets.pop()), **server(self._contexts, options))
        self.closing = stream._closing
        return stream

    async def interrupted(
        self, stream: AnyStream, function: Callable[[], Awaitable[object]]
    ) -> None:
        await cut_off(function)

    def play(self, story: Story) -> None:
        trio.run(story, self)


class BlockingFace:
    """ringtls.blocking.TlsStream; SIGINT interrupts."""

    def __init__(self, sock: socket.socket, contexts: Contexts) -> None:
        self._sockets = [sock]
        self._contexts = contexts
        self.cue = threading.Event()

    def stream(self, **options: Any) -> Blocking:
        transport_stream = blocking.SocketStream(self._sockets.pop())
        stream = blocking.TlsStream(transport_stream, **server(self._contexts, options))
        self.closing = stream._closing
        return Blocking(stream)

    async def interrupted(
        self, stream: AnyStream, function: Callable[[], Awaitable[object]]
    ) -> None:
        with signal_in_the_ring(), pytest.raises(KeyboardInterrupt):
            await function()

    def play(self, story: Story) -> None:
        async def to_the_end() -> None:
            await story(self)

        try:
            complete(to_the_end())
        finally:
            BlockingDriver.current().end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TimeoutFace(BlockingFace):
    """The same; the stream's timeout interrupts."""

    async def interrupted(
        self, stream: AnyStream, function: Callable[[], Awaitable[object]]
    ) -> None:
        stream.stream.timeout = MOMENT
        with pytest.raises(TimeoutError, match="timed out"):
            await function()
        stream.stream.timeout = None


FACES: list[type[Face]] = [TrioFace, BlockingFace, TimeoutFace]


__all__ = ["FACES", "AnyStream", "BlockingFace", "Face", "TimeoutFace", "TrioFace"]
