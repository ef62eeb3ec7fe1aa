"""A socket whose descriptor belongs to a stream or a listener.

Rules:

1. Only this object and the ring know the descriptor's number: it was detached from the caller's
   object, as SSLContext.wrap_socket does it, or is a duplicate. So closing the caller's object
   can't free a number that the ring still uses.
2. ``close()``, from any thread, begins the owner's orderly end. Only the owner closes the
   descriptor: if it were closed while the ring has requests on it, a new connection could get the
   same number.
3. When the ring takes over the closing of the descriptor, this object forgets it at once.
4. O_NONBLOCK stays as it is. Streams are blocking, because io_uring answers EAGAIN on a
   non-blocking socket instead of waiting. A listener's flag may belong to other processes, too.

An object without an owner, as ``dup()`` makes it, is an ordinary socket. os.close() of the number
can't be noticed.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import trio

__all__ = ["OwnedSocket"]


class OwnedSocket(socket.socket):
    """For options and addresses; ``close()`` begins the end of what it belongs to."""

    __slots__ = ("_begin_end",)

    def __init__(
        self,
        family: int,
        type: int,  # noqa: A002
        proto: int,
        fileno: int | None = None,
    ) -> None:
        super().__init__(family, type, proto, fileno)
        self._begin_end: Callable[[], object] | None = None

    @classmethod
    def to_come(cls) -> OwnedSocket:
        """One without a descriptor: made first, it has the descriptor as soon as there is one."""
        sock = cls.__new__(cls)
        sock._begin_end = None
        return sock

    @classmethod
    def taken_from(cls, sock: socket.socket | trio.socket.SocketType) -> OwnedSocket:
        """The descriptor of the caller's object, which is detached from it; made blocking."""
        taken = cls.to_come()
        try:
            taken._adopt(sock, sock.fileno())
            sock.detach()
        except BaseException:
            if sock.fileno() >= 0:
                taken.take_descriptor()  # it stays the caller's
            raise
        taken.settimeout(None)
        return taken

    @classmethod
    def shared_with(cls, sock: socket.socket | trio.socket.SocketType) -> OwnedSocket:
        """A duplicate of the caller's descriptor; close-on-exec."""
        duplicate = cls.to_come()
        fds: list[int] = []
        try:
            fds.extend(map(os.dup, [sock.fileno()]))  # in one step of C: it is known, or not made
            duplicate._adopt(sock, fds[0])
        except BaseException:
            if fds and duplicate.fileno() < 0:
                os.close(fds[0])
            raise
        if os.get_blocking(duplicate.fileno()):
            duplicate.settimeout(None)
        return duplicate

    def _adopt(self, sock: socket.socket | trio.socket.SocketType, fd: int) -> None:
        # SOCK_NONBLOCK leaves the file's mode alone, also after socket.setdefaulttimeout().
        super().__init__(sock.family, sock.type | socket.SOCK_NONBLOCK, sock.proto, fd)

    @property
    def is_owned(self) -> bool:
        return self._begin_end is not None

    def give_to(self, begin_end: Callable[[], object]) -> None:
        """Have ``close()`` call this, until the descriptor is closed. It may be called in any
        thread."""
        self._begin_end = begin_end

    def take_descriptor(self) -> int:
        """Forget the descriptor, which the owner or the ring is to close (rule 3)."""
        self._begin_end = None
        return super().detach()

    def close_descriptor(self) -> None:
        """The owner's close: nothing uses the number any more."""
        self._begin_end = None
        super().close()

    # What others may call

    def close(self) -> None:
        """Begin the orderly end of the stream or listener that this belongs to. Does not wait.

        A TlsStream still sends what was accepted, close_notify and FIN.
        """
        if self._begin_end is None:
            super().close()
        else:
            self._begin_end()

    def detach(self) -> int:
        """Refused while a stream or listener has the descriptor."""
        if self.is_owned:
            self._refuse(
                "detach", "use dup() for a descriptor of your own, and close the stream or listener"
            )
        return super().detach()

    def setblocking(self, flag: bool) -> None:
        """See ``settimeout``."""
        self.settimeout(None if flag else 0.0)

    def settimeout(self, value: float | None) -> None:
        """Refused, if it would change anything, while a stream or listener has the descriptor."""
        if not self.is_owned:
            super().settimeout(value)
        elif value != self.gettimeout():
            self._refuse(
                "settimeout", "use trio.fail_after(), or the timeout of a ringtls.blocking stream"
            )

    def _refuse(self, name: str, remedy: str) -> NoReturn:
        raise io.UnsupportedOperation(f"{name} on a socket that belongs to ringtls: {remedy}")
