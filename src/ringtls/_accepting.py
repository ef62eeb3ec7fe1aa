"""Accepting connections for ever, through shortages.

Rules:

1. accept(2) fails with EMFILE and its like when the process or the machine has run out of
   descriptors or memory. That is no reason to stop a server: the connections wait in the
   listener's queue until there is room again.
2. While the shortage lasts, each acceptor fails ten times a second. One log record a second
   reports it, for all acceptors of the process together.
3. Every failure calls the server's hook that makes room, by closing idle connections.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

import trio

from ._clock import now
from ._log import log
from ._streams.acceptor import Acceptor
from ._streams.socket import SocketStream
from ._streams.socket_listener import SocketListener
from ._streams.tls_listener import TlsListener

__all__ = ["SHORTAGES", "SHORTAGE_PAUSE", "accept_by_callbacks", "accept_forever"]

#: What is said when there is no more to give (rule 1).
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

#: Seconds until an acceptor tries again.
SHORTAGE_PAUSE = 0.1

#: Seconds between two records; see rule 2.
RECORD_INTERVAL = 1.0

StreamT = TypeVar("StreamT")


async def accept_forever(
    accept: Callable[[], Awaitable[StreamT]], begin: Callable[[StreamT], object]
) -> NoReturn:
    """Pass each connection that ``accept`` returns to ``begin``.

    Raises:
      OSError: accepting failed for a reason that does not pass.
    """
    while True:
        try:
            stream = await accept()
        except OSError as error:
            await _wait_out(error)
        else:
            begin(stream)


async def _at_once() -> None:
    """There is room always."""


async def accept_by_callbacks(
    listener: SocketListener | TlsListener[SocketStream],
    begin: Callable[[Any], object],
    *,
    make_room: Callable[[], object] = lambda: None,
    has_room: Callable[[], bool] = lambda: True,
    until_there_is_room: Callable[[], Awaitable[None]] = _at_once,
) -> NoReturn:
    """Pass each connection to ``begin``, in a callback of the ring (_streams/acceptor.py).

    Args:
      make_room: see rule 3.
      has_room, until_there_is_room: whether another connection may be accepted.

    Raises:
      OSError: accepting failed for a reason that does not pass.
      trio.ClosedResourceError: the listener was closed.
    """
    if isinstance(listener, TlsListener):
        transport_listener = listener.transport_listener
        assert isinstance(transport_listener, SocketListener)
        encrypted = partial(_begin_encrypted, listener, begin)
        acceptor = partial(Acceptor, transport_listener, encrypted, has_room)
    else:
        acceptor = partial(Acceptor, listener, begin, has_room)
    while True:
        try:
            await acceptor().run(until_there_is_room)
        except OSError as error:
            await _wait_out(error, make_room)


def _begin_encrypted(
    listener: TlsListener[SocketStream], begin: Callable[[Any], object], stream: SocketStream
) -> None:
    try:
        encrypted = listener._encrypted(stream)
    except BaseException:
        stream.socket.close()  # which ends it in the background
        raise
    begin(encrypted)


async def _wait_out(error: OSError, make_room: Callable[[], object] = lambda: None) -> None:
    if error.errno not in SHORTAGES:
        raise error
    _records.write(error)
    make_room()
    await trio.sleep(SHORTAGE_PAUSE)


class _Records:
    """Rule 2."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def write(self, error: OSError) -> None:
        time = now()
        if time >= self._next_at:
            self._next_at = time + RECORD_INTERVAL
            log(logging.ERROR, "can't accept connections: %s. Trying again", error.strerror)


_records = _Records()
