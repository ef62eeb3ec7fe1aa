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
from typing import NoReturn, TypeVar

import trio

from ._clock import now
from ._log import log

__all__ = ["ACCEPTORS", "SHORTAGES", "SHORTAGE_PAUSE", "accept_forever"]

#: Tasks that accept from each listener: so many connections can be taken in one tick.
ACCEPTORS = 8

#: What is said when there is no more to give (rule 1).
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

#: Seconds until an acceptor tries again.
SHORTAGE_PAUSE = 0.1

#: Seconds between two records; see rule 2.
RECORD_INTERVAL = 1.0

StreamT = TypeVar("StreamT")


async def accept_forever(
    accept: Callable[[], Awaitable[StreamT]],
    begin: Callable[[StreamT], object],
    make_room: Callable[[], object] = lambda: None,
) -> NoReturn:
    """One acceptor: pass each connection that ``accept`` returns to ``begin``.

    Raises:
      OSError: accepting failed for a reason that does not pass.
    """
    while True:
        try:
            stream = await accept()
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            _records.write(error)
            make_room()
            await trio.sleep(SHORTAGE_PAUSE)
        else:
            begin(stream)


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
