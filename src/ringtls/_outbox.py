"""What a stream has accepted for sending and the kernel has not: bytes, in order.

Rules:

1. Adding never blocks. Who adds must look at ``pending`` and hold back.
2. At most one send is in flight. When it ends, what has gathered meanwhile goes as one send.
3. A send that ends short goes on where it ended: a TLS record is never torn.
4. Nothing a task does, or has done to it, takes bytes out again.
5. After ``finish`` every send has the deadline, and there is at least one try. The callback
   comes once: when all is sent, or the connection broke, or the deadline passed.
6. Nothing here raises for what becomes of the connection, or of the ring: it is kept in
   ``error``.

This module knows no event loop.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._operation import Request
    from ._ring import Ring
    from ._statistics import Tally

__all__ = ["Outbox"]


class Outbox:
    """The outgoing bytes of one socket.

    Args:
      tally: where the bytes that went out are counted.
      on_progress: called whenever ``pending`` has shrunk or ``error`` was set.
    """

    __slots__ = (
        "_deadline",
        "_deadline_applies",
        "_fd",
        "_on_finished",
        "_on_progress",
        "_queue",
        "_request",
        "_ring",
        "_sending",
        "_tally",
        "error",
        "pending",
    )

    def __init__(
        self, ring: Ring, fd: int, tally: Tally, on_progress: Callable[[], object]
    ) -> None:
        self._ring = ring
        self._tally = tally
        self._fd = fd
        self._on_progress = on_progress
        self._queue: deque[bytes] = deque()
        self._sending = memoryview(b"")
        self._request: Request | None = None
        self._deadline: float | None = None
        self._deadline_applies = False  # to the send in flight
        self._on_finished: Callable[[OSError | None], object] | None = None
        self.pending = 0
        self.error: OSError | None = None

    def add(self, data: bytes) -> None:
        """Accept bytes. They are dropped if the connection is broken already."""
        if not data or self.error is not None:
            return
        self._queue.append(data)
        self.pending += len(data)
        if self._request is None:
            self._send()

    def finish(self, deadline: float, on_finished: Callable[[OSError | None], object]) -> None:
        """Send what is left until ``deadline`` (``time.monotonic()``), then report."""
        self._deadline = deadline
        self._on_finished = on_finished
        if self._request is not None:
            self._ring.cancel(self._request)  # to be sent anew, with the deadline
        else:
            self._report_if_finished()

    def _send(self) -> None:
        if not self._sending:
            data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
            self._queue.clear()
            self._sending = memoryview(data)
        self._deadline_applies = self._deadline is not None
        try:
            self._request = self._ring.send(
                self._fd, self._sending, deadline=self._deadline, on_done=self._sent
            )
        except OSError as error:
            self._break(error)

    def _sent(self, request: Request) -> None:
        self._request = None
        if request.result >= 0:
            self._sending = self._sending[request.result :]
            self.pending -= request.result
            self._tally.bytes_sent += request.result
        elif request.result != -errno.ECANCELED or self._deadline is None:
            self._break(request.error())
        if self.pending and self._is_expired():
            self._break(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        if self.pending:
            self._send()
        self._on_progress()
        self._report_if_finished()

    def _is_expired(self) -> bool:
        return (
            self._deadline_applies
            and self._deadline is not None
            and time.monotonic() >= self._deadline
        )

    def _break(self, error: OSError | None) -> None:
        self.error = error
        self._queue.clear()
        self._sending = memoryview(b"")
        self.pending = 0

    def _report_if_finished(self) -> None:
        if self._on_finished is not None and not self.pending:
            on_finished, self._on_finished = self._on_finished, None
            on_finished(self.error)
