"""One connection: hypercorn's protocols over a stream.

Rules:

1. This is not hypercorn's TCPServer: that starts a task for each request which says when the
   connection is idle, keeps one that its client has ended until that time, and can't be told to end
   while its peer takes in nothing.
2. An application may cancel its own ``send``. What is given to a protocol has to go out whole all
   the same, or the next message would land inside of this one. So a send is shielded from the
   application; what cancels the connection itself cancels the watching task, and that the sends.
3. A connection says farewell however it ends (``Protocols.last_words``): with TLS by rule C22, and
   without it by the same terms.
4. What a client does ends no more than its own connection.
5. While a request waits for the answer to the one before it, what comes behind it is read ahead,
   as far as RECEIVE_SIZE: a client that is gone then is noticed.
6. An answer that only the end of the connection delimits, and that is not whole, is broken off by
   rule C21 instead: however that end comes, and without TLS too.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from .._streams.broken_off import break_off
from .._streams.socket import SocketStream
from .._streams.tls import TlsStream
from ._applications import Applications, tls_extension
from ._protocols import Protocols

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.events import Event
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import AppWrapper

    T = TypeVar("T")

__all__ = ["HypercornConnection"]

RECEIVE_SIZE = 65536

#: Seconds in which a client has to take in what was sent to it, before the end begins.
ROOM_TIMEOUT = 60.0


class _InputOverError(Exception):
    """There is nothing more to be received, or nobody for it."""


class HypercornConnection:
    """One connection, after its handshake: hypercorn's protocols over a stream."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: dict[str, Any],
        stream: SocketStream | TlsStream,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._state = state
        self._stream = stream
        self._protocol: Protocols
        self._is_idle = True
        self._is_over = False  # the protocol has nothing more to say
        self._receiving = trio.CancelScope()
        self._ahead = b""
        self._idling = trio.CancelScope()
        self._turn = trio.Lock()
        self._sends: set[trio.CancelScope] = set()
        self._is_cut = False
        self._is_torn = False  # some part of what a protocol had to say was sent, perhaps

    async def run(self) -> None:
        """Serve it until it ends. Where the client has not ended it first, its stream is closed. If
        this is cancelled, that is left to the caller, but for what rule 6 has broken off."""
        stream = self._stream
        tls = stream if isinstance(stream, TlsStream) else None
        sock = stream.transport_stream.socket if isinstance(stream, TlsStream) else stream.socket
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
        except OSError:  # it is gone
            return
        tasks = Applications(None if tls is None else tls_extension(tls))
        self._protocol = Protocols(
            self._read_ahead,
            self._app,
            self._config,
            self._context,
            tasks,
            ConnectionState(self._state),
            tls is not None,
            client,
            server,
            self._send,
            None if tls is None else tls.selected_alpn_protocol(),
        )
        if tls is not None:
            tls.farewell = self._last_words
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._watch)
                async with tasks:
                    await self._protocol.initiate()
                    self.note(is_idle=True)
                    await self._receive()
                    await self._protocol.handle(Closed())
                    if self._is_over or self._protocol.is_cut_short:
                        await self.wait_taken()
                        await self._end()
                watching.cancel_scope.cancel()
        finally:
            if self._protocol.is_cut_short:
                await self.break_off()
            elif isinstance(stream, SocketStream):
                self._say_farewell(stream.socket)

    async def _end(self) -> None:
        if self._protocol.is_cut_short:
            await self.break_off()
            return
        if isinstance(self._stream, SocketStream):
            self._say_farewell(self._stream.socket)
        await self._stream.aclose()

    async def wait_taken(self) -> None:
        """Wait until the client has taken in what was sent, or has had the time for it."""
        if isinstance(self._stream, TlsStream):
            with trio.move_on_after(ROOM_TIMEOUT), suppress(trio.BrokenResourceError):
                await self._stream.wait_acknowledged()

    async def break_off(self) -> None:
        """Rule 6."""
        await break_off(self._stream)

    def note(self, *, is_idle: bool) -> None:
        """No request is being served, or one is."""
        self._is_idle = is_idle
        if not is_idle:
            self._idling.deadline = math.inf
        elif self._context.terminated.is_set():
            self._idling.deadline = -math.inf
        else:
            self._idling.deadline = trio.current_time() + self._config.keep_alive_timeout

    async def _watch(self) -> None:
        try:
            with self._idling:
                await self._context.terminated.wait()
                self.note(is_idle=self._is_idle)
                await trio.sleep_forever()
            await self._end_soon()
        except trio.Cancelled:
            self._is_cut = True
            for scope in self._sends:
                scope.cancel()
            raise

    async def receive(self) -> bytes:
        """What comes next; b"" at the end. If this is cancelled, nothing is lost.

        Raises:
          trio.TooSlowError: nothing has come for ``config.read_timeout`` seconds.
          trio.BrokenResourceError, trio.ClosedResourceError: as of the stream's ``receive_some``.
        """
        with trio.fail_after(self._config.read_timeout or math.inf):
            return await self._stream.receive_some(RECEIVE_SIZE)

    async def _receive(self) -> None:
        """Pass on what comes, until an end of any kind."""
        with suppress(_InputOverError):
            await self._pass_on()

    async def _pass_on(self) -> None:
        while not self._is_over:
            data = self._ahead or await self._until_over(self.receive)
            self._ahead = b""
            if not data:
                await trio.lowlevel.checkpoint()  # an answer may just be ending
            await self._protocol.handle(RawData(data))
            if not data:
                return

    async def _read_ahead(self) -> None:
        """Rule 5: until this is cancelled, or raises _InputOverError."""
        while not self._is_over:
            if len(self._ahead) >= RECEIVE_SIZE:
                await self._until_over(trio.sleep_forever)
            data = await self._until_over(self.receive)
            if not data:
                break
            self._ahead += data
        raise _InputOverError

    async def _until_over(self, wait: Callable[[], Awaitable[T]]) -> T:
        with (
            suppress(trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError),
            trio.CancelScope() as self._receiving,
        ):
            return await wait()
        raise _InputOverError

    async def _end_soon(self) -> None:
        self._is_over = True
        self._receiving.cancel()
        await self._protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data:
                await self._send_data(event.data)
        elif isinstance(event, Updated):
            self.note(is_idle=event.idle)
        else:
            await self._end_soon()

    async def _send_data(self, data: bytes) -> None:
        """Rule 2."""
        with trio.CancelScope(shield=not self._is_cut) as scope:
            self._sends.add(scope)
            try:
                try:
                    self._turn.acquire_nowait()
                except trio.WouldBlock:
                    await self._turn.acquire()
                try:
                    self._is_torn = True
                    await self.send_all(data)
                    self._is_torn = False
                finally:
                    self._turn.release()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._end_soon()
            finally:
                self._sends.discard(scope)

    async def send_all(self, data: bytes) -> None:
        """Send what a protocol has to say: ``send_all`` of the stream."""
        await self._stream.send_all(data)

    def _last_words(self) -> bytes:
        """Rule 3."""
        return self._protocol.last_words()

    def _say_farewell(self, sock: socket.socket) -> None:
        """Rule 3, without TLS. Does not wait."""
        if not self._is_torn and (words := self._protocol.last_words()):
            with suppress(OSError):  # the client is gone, or takes nothing in
                sock.send(words, socket.MSG_DONTWAIT)
