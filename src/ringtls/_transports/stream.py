"""The transport over any trio stream, with the promises of the one on the ring.

For streams in memory, and for TLS in TLS.

Rules:

1. A trio stream whose ``send_all`` is cancelled does not say how much was sent. So only a system
   task of ours calls it, one call at a time, and only the end's deadline cancels that.
2. Input is received in the task that wants it. When sending has broken, that receive is cancelled
   and the task looks again, because the answer it waits for may be to something that was never
   sent (C18). Input that has come is kept. In a relay a system task of ours receives.
3. During the end, input is read and discarded, as the ring does: a peer that is blocked in a send
   would otherwise never read our last bytes. After FIN this goes on until the peer ends too, for
   at most LINGER seconds, because closing over unread input could destroy what was sent (C10).
4. The end includes that of the stream below. Once it is reported, nothing of ours touches the
   stream: its descriptor may get another owner at once. So a socket lingers in the background, on
   a duplicate of its descriptor, and the closer of any other stream waits.
5. The end is orderly once the stream has taken the FIN: when ``send_eof`` has returned or, on a
   stream that can't half-close, ``aclose``. Until then the last bytes may be in a buffer of its
   own. So an exception before that point decides the outcome, and one after it is only logged, and
   the stream is closed at once.
6. A stream may raise anything. In a system task an exception would crash the run, so it ends the
   connection by reset there, wakes all who wait, and is logged (C16). So does one of our own.
7. One task runs the end, from the closing's start until the stream is closed, and the deadline
   bounds its waits. So the end comes whatever an exception has left undone elsewhere. A task is
   noted after it was started and not before, and what was not sent for want of a task is sent then.
8. However late it is, what is unsent is tried once, as on the ring. A cancellation would meet a
   ``send_all`` in the checkpoint before its try. So it has the ticks first that a stream takes
   which need not wait, and then the deadline counts.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import trio

from .._clock import now
from .._log import log
from .._task import Task
from .base import (
    ACKNOWLEDGE_ONCE,
    RECEIVE_SIZE,
    BaseTransport,
    acknowledgement_pauses,
    broken,
    reset_met,
)
from .carriers import carrier_of, streams_below

if TYPE_CHECKING:
    from .._interfaces import OnClosed, TaskDriver

__all__ = ["StreamTransport"]

#: Seconds after our FIN in which input is thrown away, if the deadline is not nearer.
LINGER = 1.0

#: Seconds that FIN and the stream's own end have, however late it is: trio's streams do not wait
#: there, but check for cancellation.
LEAST = 0.1

#: Ticks of the run in which a stream that need not wait has taken what it is given: trio's take
#: two or three, and what is built of several a few more (rule 8).
TICKS_OF_A_TRY = 10

#: What a stream may raise because of its connection.
_CONNECTION_ERRORS = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    OSError,
)


class StreamTransport(BaseTransport):
    """A trio stream as the transport of TLS (Transport of _interfaces)."""

    has_stream_below: ClassVar[bool] = True

    driver: TaskDriver

    def __init__(self, driver: TaskDriver, stream: trio.abc.Stream) -> None:
        super().__init__(driver, repr(stream))
        self._stream = stream
        carriers = map(carrier_of, streams_below(stream))
        self._carriers = [carrier for carrier in carriers if carrier is not None]
        self._queue: deque[bytes | memoryview] = deque()
        self._input_ended = trio.Event()
        self._receiving: trio.CancelScope | None = None
        self._discarding: trio.CancelScope | None = None
        self._sending: trio.CancelScope | None = None
        self._lingering: trio.socket.SocketType | None = None  # on a descriptor of our own (rule 4)
        self._deadline = 0.0
        self._is_wanted = False  # input, by a relay
        self._is_passing_on = False  # a task does so
        self._half_closes = False
        self._on_delivered: Callable[[], object] | None = None
        self._ends = False  # the task of the end was started
        self._last_step: Callable[[], Awaitable[None]] | None = None  # of the end, once decided

    # Data

    async def receive(self) -> None:
        self.check_open()
        if self.input_error is not None:
            raise broken(self.input_error)
        if self._receiving is not None:
            await self._arrived.wait()
        else:
            await self._receive()
        self.check_open()
        if self.input_error is not None:
            raise broken(self.input_error)

    async def _receive(self) -> None:
        scope = trio.CancelScope()
        try:
            self._receiving = scope
            with scope:
                try:
                    data = await self._stream.receive_some()
                except _CONNECTION_ERRORS as error:
                    self.input_error = _as_os_error(error)
                else:
                    if not data and self._sending is not None:
                        await _let_sender_raise()
                    self._take_input(data)
        finally:
            self._receiving = None
            self._arrived.wake()

    def _take_input(self, data: bytes | bytearray) -> None:
        self.driver.tally.bytes_received += len(data)
        if data:
            try:
                self._sink(data)
            except BaseException as error:  # there is a gap in the input now
                self.input_error = _as_os_error(error)
                raise
        else:
            self._input_ended.set()
            self.input_error = reset_met(self.error)
            if self.input_error is None:
                self._on_end()

    # As a side of a relay

    def resume(self) -> None:
        self._is_wanted = True
        if not self._is_passing_on and self._may_receive:
            self._is_passing_on = self._start(self._pass_input_on, self._fail_passing_on)

    @property
    def is_receiving(self) -> bool:
        return self._is_wanted and self._is_passing_on and self._may_receive

    def pause(self) -> None:
        self._is_wanted = False

    def receive_now(self, max_bytes: int) -> bytes:
        return b""  # a trio stream can't be asked without waiting

    def half_close(self) -> None:
        self._half_closes = True
        self._keep_sending()

    @property
    def _may_receive(self) -> bool:
        return not (self.closing or self.input_error or self._input_ended.is_set())

    def look(self) -> bool:
        return self.input_error is not None

    async def detach(self) -> None:
        self.check_open()

    def acknowledge(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            with suppress(OSError):  # of a socket that is not TCP's
                self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, ACKNOWLEDGE_ONCE)

    def enqueue(self, data: bytes | memoryview) -> None:
        if not data or self.error is not None or self.closing:
            return
        self.driver.check_caller()
        self._queue.append(data)
        self.unsent += len(data)
        self._keep_sending()

    def _keep_sending(self) -> None:
        has_work = self._queue or (self._half_closes and not self.closing)
        if has_work and self._sending is None:
            scope = trio.CancelScope()
            if self._start(partial(self._send_queued, scope), self._fail_sending):
                self._sending = scope

    # The end

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: OnClosed,
    ) -> None:
        self._deadline = deadline
        self._on_closed = on_closed
        self._accept_no_more(on_flushed)
        self._start_end()

    def await_delivery(self, deadline: float, on_delivered: Callable[[], object]) -> None:
        if self.closing:
            self._on_delivered = on_delivered  # rule 7
        else:
            self._start(partial(self._tell_of_delivery, deadline, on_delivered), self._crash)

    async def _tell_of_delivery(self, deadline: float, on_delivered: Callable[[], object]) -> None:
        await self._deliver(deadline)
        on_delivered()

    def break_off(self, on_closed: OnClosed) -> bool:
        self._accept_no_more(None)
        if self._last_step is not None:
            if self._on_closed is None:
                on_closed(acknowledged=True)
            return False
        self._on_closed = on_closed
        self.reset()
        if not self._ends:
            self._start_end()
        return True

    def end_output(self) -> None:
        self._decide(self._end_in_order)

    def reset(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._decide(self._break_off)

    def _decide(self, last_step: Callable[[], Awaitable[None]]) -> None:
        self._last_step = last_step
        self._progress.wake()

    def _start_end(self) -> None:
        self._start(self._end, self._end_later)
        self._ends = True

    def _end_later(self, error: BaseException) -> None:
        """There was no task to end the stream in, or it did not get as far as that."""
        self._start(partial(self._break_off, error), self._report_closed)

    # The system tasks (rule 6)

    def _start(
        self, work: Callable[[], Awaitable[None]], fail: Callable[[BaseException], object]
    ) -> bool:
        """Run ``work`` in a task; ``fail`` hears of what it raises. False if there is no task, and
        ``fail`` has heard why."""
        return Task(work, fail).start(self.driver.start_task)

    async def _send_queued(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                if not self._queue:
                    break
                data = b"".join(self._queue)
                self._queue.clear()
                await self._stream.send_all(data)
                self.unsent -= len(data)
                self.driver.tally.bytes_sent += len(data)
                self._progress.wake()
            if self._half_closes and isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
        if scope.cancelled_caught:
            raise trio.TooSlowError
        self._sending = None
        self._progress.wake()

    def _fail_sending(self, error: BaseException) -> None:
        """Wake all who wait; rule 2."""
        self._sending = None
        self.error = _as_os_error(error)
        self._queue.clear()
        self.unsent = 0
        self._wake_all()
        if self._receiving is not None:
            self._receiving.cancel()
        if not isinstance(error, _CONNECTION_ERRORS):
            self._log(error)
            if self._passes_on:  # nobody is told who would close it
                self._crash(error)

    async def _pass_input_on(self) -> None:
        while self._is_wanted and self._may_receive:
            await self._receive()
        self._is_passing_on = False

    def _fail_passing_on(self, error: BaseException) -> None:
        self._is_passing_on = False
        self.input_error = _as_os_error(error)
        self._log(error)
        self._arrived.wake()

    async def _end(self) -> None:
        """Rules 3, 5 and 7."""
        try:
            self._start_discarding()
            await self._flush()
            self._flushed(self.error)
            if self._on_delivered is not None:
                on_delivered, self._on_delivered = self._on_delivered, None
                await self._deliver(self._deadline)
                on_delivered()
        except BaseException as error:
            _raise_if_left(error)
            self._crash(error)
        try:
            await (self._last_step or self._break_off)()
        except BaseException as error:
            _raise_if_left(error)
            await self._break_off(error)

    async def _flush(self) -> None:
        """Return when all is sent, when it can't be, and when that is of no use any more.

        Rule 8.
        """
        self._keep_sending()
        for _ in range(TICKS_OF_A_TRY):
            if self._is_flushed:
                return
            await trio.lowlevel.cancel_shielded_checkpoint()
        with self.driver.move_on_at(self._deadline) as scope:
            while True:
                if self._is_flushed:
                    break
                await self._progress.wait()
        if scope.cancelled_caught:
            self.error = _as_os_error(trio.TooSlowError())
            if self._sending is not None:
                self._sending.cancel()

    @property
    def _is_flushed(self) -> bool:
        return self._last_step is not None or not (self.unsent or self._sending)

    def unacknowledged(self) -> int:
        return sum(carrier.unacknowledged() for carrier in self._carriers)

    def is_gone(self) -> bool:
        return any(carrier.is_gone() for carrier in self._carriers)

    async def _sleep(self, seconds: float) -> None:
        with self.driver.move_on_at(now() + seconds):
            await trio.sleep_forever()

    async def _deliver(self, deadline: float) -> None:
        """Return when the peer's TCP, if there is one, has all that was sent, or it is too late."""
        pauses = acknowledgement_pauses()
        with self.driver.move_on_at(deadline):
            while True:
                if self._last_step is not None:
                    return
                if self.is_gone() or not self.unacknowledged():
                    return
                await self._sleep(next(pauses))

    def _start_discarding(self) -> None:
        scope = trio.CancelScope()
        if self._start(partial(self._discard_input, scope), self._fail_discarding):
            self._discarding = scope

    async def _discard_input(self, scope: trio.CancelScope) -> None:
        """Rule 3."""
        with scope:
            while True:
                if self._receiving is None:
                    break
                self._receiving.cancel()
                await self._arrived.wait()
            await _read_to_end(self._stream.receive_some)
        self._end_discarding(is_all=not scope.cancelled_caught)

    def _fail_discarding(self, error: BaseException) -> None:
        """Whatever it is: no more input comes."""
        if not isinstance(error, _CONNECTION_ERRORS):
            self._log(error)
        self._end_discarding(is_all=True)

    def _end_discarding(self, *, is_all: bool) -> None:
        self._discarding = None
        if is_all:
            self._input_ended.set()
        self._arrived.wake()

    async def _end_in_order(self) -> None:
        end = max(self._deadline, now() + LEAST)
        if isinstance(self._stream, trio.SocketStream) and not self._input_ended.is_set():
            with suppress(OSError):  # no descriptor is left
                self._lingering = self._stream.socket.dup()
        await self._finish(end, lingers=self._lingering is None)
        self._report_closed(None)
        if self._lingering is not None:
            await self._linger(self._lingering, end)

    async def _finish(self, end: float, *, lingers: bool) -> None:
        """FIN, and the end of the stream.

        Raises what the stream raises before it has taken FIN (rule 5).
        """
        has_taken_fin = isinstance(self._stream, trio.abc.HalfCloseableStream)
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._until(end, self._stream.send_eof)
        if lingers and _may_reset(self._stream):
            time = now()
            with self.driver.move_on_at(min(time + LINGER, (time + end) / 2)):
                await self._input_ended.wait()
        try:
            await self._let_go(end)
            await self._until(end, self._stream.aclose)
        except BaseException as error:
            _raise_if_left(error)
            if not has_taken_fin:
                raise
            self._log(error)
            await self._close_at_once()

    async def _break_off(self, why: BaseException | None = None) -> None:
        """Close the stream in a way that can't be mistaken for an end, where it is known how."""
        try:
            for carrier in self._carriers:
                carrier.reset()
            if self._lingering is not None:
                self._lingering.close()
        except BaseException as error:
            _raise_if_left(error)
            self._log(error)
        await self._close_at_once()
        self._report_closed(why)

    async def _close_at_once(self) -> None:
        """Once more if something is raised in here: a task that was not told would go on."""
        for _ in range(2):
            try:
                await self._let_go(now() + LEAST)
                await trio.aclose_forcefully(self._stream)
                return
            except BaseException as error:
                _raise_if_left(error)
                self._log(error)

    async def _linger(self, sock: trio.socket.SocketType, end: float) -> None:
        """Throw away what still comes, until the peer ends."""
        try:
            with suppress(OSError), self.driver.move_on_at(min(end, now() + LINGER)):
                await _read_to_end(partial(sock.recv, RECEIVE_SIZE))
        finally:
            sock.close()

    async def _let_go(self, end: float) -> None:
        """Have no task of ours use the stream."""
        if self._discarding is not None:
            self._discarding.cancel()
        with self.driver.move_on_at(end):
            while True:
                if not (self._discarding or self._receiving or self._sending):
                    break
                await self._arrived.wait()

    # Helpers

    def check_open(self) -> None:
        self.driver.check_caller()
        super().check_open()

    async def _until(self, end: float, step: Callable[[], Awaitable[None]]) -> None:
        """
        Raises:
          trio.TooSlowError: it had not returned by then.
        """
        with self.driver.move_on_at(end) as scope:
            await step()
        if scope.cancelled_caught:
            raise trio.TooSlowError

    def _report_closed(self, error: BaseException | None) -> None:
        if self._on_closed is None:
            return
        if error is not None:
            self._log(error)
        try:
            self._on_closed(acknowledged=True, error=None if error is None else _as_os_error(error))
            self._on_closed = None
        except BaseException as failure:
            self._on_closed = None
            self._crash(failure)
        finally:
            self.driver.wake()

    def _crash(self, failure: BaseException) -> None:
        if self.on_crash is not None:
            self.on_crash(failure)

    def _log(self, error: BaseException) -> None:
        if isinstance(error, _CONNECTION_ERRORS):
            log(logging.INFO, "the stream below TLS failed at its end: %s: %r", self.name, error)
        else:
            log(logging.ERROR, "the stream below TLS raised: %s", self.name, failure=error)


