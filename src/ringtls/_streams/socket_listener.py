"""SocketListener: accepts connections by the ring.

A KeyboardInterrupt comes out where the task would wait: between making an operation and waiting
for it, it would lose the operation's result.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import enable_ki_protection

from .._clock import now
from .._drivers.trio import TrioDriver
from .._engine.descriptors import close_now
from .._engine.handle import Handle
from .._log import log
from .._transports.owned_socket import OwnedSocket
from .operation import Operation, check_run
from .socket import SocketStream, check_socket, set_nodelay
from .uncopyable import Uncopyable

if TYPE_CHECKING:
    from .._engine.request import Request
    from .._interfaces import Driver

__all__ = ["CONNECTION_ERRORS", "SocketListener"]

#: What accept(2) may answer because of one connection, and not of the listener (its man page
#: asks to treat these as "try again").
CONNECTION_ERRORS = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
    errno.ETIMEDOUT,
}


class _Listening:
    """What a listener has: a duplicate of the caller's socket, that the ring may use, and the
    caller's."""

    __slots__ = ("_callers", "_close_request", "driver", "ring", "socket")

    def __init__(self, driver: Driver, sock: socket.socket | trio.socket.SocketType) -> None:
        self.driver = driver
        self.ring = driver.ring  # if there is none, nothing has happened
        self._callers = sock
        self._close_request: Request | None = None
        self.socket = OwnedSocket.shared_with(sock)
        self.socket.give_to(self._stop_soon)

    @property
    def is_open(self) -> bool:
        return self.socket.fileno() >= 0 and self._callers.fileno() >= 0

    def check(self) -> None:
        """Raise ClosedResourceError if it was closed, by whatever way."""
        if not self.is_open:
            self.stop()
            raise trio.ClosedResourceError("this listener was closed")

    def stop(self) -> None:
        """Listen no more, whatever is raised meanwhile. The ring ends what it has in flight."""
        try:
            self._stop()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        with suppress(RuntimeError):  # a socket of trio, and the run is over
            self._callers.close()
        fd = self.socket.fileno()
        if not self.ring.is_usable:
            self.socket.close_descriptor()
        elif fd >= 0:
            request = self.ring.close_request_of(fd)  # of a call that an exception has ended
            request = request or self.ring.close_fd(fd, discard_limit=0, deadline=now())
            self._close_request = request
            self.socket.take_descriptor()  # before the ring may close it
            if not self.ring.release(request):
                close_now(fd)
        elif self._close_request is not None:
            self.ring.release(self._close_request)  # an exception may have prevented that

    def _stop_soon(self) -> None:
        """Somebody has closed the socket."""
        if self.ring.is_usable:
            with suppress(trio.RunFinishedError):
                self.driver.call_soon(self._stop_unawaited)
        else:  # the run has ended, or the ring has failed, or is the parent's
            self.stop()

    def _stop_unawaited(self) -> None:
        try:
            self.stop()
        except BaseException as failure:  # nobody would catch it: the run would end
            log(logging.ERROR, "closing a listener raised %r", failure, failure=failure)


@final
class SocketListener(Uncopyable, trio.abc.Listener[SocketStream]):
    """A listening socket whose connections are accepted by the ring.

    The caller may go on to use its own object, for addresses and options. As with
    trio.SocketListener, closing the listener closes that object, too; and once that object is
    closed the listener is, but notices it only at the next connection, or call. What is a matter
    of all processes that share the socket, as O_NONBLOCK, is left as it is.

    Args:
      sock: a listening stdlib or trio stream socket.

    Raises:
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left; the
        text says what to change.
      TypeError, ValueError: it is not a listening stream socket, or belongs to another listener.
      OSError: of errno EBADF: it is closed; EMFILE: no descriptor is left for a duplicate. In all
        these cases nothing has happened to the socket.
    """

    def __init__(self, sock: socket.socket | trio.socket.SocketType) -> None:
        check_socket(sock)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("SocketListener needs a listening socket")
        self._driver = TrioDriver.current()
        self._listening = _Listening(self._driver, sock)
        set_nodelay(self._listening.socket)  # what is accepted inherits it

    @property
    def socket(self) -> socket.socket:
        """A socket that listens where the caller's does, for options and addresses.

        ``close()`` on it closes the listener, in the background; see ``SocketStream.socket``.
        """
        return self._listening.socket

    @enable_ki_protection
    async def accept(self) -> SocketStream:
        """Accept one connection. Several tasks may do so at once.

        If this is cancelled, no connection was accepted.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          OSError: among others EMFILE and ENFILE, when no file descriptor is left.
        """
        listening = self._listening
        while True:
            listening.check()
            sock = OwnedSocket.to_come()
            request = listening.ring.accept(listening.socket.fileno(), sock)
            try:
                await self._driver.wait(Handle(listening.ring, request))
            except OSError as error:
                if error.errno in CONNECTION_ERRORS or not listening.is_open:
                    continue
                raise
            return self._accepted(sock)

    @enable_ki_protection
    def start_accept(self) -> Operation[SocketStream]:
        """Start to accept one connection, and return at once. Several may be started.

        Returns:
          An operation whose result is the connection. It may fail with an OSError that concerns
          only the connection, as accept(2) says; ``accept()`` passes over these.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          RuntimeError: called outside the trio run that made the listener.
        """
        check_run(self._driver)
        listening = self._listening
        listening.check()
        sock = OwnedSocket.to_come()
        return Operation(
            self._driver,
            listening.ring.accept(listening.socket.fileno(), sock),
            convert=lambda fd: self._accepted(sock),
            check=lambda error: listening.check(),
        )

    def _accepted(self, sock: OwnedSocket) -> SocketStream:
        try:
            self._listening.check()
            if sock.gettimeout() is not None:  # socket.setdefaulttimeout() was called
                sock.setblocking(True)
            return SocketStream._of_own(self._driver, sock)
        except BaseException:
            sock.close()
            raise

    @enable_ki_protection
    async def aclose(self) -> None:
        """Stop listening. Tasks in ``accept`` wake with trio.ClosedResourceError.

        The caller's own object is closed, too. A process that has a copy of it goes on listening.
        The listener is closed even if this is cancelled.
        """
        self._driver.check_caller()
        self._listening.stop()
        await trio.lowlevel.checkpoint()

    def __del__(self) -> None:
        if hasattr(self, "_listening"):
            self._listening.socket.close_descriptor()  # the caller's warns, if nobody has it
