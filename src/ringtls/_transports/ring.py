"""The transport of a connected socket on the ring.

Rules:

1. What TLS and relays read comes by one multishot receive. It is begun when input is first wanted,
   and goes on while nobody waits, until INPUT_LIMIT bytes have come that nobody has asked for. Then
   it is cancelled, so that TCP slows the peer.
2. What TLS and relays write goes to an outbox (csrc/outbox.c), which is opened with the first byte.
   When it breaks, those are woken who wait for input, too: an answer to what was not sent will not
   come (C18).
3. The kernel reports a reset once. If a send was told of it, input reads as ended, and has not
   (``reset_met``). So why sending broke is kept, also of a send that nobody waited for.
4. An end begins with a close request, by which the engine discards input (csrc/close.c) while the
   outbox, or a send that was started, still sends. FIN or a reset comes behind that, or a reset at
   the deadline. From then on the descriptor is the engine's to close. So the socket forgets it
   before: afterwards the number may be another's (C17).
5. If the ring fails, or the end of the run cancels the close request, the descriptor was not given
   away, and is reset and closed here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from .._clock import now
from .._engine.descriptors import (
    close_now,
    is_delivered,
    is_gone,
    reset_connection,
    unacknowledged,
)
from .._engine.handle import Handle
from .._engine.request import State, ignore
from .._errors import without_frames
from .base import (
    ACKNOWLEDGE_ONCE,
    DISCARD_LIMIT,
    INPUT_LIMIT,
    LARGEST_TRANSFER,
    RESET_AT_CLOSE,
    BaseTransport,
    acknowledgement_pauses,
    broken,
    reset_met,
)

if TYPE_CHECKING:
    from .._engine.request import Request, Sink
    from .._engine.ring import Ring
    from .._interfaces import Driver, OnClosed
    from .owned_socket import OwnedSocket

__all__ = ["RingTransport", "as_count"]

#: What undoes RESET_AT_CLOSE.
_LINGER_AS_USUAL = struct.pack("ii", 0, 0)


class RingTransport(BaseTransport):
    """A connected socket on a ring.

    The socket, which must be blocking, belongs to this object from now on.
    """

    __slots__ = (
        "_close_request",
        "_half_closes",
        "_handles",
        "_input",
        "_input_ended",
        "_last_send",
        "_outbox",
        "_output_ended",
        "_resets_if_killed",
        "_ring",
        "_send_limit",
        "_unread",
        "socket",
    )

    def __init__(self, driver: Driver, ring: Ring, sock: OwnedSocket) -> None:
        super().__init__(driver, _peer_name(sock))
        self._ring = ring
        self.socket = sock
        self._close_request: Request | None = None
        self._handles: set[Handle] = set()
        self._input: Request | None = None
        self._input_ended = False
        self._last_send: Request | None = None
        self._send_limit: Request | None = None
        self._unread = 0
        self._outbox: Request | None = None
        self._half_closes = False
        self._output_ended = False
        self._resets_if_killed = False

    # As the transport of a TLS stream

    async def receive(self) -> None:
        if self._input is None:
            self._start_input()
        self._unread = 0
        await self._arrived.wait()
        if self.closing or (self.input_error is not None and not self._unread):
            self._check_receivable()

    def expect_input(self) -> None:
        with suppress(OSError):  # the ring has failed, or memory is short: a receive will tell
            self.resume()

    def look(self) -> bool:
        if self._input is None and not self._input_ended and self.input_error is None:
            self._start_input()
        self.driver.look()
        return self._input_ended or self.input_error is not None

    async def detach(self) -> None:
        while self._input is not None:
            self._ring.cancel(self._input)
            await self._arrived.wait()
        self.check_open()
        if self.input_error is not None:
            raise broken(self.input_error)
        self._sink = ignore

    def acknowledge(self) -> None:
        with suppress(OSError):  # of a socket that is not TCP's
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, ACKNOWLEDGE_ONCE)

    def _start_input(self) -> None:
        self._check_receivable()
        self._input = self._ring.recv_multishot(
            self.socket.fileno(),
            sink=self._sink if self._passes_on else self._take_input,
            on_done=self._end_input,
        )
        self._input.on_failure = self.on_crash

    def _take_input(self, view: bytes | bytearray | memoryview) -> None:
        if self.closing:
            return
        self._sink(view)
        self._unread += len(view)
        if self._unread >= INPUT_LIMIT and self._input is not None:
            self._ring.cancel(self._input)
        self._arrived.wake()

    def _end_input(self, request: Request) -> None:
        self._input = None
        if not request.was_cancelled:
            self.input_error = request.error() or reset_met(self.error)
            if self.input_error is None:
                self._input_ended = True
                self._on_end()
        self._arrived.wake()

    # As a side of a relay

    def pass_on(
        self, sink: Sink, on_end: Callable[[], object], on_change: Callable[[], object]
    ) -> None:
        super().pass_on(sink, on_end, on_change)
        if self._input is not None:
            self._input.sink = sink

    def resume(self) -> None:
        if not (self._input or self._input_ended or self.input_error or self.closing):
            self._start_input()

    @property
    def is_receiving(self) -> bool:
        return self._input is not None

    def pause(self) -> None:
        if self._input is not None:
            self._ring.cancel(self._input)

    def receive_now(self, max_bytes: int) -> bytes:
        if self._input or self._input_ended or self.input_error or self.closing:
            return b""
        try:
            data = self.socket.recv(max_bytes, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.input_error = without_frames(error)
            return b""
        self.driver.tally.bytes_received += len(data)
        if not data:
            self.input_error = reset_met(self.error)
            if self.input_error is None:
                self._input_ended = True
                self._on_end()
        return data

    def half_close(self) -> None:
        self._half_closes = True
        self._send_fin_if_due()

    def _send_fin_if_due(self) -> None:
        if not (self._output_ended or self.error or self.closing or self.has_unsent(1)):
            with suppress(OSError):  # what is received will tell
                self.shut_output_down()

    def shut_output_down(self) -> None:
        """Send FIN. Receiving goes on.

        Raises:
          OSError: the connection is broken.
        """
        if not self._output_ended:
            self.socket.shutdown(socket.SHUT_WR)
            self._output_ended = True

    def _check_receivable(self) -> None:
        self.check_open()
        if self.input_error is not None:
            raise broken(self.input_error)
        if self._input_ended:
            raise trio.BrokenResourceError("the connection has ended")

    def enqueue(self, data: bytes | memoryview) -> None:
        if self.error is not None or self.closing:
            return
        try:
            if self._outbox is None:
                self._outbox = self._ring.outbox_open(
                    self.socket.fileno(), on_progress=self._progressed, on_done=self._end_outbox
                )
                self._outbox.on_failure = self.on_crash
            self.unsent = self._ring.outbox_write(self._outbox, data)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else ``_end_outbox`` is about to hear why
                self.error = without_frames(error)
                self._arrived.wake()

    def has_unsent(self, least: int) -> bool:
        if self.unsent >= least and self._outbox is not None:
            unsent = self._ring.outbox_notify_below(self._outbox, least)
            if unsent >= 0:  # else ``_end_outbox`` is about to hear why
                self.unsent = unsent
        return self.unsent >= least

    def unacknowledged(self) -> int:
        return unacknowledged(self.socket.fileno())

    def _progressed(self, unsent: int) -> None:
        self.unsent = unsent
        if self._half_closes:
            self._send_fin_if_due()
        self._progress.wake()

    def _end_outbox(self, request: Request) -> None:
        self._outbox = None
        self.unsent = 0
        self.error = self.error or request.error()
        self._wake_all()  # rule 2
        self._flushed(self.error)

    def hand_back(self) -> socket.socket:
        """The socket, which the ring uses no more. For callers that have detached, and waited
        until all was sent."""
        if self._outbox is not None:
            self._ring.outbox_shutdown(self._outbox, now())
            self._outbox = None
        sock = self.socket
        family, kind, proto = sock.family, sock.type, sock.proto
        return socket.socket(family, kind, proto, fileno=sock.take_descriptor())

    # As a stream of its own

    async def receive_bytes(self, max_bytes: int) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes; b"" at the end of input."""
        return self.as_input(await self._perform(self._ring.recv(self._fd(), max_bytes)))

    async def receive_into(self, memory: memoryview) -> int:
        """Receive into the caller's memory; returns how much, 0 at the end of input."""
        request = self._ring.recv_into(self._fd(), memory[:LARGEST_TRANSFER])
        del memory  # the traceback of an error must not keep it exported
        count = as_count(await self._perform(request))
        if not count:
            self._check_end()
        return count

    async def peek(self, max_bytes: int) -> bytes:
        """What ``receive_bytes`` would return; it stays unread."""
        while True:
            await self._perform(self._ring.poll_readable(self._fd()))
            try:
                data = self.socket.recv(max_bytes, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue  # readiness may be spurious: select(2), BUGS
            except OSError as error:  # the kernel reports it once
                self.input_error = without_frames(error)
                raise broken(error) from error
            if not data:
                self._check_end()
            return data

    async def send(self, data: memoryview) -> int:
        """Send from the caller's memory; returns how much went out."""
        return as_count(await self._perform(self.start_send(data)))

    async def wait_writable(self) -> None:
        """Wait until a send would not block."""
        await self._perform(self._ring.poll_writable(self._fd()))

    # What nobody waits for. An end cuts a receive off, and waits for a send (rule 4).

    def start_receive(self, max_bytes: int) -> Request:
        return self._ring.recv(self._fd(), max_bytes)

    def start_send(self, data: memoryview) -> Request:
        self._note_failed_send()
        self._last_send = self._ring.send(self._fd(), data[:LARGEST_TRANSFER])
        return self._last_send

    def _note_failed_send(self) -> None:
        send = self._last_send
        if self.error is None and send is not None and send.is_over and not send.was_cancelled:
            self.error = send.error()

    def as_input(self, result: int | bytes) -> bytes:
        """The result of a receive; at the end of input it is 0.

        Raises:
          trio.BrokenResourceError: that is no end.
        """
        if isinstance(result, bytes):
            return result
        self._check_end()
        return b""

    def _check_end(self) -> None:
        """Raise if what reads as an end is a reset (rule 3)."""
        self._note_failed_send()
        error = reset_met(self.error)
        if error is not None:
            raise broken(error)

    def check_error(self, error: OSError) -> None:
        """Raise what the stream makes of an operation's failure. Cancelling it is the caller's
        own affair."""
        self.check_open()
        if error.errno != errno.ECANCELED:
            raise broken(error) from error

    # Ending

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: OnClosed,
    ) -> None:
        self._accept_no_more(on_flushed)
        for handle in self._handles:
            if not handle.done:
                handle.cancel()
        try:
            self._start_close(deadline, on_closed)
        except OSError as error:  # the ring has failed
            self._flushed(error)
            on_closed(acknowledged=True)
            return
        send = self._last_send
        if send is not None and send.state is State.SUBMITTED:  # one that nobody has cancelled
            assert self.on_crash is not None
            send.watcher = (self._end_send, self.on_crash)
            self._limit_send(deadline)
        elif self._outbox is None or self._finish(self._outbox, deadline):
            self._flushed(self.error)

    def _end_send(self, send: Request) -> None:
        self._note_failed_send()
        self._flushed(self.error)
        if self._send_limit is not None:
            with suppress(OSError):  # the ring has failed
                self._ring.cancel(self._send_limit)

    def _limit_send(self, deadline: float) -> None:
        self._send_limit = self._ring.timer(
            deadline, on_done=partial(self._end_send_limit, deadline)
        )
        self._send_limit.on_failure = self.on_crash

    def _end_send_limit(self, deadline: float, timer: Request) -> None:
        self._send_limit = None
        if self._on_flushed is None:
            return
        if now() < deadline and timer.failure is None:  # the end of the run cancels timers
            self._limit_send(deadline)
        else:
            self.error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._flushed(self.error)

    def _start_close(self, deadline: float, on_closed: OnClosed) -> None:
        self._on_closed = on_closed
        self._close_request = self._ring.close_fd(
            self.socket.fileno(),
            discard_limit=DISCARD_LIMIT,
            deadline=deadline,
            on_done=self._closed,
        )
        self._close_request.on_failure = self.on_crash

    def _finish(self, outbox: Request, deadline: float) -> bool:
        try:
            return self._ring.outbox_shutdown(outbox, deadline)
        except OSError as error:
            self.error = without_frames(error)
            return True

    def _closed(self, request: Request) -> None:
        if request.failure is not None:
            self._flushed(request.error())
        if self.socket.fileno() >= 0:  # never given away (rule 5)
            with suppress(OSError):  # it is not connected any more
                reset_connection(self.socket.fileno())
            self.socket.close_descriptor()
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed(acknowledged=request.result <= 0)

    def await_delivery(self, deadline: float, on_delivered: Callable[[], object]) -> None:
        pauses = acknowledgement_pauses()

        def look(timer: Request | None = None) -> None:
            time = now()
            failed = timer is not None and timer.failure is not None
            if failed or time >= deadline or is_delivered(self.socket.fileno()):
                on_delivered()
                return
            again = self._ring.timer(min(time + next(pauses), deadline), on_done=look)
            again.on_failure = self.on_crash

        with suppress(OSError):  # no FIN follows, which would push the last bytes out: tcp(7)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        look()

    def is_gone(self) -> bool:
        return is_gone(self.socket.fileno())

    async def _sleep(self, seconds: float) -> None:
        """By the ring's clock: that of a run may stand still (trio.testing.MockClock)."""
        timer = self._ring.timer(now() + seconds)
        try:
            await self.driver.wait(Handle(self._ring, timer))
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise broken(error) from error

    def reset_if_killed(self) -> None:
        """Have the kernel reset the connection if this process is killed: it would send FIN, which
        without TLS is an end (SO_LINGER in socket(7))."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self._resets_if_killed = True

    def end_output(self) -> None:
        try:
            if self._resets_if_killed:  # from here on a close must not destroy what was sent
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AS_USUAL)
            self.shut_output_down()
        finally:
            self._release()

    def reset(self) -> None:
        try:
            reset_connection(self.socket.fileno())
        finally:
            self._release()

    def _release(self) -> None:
        fd = self.socket.take_descriptor()  # rule 4
        if self._close_request is None or not self._ring.release(self._close_request):
            close_now(fd)

    def break_off(self, on_closed: OnClosed) -> bool:
        self._accept_no_more(None)
        fd = self.socket.fileno()
        is_open = fd >= 0
        if is_open and self._close_request is None:
            self._close_request = self._ring.close_request_of(fd)
        request = self._close_request
        if is_open:
            with suppress(OSError):  # the ring has failed
                if request is None:
                    self._start_close(now(), on_closed)
                if self._outbox is not None:
                    self._ring.cancel(self._outbox)
            with suppress(OSError):  # it is not connected any more
                self.reset()
        elif request is not None:
            self._ring.release(request)  # an exception may have prevented that
        request = self._close_request
        if request is None or request.is_over:
            self._on_closed = None
            on_closed(acknowledged=True)
        return is_open

    # Helpers

    def _fd(self) -> int:
        self.check_open()
        return self.socket.fileno()

    async def _perform(self, request: Request) -> int | bytes:
        handle = Handle(self._ring, request)
        self._handles.add(handle)
        try:
            result = await self.driver.wait(handle)
        except OSError as error:
            self.check_open()
            raise broken(error) from error
        finally:
            self._handles.discard(handle)
        self.check_open()
        return result


def as_count(result: int | bytes) -> int:
    assert isinstance(result, int)
    return result


def _peer_name(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return f"fd {sock.fileno()}"
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return f"fd {sock.fileno()}"
