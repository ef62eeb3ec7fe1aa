"""Accepting connections by callbacks of the ring: no step of a task for each.

1. AT_ONCE accepts are in flight, so that as many connections can be taken in one tick. Each that
   has ended is followed by the next in the call that brings its connection, while there is room.
2. A connection is begun in the context (contextvars) of the task that accepts, as if it had been
   woken for it. What ``begin`` raises comes out of that task.
3. The task waits for room, for a failure, or for its cancellation. Then what is in flight is
   cancelled and its end awaited: a connection that was accepted in that moment is begun (rule H4).
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, final

from trio.lowlevel import enable_ki_protection

from .._transports.owned_socket import OwnedSocket
from .socket_listener import CONNECTION_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._engine.request import Request
    from .socket import SocketStream
    from .socket_listener import SocketListener

__all__ = ["Acceptor"]

#: See rule 1.
AT_ONCE = 8


@final
class Acceptor:
    """Accepts from a listener.

    Args:
      begin: called with each connection, inside of the ring; must not wait.
      has_room: whether another connection may be accepted.
    """

    __slots__ = (
        "_begin",
        "_context",
        "_failure",
        "_has_room",
        "_in_flight",
        "_is_over",
        "_listener",
        "_woken",
    )

    def __init__(
        self,
        listener: SocketListener,
        begin: Callable[[SocketStream], object],
        has_room: Callable[[], bool],
    ) -> None:
        self._listener = listener
        self._begin = begin
        self._has_room = has_room
        self._context = copy_context()
        self._in_flight: set[Request] = set()
        self._failure: BaseException | None = None
        self._is_over = False
        self._woken = listener._driver.wait_queue()

    @enable_ki_protection
    async def run(self, until_there_is_room: Callable[[], Awaitable[None]]) -> None:
        """Accept until something fails. If this is cancelled, all that was accepted was begun.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          OSError: among others EMFILE and ENFILE, when no file descriptor is left.
        """
        listening = self._listener._listening
        try:
            await self._accept(until_there_is_room)
        finally:
            self._is_over = True
            for request in list(self._in_flight):
                listening.ring.cancel(request)
            while self._in_flight:
                await self._woken.wait_uncancellable()
        listening.check()
        assert self._failure is not None
        raise self._failure

    async def _accept(self, until_there_is_room: Callable[[], Awaitable[None]]) -> None:
        while self._failure is None:
            await until_there_is_room()
            self._listener._listening.check()
            self._fill_up()
            if self._failure is None:  # else it failed while this waited for room
                await self._woken.wait()

    def _fill_up(self) -> None:
        listening = self._listener._listening
        while len(self._in_flight) < AT_ONCE and not self._is_over and self._has_room():
            sock = OwnedSocket.to_come()
            request = listening.ring.accept(
                listening.socket.fileno(), sock, on_done=partial(self._done, sock)
            )
            request.on_failure = partial(self._fail, request)
            self._in_flight.add(request)

    def _done(self, sock: OwnedSocket, request: Request) -> None:
        self._in_flight.discard(request)
        error = request.error()
        if error is None:
            self._context.run(self._begin, self._listener._accepted(sock))
        elif error.errno not in CONNECTION_ERRORS and not self._is_over:
            raise error
        self._fill_up()
        if len(self._in_flight) < AT_ONCE:
            self._woken.wake()

    def _fail(self, request: Request, failure: BaseException) -> None:
        self._in_flight.discard(request)
        self._failure = self._failure or failure
        self._is_over = True
        self._woken.wake()
