"""The transport over any trio stream, with the promises of the one on the ring.

For streams in memory, for TLS in TLS, and for machines where io_uring is forbidden.

Rules:

1. A trio stream's ``send_all`` that is cancelled loses track of what was sent. So only a system
   task of our own calls it, one at a time, and nothing but the end's deadline cancels it.
2. At the end input is read and thrown away, as the ring does it: a peer that is blocked in a
   send would else never read our last bytes. After FIN that goes on for a moment.
3. What the stream below does at its own end is its own affair. It is waited for until the
   deadline. Whatever it raises to the tasks of this module means that it is broken.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from .base import BaseTransport, broken, reset_met

if TYPE_CHECKING:
    from .._interfaces import OnClosed, TaskDriver

__all__ = ["StreamTransport"]

#: Seconds after our FIN in which input is thrown away, if the deadline is not nearer.
LINGER = 1.0

#: What a stream may raise because of its connection.
_CONNECTION_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

#: struct linger for SO_LINGER: close(2) resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class StreamTransport(BaseTransport):
    """A trio stream as the transport of TLS (Transport of _interfaces)."""

    driver: TaskDriver

    def __init__(self, driver: TaskDriver, stream: trio.abc.Stream) -> None:
        super().__init__(driver, repr(stream))
        self._stream = stream
        self._queue: deque[bytes] = deque()
        self._input_ended = trio.Event()
        self._receiving: trio.CancelScope | None = None
        self._sending: trio.CancelScope | None = None
        self._deadline = 0.0

    # Data

    async def receive(self) -> None:
        self.check_open()
        if self._input_error is not None:
            raise broken(self._input_error)
        if self._receiving is not None:
            await self._arrived.wait()
        else:
            await self._receive()
        self.check_open()
        if self._input_error is not None:
            raise broken(self._input_error)

    async def _receive(self) -> None:
        with trio.CancelScope() as self._receiving:
            try:
                data = await self._stream.receive_some()
            except _CONNECTION_ERRORS as error:
                self._input_error = _as_os_error(error)
            else:
                self.driver.tally.bytes_received += len(data)
                if data:
                    self._sink(data)
                else:
                    self._input_error = reset_met(self.error)
                    if self._input_error is None:
                        self._on_end()
            finally:
                self._receiving = None
                self._arrived.wake()
                if self.closing:
                    self.driver.start_task(self._discard_input)

    async def detach(self) -> None:
        self.check_open()

    def enqueue(self, data: bytes) -> None:
        if not data or self.error is not None:
            return
        self.driver.check_caller()
        self._queue.append(data)
        self.unsent += len(data)
        if self._sending is None:
            self._sending = trio.CancelScope(shield=True)
            self.driver.start_task(self._send_queued)

    # The end

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: OnClosed,
    ) -> None:
        self.closing = True
        self._deadline = deadline
        self._on_flushed = on_flushed
        self._on_closed = on_closed
        self._wake_all()
        if self._receiving is not None:
            self._receiving.cancel()
        else:
            self.driver.start_task(self._discard_input)
        if self._sending is not None:
            self._sending.deadline = self._time_of(deadline)
        else:
            self._report_flushed()

    def end_output(self) -> None:
        self.driver.start_task(self._close)

    def await_delivery(self, deadline: float, on_delivered: Callable[[], object]) -> None:
        on_delivered()

    async def wait_acknowledged(self) -> None:
        await self.wait_sent(below=1)

    def break_off(self, on_closed: OnClosed) -> bool:
        self.closing = True
        self._on_flushed = None
        self._on_closed = on_closed
        self._wake_all()
        self.reset()
        return True

    def reset(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self.driver.start_task(self._abandon)

    # The system tasks

    async def _send_queued(self) -> None:
        assert self._sending is not None
        with self._sending:
            try:
                while self._queue:
                    data = b"".join(self._queue)
                    self._queue.clear()
                    await self._stream.send_all(data)
                    self.unsent -= len(data)
                    self.driver.tally.bytes_sent += len(data)
                    self._progress.wake()
            except Exception as error:  # whatever it is, the end must not wait for it
                self._break(_as_os_error(error))
        if self._sending.cancelled_caught:
            self._break(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        self._sending = None
        self._report_flushed()

    async def _discard_input(self) -> None:
        with (
            trio.CancelScope(shield=True, deadline=self._time_of(self._deadline)),
            suppress(Exception),
        ):
            while await self._stream.receive_some():
                await trio.lowlevel.cancel_shielded_checkpoint()
        self._input_ended.set()

    async def _close(self) -> None:
        end = self._time_of(self._deadline)
        linger = min(end, trio.current_time() + LINGER)
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with trio.CancelScope(shield=True, deadline=linger), suppress(Exception):
                await self._stream.send_eof()
                await self._input_ended.wait()
        with trio.CancelScope(shield=True, deadline=end), suppress(Exception):
            await self._stream.aclose()
        self._report_closed()

    async def _abandon(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            with suppress(OSError):
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        with trio.CancelScope(shield=True), suppress(Exception):
            await trio.aclose_forcefully(self._stream)
        self._report_closed()

    # Helpers

    def check_open(self) -> None:
        self.driver.check_caller()
        super().check_open()

    def _time_of(self, deadline: float) -> float:
        """A time of time.monotonic() as one of the run's clock."""
        return trio.current_time() + deadline - time.monotonic()

    def _break(self, error: OSError) -> None:
        self.error = error
        self._queue.clear()
        self.unsent = 0
        self._progress.wake()

    def _report_flushed(self) -> None:
        if self._on_flushed is not None and not self.unsent:
            on_flushed, self._on_flushed = self._on_flushed, None
            on_flushed(self.error)

    def _report_closed(self) -> None:
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed(acknowledged=True)
        self.driver.wake()


def _as_os_error(error: BaseException) -> OSError:
    """What TLS is told of an error of the stream below."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__cause__, OSError):
        return error.__cause__
    described = OSError(errno.EPIPE, str(error) or type(error).__name__)
    described.__cause__ = error
    return described
