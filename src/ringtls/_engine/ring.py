"""The ring: submits requests, owns them while the kernel has them, and hands out their results.

Its methods make requests, which are collected. ``submit`` hands all of them to the kernel in one
system call; ``reap`` takes the completions that have come since, and calls the callbacks. On
io_uring these are two queues in memory that the kernel shares. On epoll the engine (csrc/) makes
the system calls, and everything here means the same.

Rules:

1. The ring's table owns every request in flight, and the request owns its buffer. Nothing
   else needs to keep either alive. A request is in the table before the engine hears of it, so
   that an exception in between (a KeyboardInterrupt comes anywhere) leaves nothing unowned.
2. One thread uses a ring. From any other thread, and from a garbage collector's finalizer,
   only ``abandon`` and ``wake`` may be called.
3. The kernel hears of nothing before ``submit``, and nothing comes back before ``reap``. One
   exception: a large write to an outbox is sent at once, as far as the socket takes it
   (csrc/outbox.c).
4. A receive without a buffer of its own gets one of the pool, which all requests share. What came
   is passed to the request's sink within ``reap``, and then the buffer goes back. ``submit`` and
   ``reap`` give buffers back, so a callback of ``reap`` may make requests, but call neither.
5. If the ring itself fails, every request in flight ends with that failure. Its buffers stay
   owned, because the kernel may still have them.
6. A ring whose requests do not all end is never freed: the kernel may write to their buffers as
   long as the process lives. If that is because it has failed, its descriptors are closed all the
   same; unless the engine itself failed, since then its number may be another file's by now.
7. After a fork the ring is the parent's. The child's copy refuses every call.
8. A buffer is pinned by a memoryview from which no other is made, and what cffi makes of a
   caller's lasts no longer than the call into the engine: no variable keeps it, since a traceback
   would. Python before 3.12.7 crashes when it collects a memoryview that still has exports
   (https://github.com/python/cpython/issues/77894).

This module knows no event loop.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any, NoReturn

from .._clock import now
from .._errors import RingFailedError, wrong_caller
from .._log import log
from .address import Address, packed
from .choice import Engine, forced
from .eventfd import open_eventfd
from .extension import ffi as _ffi
from .extension import lib as _lib
from .opening import open_engine
from .request import Event, Opcode, Request, Sink, State, ignore

if TYPE_CHECKING:
    import socket
    from io import FileIO

    from typing_extensions import Buffer

__all__ = ["Ring", "RingCounters"]

_from_buffer = _ffi.from_buffer
_outbox_write = _lib.rtl_outbox_write
OVER: int = _lib.RTL_OVER

#: Each io_uring_enter(2) also runs waiting work, which takes buffers out of the pool: so there
#: should be few in a tick.
SQ_ENTRIES = 1024
BUFFERS = 64
BUFFER_SIZE = 65536
REAP_EVENTS = 256

#: Bytes up to which an outbox takes a copy (csrc/outbox.c, rule 3).
LARGEST_COPY = 4096

#: Seconds that the engine waits at most in one call.
_LONGEST_WAIT = 3600.0

#: Seconds after the machine's start that no deadline is later than: more than a century.
_LATEST_DEADLINE = 4e9

OnDone = Callable[[Request], object]


@dataclass(frozen=True, slots=True)
class RingCounters:
    """What the engine counted since the ring was made (csrc/engine.h)."""

    submitted: int
    completed: int
    retries: int
    cq_overflows: int
    in_flight: int
    idle: int
    control_in_flight: int
    bytes_sent: int
    bytes_received: int
    buffers_lent: int
    buffers: int
    buffer_size: int
    sq_entries: int
    cq_entries: int
    features: int


#: What the kernel may still write to. It is never freed, not even at the end of the interpreter.
_parked: list[object] = []
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_parked))

#: Rings that are not closed. They are held here, so that a ring which its run or thread
#: forgot is still there at the end of the process.
_open_rings: set[Ring] = set()


def _die_in_child() -> None:
    for ring in _open_rings:
        ring.forked = ring._unusable = True
        ring._wake_lock = threading.RLock()  # another thread may have had it, which is not here
        ring._close_eventfd()
    _open_rings.clear()


def _close_at_exit() -> None:
    for ring in list(_open_rings):
        ring.close(timeout=1.0)


os.register_at_fork(after_in_child=_die_in_child)
atexit.register(_close_at_exit)


class Ring:
    """An io_uring, or what epoll makes of one, and the requests it has in flight.

    Args:
      wakeup_fd: an eventfd that outlives the ring; by default it has one of its own. ``wake``
        makes it readable.
      buffers: how many buffers the receive pool has; a power of two.
      buffer_size: size of each, in bytes.
      sq_entries: size of io_uring's submission queue, a power of two; None: SQ_ENTRIES. For each
        the kernel counts about 130 bytes as memory that the user has locked.
      cooperative: of an io_uring the thread's next system call completes what is ready, whichever
        that is, and not only ``reap`` and ``wait`` do. It costs a little more.
      engine: io_uring or epoll; None: what is forced, or works here (choice.py).

    Attributes:
      engine: which of the two it is.
      sleep_fd: the descriptor to sleep on: readable when there are completions, once ``arm`` was
        called, and when ``wakeup_fd`` is, until ``clear``.

    Raises:
      RingUnavailableError: io_uring was asked for and there is none here, or no descriptor is
        left; the text says what to change.
      ValueError: RINGTLS_ENGINE is neither io_uring nor epoll.
    """

    def __init__(
        self,
        *,
        wakeup_fd: int | None = None,
        buffers: int = BUFFERS,
        buffer_size: int = BUFFER_SIZE,
        sq_entries: int | None = None,
        cooperative: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self._eventfd: FileIO | None = None  # its own
        if wakeup_fd is None:
            self._eventfd = open_eventfd()
            wakeup_fd = self._eventfd.fileno()
        self.wakeup_fd: int = wakeup_fd
        self._opened = _ffi.new("struct rtl_ring **")
        try:
            self.engine: Engine = open_engine(
                self._opened,
                engine or forced(),
                self.wakeup_fd,
                sq_entries or SQ_ENTRIES,
                buffers,
                buffer_size,
                cooperative,
            )
            self._engine = self._opened[0]
            self._begin(buffers, buffer_size, cooperative)
        except BaseException:
            _open_rings.discard(self)
            self._free()
            raise

    def _begin(self, buffers: int, buffer_size: int, cooperative: bool) -> None:
        self.sleep_fd: int = int(_lib.rtl_sleep_fd(self._engine))
        self.cooperative = cooperative
        self.forked = False
        self._closed = False
        self._unusable = False  # forked, closed or failed
        self._reaping = False
        self._armed = False  # nothing is submitted before somebody wakes up
        self._enough = 0  # bytes moved at which a reap is over
        self._thread = get_ident()
        self._last_id = 0
        self._in_flight: dict[int, Request] = {}
        self._borrowed: dict[int, bytes | memoryview] = {}  # in outboxes, not copied
        self._abandoned: deque[Request] = deque()
        self._failure: BaseException | None = None
        self._interrupted: list[tuple[Request, int]] = []  # an exception came out of their end
        self._wake_lock = threading.RLock()  # a finalizer may run inside of wake()
        self._events = _ffi.new("int64_t[]", REAP_EVENTS * _lib.RTL_EVENT_FIELDS)
        pool = memoryview(_ffi.buffer(_lib.rtl_pool(self._engine), buffers * buffer_size))
        self._pool = [pool[i * buffer_size : (i + 1) * buffer_size] for i in range(buffers)]
        self._buffer_size = buffer_size
        self._flood = buffers * buffer_size // 8  # bytes after which a reap is long enough
        _open_rings.add(self)

    # Making requests

    def recv(self, fd: int, max_bytes: int) -> Request:
        """Receive once into the pool. What came is copied, and is the request's result."""
        request = Request(Opcode.RECV, fd)
        request.sink = request.keep
        size = min(max_bytes, self._buffer_size)
        return self._start(request, _lib.rtl_recv, size)

    def recv_multishot(self, fd: int, *, sink: Sink, on_done: OnDone) -> Request:
        """Receive into the pool, and pass what comes to ``sink``, until cancelled. The result
        is 0 at the end of input."""
        return self._start(
            Request(Opcode.RECV_MULTISHOT, fd, sink=sink, on_done=on_done), _lib.rtl_recv_multishot
        )

    def recv_into(self, fd: int, buffer: Buffer) -> Request:
        """Receive into the caller's memory, which is pinned until the end of the request."""
        pin = memoryview(buffer)
        request = Request(Opcode.RECV_INTO, fd, pin=pin)
        with _from_buffer(pin, require_writable=True) as memory:
            return self._start(request, _lib.rtl_recv_into, memory, len(memory))

    def send(self, fd: int, buffer: Buffer, *, deadline: float | None = None) -> Request:
        """Send from the caller's memory, which is pinned until the end of the request.

        The result may be less than the whole, after a cancellation or at the deadline
        (a time of ``_clock.now()``; None: there is none).
        """
        pin = memoryview(buffer)
        request = Request(Opcode.SEND, fd, pin=pin)
        with _from_buffer(pin) as memory:
            return self._start(request, _lib.rtl_send, memory, len(memory), _deadline_ns(deadline))

    def outbox_open(
        self, fd: int, *, on_progress: Callable[[int], object], on_done: OnDone
    ) -> Request:
        """Open something to write bytes to that are to be sent, in order (csrc/outbox.c).

        Args:
          on_progress: called with the number of unsent bytes when that has fallen as
            ``outbox_notify_below`` asked for.
          on_done: called when it is over, that is broken, finished or cancelled.
        """
        request = Request(Opcode.OUTBOX, fd, on_done=on_done, on_progress=on_progress)
        return self._start(request, _lib.rtl_outbox_open)

    def outbox_write(self, outbox: Request, data: bytes | memoryview) -> int:
        """Have ``data`` sent. Never blocks.

        Returns:
          How many bytes are unsent.

        Raises:
          OSError: the ring has failed, memory is short, or the connection is broken. ENOENT: the
            outbox is over, and its ``on_done`` is about to tell why.
        """
        if self._unusable or get_ident() != self._thread:  # written out, for its frequency
            self._refuse()
        size = len(data)
        segment = 0
        if size > LARGEST_COPY:
            self._last_id = segment = self._last_id + 1
            self._borrowed[segment] = data
        unsent: int = _outbox_write(
            self._engine,
            outbox.id,
            data if type(data) is bytes else _from_buffer(data),
            size,
            segment,
        )
        if unsent <= 0:
            if segment:
                self._borrowed.pop(segment, None)
            if unsent < 0:
                raise OSError(-unsent, f"{outbox.label}: {os.strerror(-unsent)}")
        if self._armed:
            self.wake()
        return unsent

    def outbox_notify_below(self, outbox: Request, below: int) -> int:
        """How many bytes are unsent. If not less than ``below``, its ``on_progress`` is called
        when they are. Negative: it is over, and its ``on_done`` is about to tell why."""
        return int(_lib.rtl_outbox_notify_below(self._usable(), outbox.id, below))

    def outbox_shutdown(self, outbox: Request, deadline: float | None) -> bool:
        """Send what is left until ``deadline`` (``_clock.now()``; None: there is none), and
        end the outbox.

        The caller sends FIN next: until then the kernel may hold back the last bytes.

        Returns:
          True if that is done, False if its ``on_done`` will tell.

        Raises:
          OSError: that is done, but not all could be sent (ETIMEDOUT: not until the deadline).
        """
        result = _lib.rtl_outbox_shutdown(self._usable(), outbox.id, _deadline_ns(deadline))
        if result > 0 or (result == -errno.ENOENT and self._reaping):
            return False
        self._in_flight.pop(outbox.id, None)
        outbox.on_done = None
        outbox.complete(result)
        if result < 0:
            raise OSError(-result, f"{outbox.label}: {os.strerror(-result)}")
        return True

    def accept(self, fd: int, sock: socket.socket, *, on_done: OnDone | None = None) -> Request:
        """Accept a connection for ``sock``, an object that has no descriptor yet (rule 7 of
        request.py); the result is its fd (close-on-exec)."""
        request = Request(Opcode.ACCEPT, fd, on_done=on_done)
        request.accepted = sock
        return self._start(request, _lib.rtl_accept)

    def connect(self, fd: int, family: int, address: Address) -> Request:
        """Connect to a numeric IPv4 or IPv6 address, or a Unix socket."""
        pin = packed(family, address)
        request = Request(Opcode.CONNECT, fd, pin=pin)
        return self._start(request, _lib.rtl_connect, _from_buffer(pin), len(pin))

    def poll_readable(self, fd: int) -> Request:
        """Wait until a receive would not block; the result is a poll(2) mask."""
        request = Request(Opcode.POLL, fd)
        return self._start(request, _lib.rtl_poll, select.POLLIN, _deadline_ns(None))

    def poll_writable(self, fd: int) -> Request:
        """Wait until a send would not block; the result is a poll(2) mask."""
        request = Request(Opcode.POLL, fd)
        return self._start(request, _lib.rtl_poll, select.POLLOUT, _deadline_ns(None))

    def close_fd(
        self,
        fd: int,
        *,
        discard_limit: int,
        deadline: float | None,
        on_done: OnDone | None = None,
    ) -> Request:
        """Discard an fd's input until ``deadline`` at most (None: there is none) and, once
        released, close it (csrc/close.c). Until then it is the caller's, and cancelling the
        request resets the connection."""
        request = Request(Opcode.CLOSE, fd, on_done=on_done)
        return self._start(request, _lib.rtl_close, discard_limit, _deadline_ns(deadline))

    def close_request_of(self, fd: int) -> Request | None:
        """The close_fd() request of a descriptor, for a caller that lost it to an exception."""
        for request in self._in_flight.values():
            if request.opcode is Opcode.CLOSE and request.fd == fd:
                return request
        return None

    def timer(self, deadline: float, *, on_done: OnDone | None = None) -> Request:
        """End with ECANCELED at a time of ``_clock.now()``: a poll for nothing."""
        request = Request(Opcode.POLL, self.wakeup_fd, on_done=on_done)
        return self._start(request, _lib.rtl_poll, 0, _deadline_ns(deadline))

    def release(self, closing: Request) -> bool:
        """Let a close_fd() request close its fd: all that is to be sent has been sent.

        The fd is the ring's from now on, and may be closed before this returns. So the caller
        lets go of it before (socket.detach()).

        Returns:
          False if the ring has failed, or the request was cancelled: then the fd is the
          caller's to close.
        """
        if closing.is_over or self._failure is not None:
            return False
        return bool(_lib.rtl_release(self._usable(), closing.id) == 0)

    def expedite_close(self) -> None:
        """Let closed connections linger no longer than it takes to know that the peer's kernel
        has all we sent."""
        _lib.rtl_expedite_close(self._usable())

    def cancel(self, request: Request) -> None:
        """Ask for the request's end; it comes as a completion (rule 5 of request.py)."""
        engine = self._usable()
        request.advance(Event.CANCEL)
        if request.state is not State.CANCELLING:
            return
        self._enough = 0  # the kernel hears of it at the next submit
        if self._armed:
            self.wake()
        unknown = _lib.rtl_cancel(engine, request.id) == -errno.ENOENT
        if unknown and not self._reaping:  # it never got to the engine: see rule 1
            request.complete(-errno.ECANCELED)
            self._in_flight.pop(request.id, None)

    def abandon(self, request: Request) -> None:
        """Nobody waits for this request any more. May be called from any thread."""
        if self._closed:
            _discard(request)
        else:
            self._abandoned.append(request)
            self.wake()

    def wake(self) -> None:
        """Make the wake-up descriptor readable. May be called from any thread."""
        with self._wake_lock:
            if not (self.forked or self._closed):
                os.eventfd_write(self.wakeup_fd, 1)

    def _start(self, request: Request, function: Any, *arguments: Any) -> Request:
        engine = self._usable()
        self._last_id += 1
        request.id = self._last_id
        request.advance(Event.SUBMIT)
        self._in_flight[request.id] = request
        result = function(engine, request.id, request.fd, *arguments)
        if result < 0:
            del self._in_flight[request.id]
            raise OSError(-result, f"{request.label}: {os.strerror(-result)}")
        if self._armed:
            self.wake()
        return request

    # Driving

    def submit(self) -> bool:
        """Hand all new requests to the kernel. False if there were none.

        Raises:
          OSError: io_uring_enter(2) failed for good. A passing shortage is not an error: the
            rest goes with the next call, and the wake-up descriptor is made readable so that
            it comes soon.
        """
        engine = self._usable()
        self._refuse_reentry()
        self._dismiss_abandoned()
        result = _lib.rtl_submit(engine)
        if result < 0:
            if -result not in (errno.EAGAIN, errno.EBUSY, errno.ENOMEM):
                raise RingFailedError(-result, f"{self.engine} submit: {os.strerror(-result)}")
            self.wake()
        return bool(result)

    def arm(self) -> None:
        """Have completions make ``sleep_fd`` readable, until the next ``reap``; and what is
        asked for meanwhile, as by the host of a trio in guest mode, which has to be submitted.

        Raises:
          OSError: io_uring_enter(2) or timerfd_settime(2) failed.
        """
        self._armed = True
        result = _lib.rtl_arm(self._usable())
        if result < 0:
            raise RingFailedError(-result, f"{self.engine} arm: {os.strerror(-result)}")

    def clear(self) -> None:
        """Make the wake-up descriptor unreadable."""
        _lib.rtl_clear(self._usable())

    def busy_poll(self, ns: int) -> None:
        """Stay here, without sleeping, until there may be completions: ``ns`` nanoseconds at
        most."""
        _lib.rtl_busy_poll(self._usable(), ns)

    def reap(self) -> bool:
        """Complete requests that the kernel is done with. False if there were none.

        Not endlessly: what a callback asks for, as the end of a request for input, gets to the
        kernel however fast the peer is. ``arm`` sees what is left.

        Raises:
          BaseException: what a callback raised, after all the others were called.
        """
        engine = self._usable()
        self._refuse_reentry()
        failures: list[BaseException] = []
        in_flight, pool, events = self._in_flight, self._pool, self._events
        found = False
        self._armed = False
        try:
            self._reaping = True
            self._enough = _lib.rtl_moved(engine) + self._flood
            while True:
                if _lib.rtl_moved(engine) >= self._enough:
                    break
                count = _lib.rtl_reap(engine, events, REAP_EVENTS)
                if count < 0:
                    raise RingFailedError(-count, f"{self.engine} reap: {os.strerror(-count)}")
                if count == 0:
                    break
                found = True
                fields = iter(_ffi.unpack(events, count * _lib.RTL_EVENT_FIELDS))
                for id_, result, kind in zip(fields, fields, fields, strict=True):
                    try:
                        if kind >= 0:
                            in_flight[id_].sink(pool[kind][:result])
                        elif kind == OVER:
                            self._end(id_, result)
                        elif id_ in in_flight:  # a callback just now may have ended an outbox
                            in_flight[id_].progress(result)
                    except BaseException as failure:
                        if kind >= 0:
                            self._sink_failed(in_flight[id_], failure)
                        else:
                            failures.append(failure)
        finally:
            self._reaping = False
        if failures:
            raise failures[0]
        return found

    def _sink_failed(self, request: Request, failure: BaseException) -> None:
        """A piece is missing: what follows it is of no use."""
        request.failure = failure
        request.sink = ignore
        self.cancel(request)

    def _end(self, id_: int, result: int) -> None:
        request = self._in_flight.get(id_)
        if request is None:
            del self._borrowed[id_]
        else:
            try:
                request.complete(result)
            except BaseException:
                self._interrupted.append((request, result))
                raise
            finally:
                if request.is_over:
                    del self._in_flight[id_]

    def wait(self, timeout: float) -> None:
        """Submit, then sleep until there is a completion or ``timeout`` seconds are over."""
        self.submit()
        ns = int(min(max(timeout, 0.0), _LONGEST_WAIT) * 1e9)
        result = _lib.rtl_wait(self._usable(), ns)
        if result < 0 and -result not in (errno.ETIME, errno.EINTR):
            raise RingFailedError(-result, f"{self.engine} wait: {os.strerror(-result)}")

    def _dismiss_abandoned(self) -> None:
        while self._abandoned:
            request = self._abandoned.popleft()
            if request.state is State.SUBMITTED:
                self.cancel(request)
            if request.state is State.CANCELLING:
                request.on_done = _discard
            elif request.state is State.DONE:
                _discard(request)

    def _refuse_reentry(self) -> None:
        if self._reaping:
            raise RuntimeError("a callback of the ring must not drive it (rule 4)")

    @property
    def is_usable(self) -> bool:
        """False if it was closed, or has failed, or is the parent process's."""
        return not self._unusable

    def _usable(self) -> Any:
        if self._unusable or get_ident() != self._thread:
            self._refuse()
        return self._engine

    def _refuse(self) -> NoReturn:
        if self._failure is not None:
            raise RingFailedError(errno.EIO, f"the ring has failed: {self._failure!r}")
        if self._closed and not self.forked:
            raise RuntimeError("the ring is closed: its trio run, or its thread, has ended")
        raise wrong_caller(is_forked=self.forked)

    # Ending

    def fail(self, failure: BaseException) -> None:
        """The ring can't go on: end every request in flight with this failure (rule 5).

        The first failure counts: that a ring which has failed refuses a call is another's.
        """
        self._failure = self._failure or failure
        self._unusable = True
        if self._opened[0] and not self.forked:  # else it was freed, given up, or is the parent's
            _lib.rtl_fail(self._engine)  # closes what was released and is not closed yet
        results = self._last_results()
        in_flight = [(r, results.get(r.id, -errno.EIO)) for r in self._in_flight.values()]
        _parked.append([request.pin for request, _ in in_flight])
        _parked.append(self._borrowed)
        self._in_flight = {}
        for request, result in [*self._interrupted, *in_flight]:
            request.failure = failure
            try:
                request.complete(result)
            except BaseException as error:  # the others must be told, too
                log(logging.ERROR, "callback of %r raised %r", request, error, failure=error)

    def _last_results(self) -> dict[int, int]:
        """Of those whose end was reported last; nobody may have seen it."""
        fields = iter(self._events)
        return {
            id_: result
            for id_, result, kind in zip(fields, fields, fields, strict=True)
            if kind == OVER
        }

    def close(self, timeout: float) -> bool:
        """Cancel and drain, for at most ``timeout`` seconds, then free the ring.

        What is raised meanwhile is a failure of the ring (rule 5). To be repeated then: what that
        has left undone is done.

        Returns:
          False if something could not be drained: then nothing was freed, and never will be
          (rule 6).
        """
        if self not in _open_rings:
            return True
        if self._failure is None:
            self._refuse_reentry()
        drained = False
        try:
            if get_ident() == self._thread and self._failure is None and not self._closed:
                self._dismiss_abandoned()
                self._drain(now() + timeout)
        except BaseException as failure:
            self.fail(failure)
            raise
        finally:
            drained = self._let_go()
        return drained

    def _let_go(self) -> bool:
        with self._wake_lock:
            self._closed = self._unusable = True
        is_ours = get_ident() == self._thread
        drained = is_ours and self._failure is None and self._free()
        if not drained:
            _parked.append(self)
        if is_ours and self._failure is not None and not isinstance(self._failure, OSError):
            _lib.rtl_abandon(self._opened)
            self._close_eventfd()
        _open_rings.discard(self)
        return drained

    def _free(self) -> bool:
        drained: bool = _lib.rtl_free(self._opened) == 0
        if drained:
            self._close_eventfd()
        return drained

    def _close_eventfd(self) -> None:
        if self._eventfd is not None:
            self._eventfd.close()

    def cancel_all(self, *, reads_only: bool) -> None:
        """Ask for the end of every request, or of those that nobody else would notice."""
        for request in self.requests():
            if request.opcode.cancel_on_drop or not reads_only:
                self.cancel(request)

    def _drain(self, deadline: float) -> None:
        for request in self.requests():
            if request.opcode is Opcode.ACCEPT:
                request.on_done = _discard
        self.cancel_all(reads_only=False)
        self.expedite_close()
        while (self._in_flight or self._borrowed) and (left := deadline - now()) > 0:
            self.wait(left)
            self.reap()

    # Looking

    @property
    def in_flight(self) -> int:
        """How many requests the kernel has, or will have after the next submit."""
        return len(self._in_flight)

    @property
    def bytes_moved(self) -> int:
        """Bytes sent and received since the ring was made."""
        return int(_lib.rtl_moved(self._usable()))

    def requests(self) -> list[Request]:
        """The requests in flight, oldest first."""
        return list(self._in_flight.values())

    def counters(self) -> RingCounters:
        """What the engine has counted since the ring was made; also after it has failed."""
        has_failed = self._failure is not None and not (self._closed or self.forked)
        counters = _ffi.new("struct rtl_counters *")
        _lib.rtl_counters(self._engine if has_failed else self._usable(), counters)
        return RingCounters(**{name: getattr(counters, name) for name in RingCounters.__slots__})

    def unsupported(self) -> list[Opcode]:
        """The opcodes that this kernel does not know."""
        return [o for o in Opcode if _lib.rtl_supports(self._usable(), int(o)) != 1]


def _deadline_ns(deadline: float | None) -> int:
    if deadline is None:
        return int(_lib.RTL_NO_DEADLINE)
    return int(min(max(deadline, 0.0), _LATEST_DEADLINE) * 1e9)


def _discard(request: Request) -> None:
    """Let go of a result that nobody will take: an fd is closed, bytes are dropped."""
    if request.state is not State.DONE:
        return
    if request.accepted is not None and request.result >= 0:
        request.accepted.close()
    request.data = None
    request.advance(Event.TAKE)