async def _read_to_end(receive: Callable[[], Awaitable[object]]) -> None:
    while await receive():
        await trio.lowlevel.checkpoint()


async def _let_sender_raise() -> None:
    """Return when a send that has met a reset has said so.

    The kernel reports a reset once. If a send meets it, a receive reads that as the end. trio's
    sockets pass a checkpoint before they raise, so the receive may return first. It has returned
    in that tick or the next, and this takes two.
    """
    for _ in range(2):
        await trio.lowlevel.cancel_shielded_checkpoint()


def _raise_if_left(error: BaseException) -> None:
    """An exception in the frame around has left this coroutine, and the task with it: nothing may
    be awaited here any more. ``Task`` tells. (Without a task, the run has crashed.)"""
    if isinstance(error, GeneratorExit) and trio.lowlevel.in_trio_task():
        raise error


def _may_reset(stream: trio.abc.AsyncResource) -> bool:
    """True if closing over unread input may destroy what was sent, as it does with a socket.

    Of trio's own streams that is so where a socket is below; of others it is not known.
    """
    if isinstance(stream, trio.StapledStream):
        return _may_reset(stream.send_stream) or _may_reset(stream.receive_stream)
    is_trios_own = type(stream).__module__.partition(".")[0] == "trio"
    return not is_trios_own or isinstance(stream, trio.SocketStream | trio.SSLStream)


def _as_os_error(error: BaseException) -> OSError:
    """What TLS is told of an error of the stream below."""
    if isinstance(error, OSError):
        return error
    if isinstance(error.__cause__, OSError):
        return error.__cause__
    if isinstance(error, trio.TooSlowError):
        return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    described = OSError(errno.EPIPE, str(error) or type(error).__name__)
    described.__cause__ = error
    return described
