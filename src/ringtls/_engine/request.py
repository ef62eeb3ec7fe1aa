"""The life of one I/O request, from the call that makes it until its result is taken.

Rules:

1. The ring owns the Request, and the Request owns what the kernel may touch (``pin``). It stays in
   the ring's table until its terminal completion, whatever becomes of the task that waits for it.
   A RECV_MULTISHOT or an OUTBOX is long-lived, and reports in between.
2. A Handle is what a caller has of a Request. Dropping it frees nothing. A request that is in
   flight then is cancelled if it reads, and completes if it writes; the ring reaps both.
3. The state changes as TRANSITIONS says, and in no other way.
4. A result is taken once. A second taker, or a second waiter, gets an error at the call. Who ends
   the connection takes no result, and hears of the completion as its ``watcher``.
5. Cancelling a request asks the kernel to end it, and is not its end: that is its own completion,
   which comes later. If the request was done before the cancellation reached it, its result
   counts, and is not lost.
6. An exception that a callback raises goes to ``on_failure``, if whoever made the request has set
   that, and one of the watcher's to the watcher. So it ends one connection, and not the ring.
7. A connection that was accepted belongs to a socket from the first step on: its object is made
   before, and gets the descriptor before anybody hears of it. So whatever is raised, no descriptor
   is nobody's, and it is closed with the object.

This module knows no event loop.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
from collections.abc import Callable
from typing import TypeAlias

from .extension import lib as _lib

__all__ = ["TRANSITIONS", "Event", "Opcode", "Request", "Sink", "State", "ignore"]

Sink: TypeAlias = Callable[[bytes | bytearray | memoryview], object]

OnFailure: TypeAlias = Callable[[BaseException], object]


class Opcode(enum.IntEnum):
    """What a request does. csrc/engine.h says it, and has the numbers."""

    RECV = _lib.RTL_RECV
    RECV_INTO = _lib.RTL_RECV_INTO
    SEND = _lib.RTL_SEND
    ACCEPT = _lib.RTL_ACCEPT
    CONNECT = _lib.RTL_CONNECT
    POLL = _lib.RTL_POLL
    CLOSE = _lib.RTL_CLOSE
    RECV_MULTISHOT = _lib.RTL_RECV_MULTISHOT
    OUTBOX = _lib.RTL_OUTBOX

    @property
    def cancel_on_drop(self) -> bool:
        """True if nobody but the caller notices when it is cancelled."""
        return self not in (Opcode.SEND, Opcode.CLOSE, Opcode.OUTBOX)


class State(enum.IntEnum):
    """Where a request is in its life; TRANSITIONS has the ways between."""

    NEW = 0
    SUBMITTED = 1
    CANCELLING = 2
    DONE = 3
    TAKEN = 4


class Event(enum.IntEnum):
    """What moves a request from state to state."""

    SUBMIT = 0
    CANCEL = 1
    COMPLETE = 2
    TAKE = 3


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.NEW: {Event.SUBMIT: State.SUBMITTED},
    State.SUBMITTED: {Event.CANCEL: State.CANCELLING, Event.COMPLETE: State.DONE},
    State.CANCELLING: {Event.CANCEL: State.CANCELLING, Event.COMPLETE: State.DONE},
    State.DONE: {Event.CANCEL: State.DONE, Event.TAKE: State.TAKEN},
    State.TAKEN: {},
}


def ignore(view: bytes | bytearray | memoryview) -> None:
    """The sink of a request that receives nothing, or nothing more."""


class Request:
    """One I/O operation that the ring owns (rule 1)."""

    __slots__ = (
        "accepted",
        "data",
        "failure",
        "fd",
        "id",
        "on_done",
        "on_failure",
        "on_progress",
        "opcode",
        "pin",
        "result",
        "sink",
        "state",
        "watcher",
    )

    def __init__(
        self,
        opcode: Opcode,
        fd: int,
        *,
        pin: object = None,
        sink: Sink = ignore,
        on_done: Callable[[Request], object] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> None:
        self.id: int = 0
        self.opcode: Opcode = opcode
        self.fd: int = fd
        self.pin: object = pin
        self.sink: Sink = sink
        self.on_done = on_done
        self.on_progress = on_progress
        self.on_failure: OnFailure | None = None
        self.watcher: tuple[Callable[[Request], object], OnFailure] | None = None
        self.state: State = State.NEW
        self.result: int = 0
        self.data: bytes | None = None
        self.accepted: socket.socket | None = None
        self.failure: BaseException | None = None

    def advance(self, event: Event) -> None:
        """Change the state as TRANSITIONS says.

        Raises:
          RuntimeError: it has no way from this state by this event.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise RuntimeError(f"{self!r} can't {event.name.lower()}") from None

    def complete(self, result: int) -> None:
        """The ring's call: the kernel is done, the buffers are the caller's again.

        If an exception comes out of this it can be called again, and goes on.
        """
        accepted = self.accepted if result >= 0 else None
        if self.state < State.DONE:
            if accepted is not None:
                self._adopt(accepted, result)
            self.result = result
            self.pin = None
            self.sink = ignore
            self.on_progress = None
            self.advance(Event.COMPLETE)
        if accepted is not None and self.failure is not None:
            accepted.close()  # nobody will take it
        if self.on_done is not None:
            try:
                self.on_done(self)
            except BaseException as failure:
                if self.on_failure is None:
                    raise
                self.on_failure(failure)
        self.on_done = self.on_failure = None
        if self.watcher is not None:
            on_done, on_failure = self.watcher
            try:
                on_done(self)
            except BaseException as failure:
                on_failure(failure)
            self.watcher = None

    def _adopt(self, sock: socket.socket, fd: int) -> None:
        try:
            socket.socket.__init__(sock, fileno=fd)
        except BaseException as failure:
            self.failure = failure
            socket.socket.__init__(sock, fileno=fd)

    def progress(self, unsent: int) -> None:
        """The ring's call: of an OUTBOX only so many bytes are unsent."""
        assert self.on_progress is not None
        try:
            self.on_progress(unsent)
        except BaseException as failure:
            if self.on_failure is None:
                raise
            self.on_failure(failure)

    def keep(self, view: bytes | bytearray | memoryview) -> None:
        """The sink of a receive whose data is its result."""
        self.data = bytes(view)

    def error(self) -> OSError | None:
        """The failure as an exception that names the operation, or None."""
        if self.failure is not None:
            error = OSError(errno.EIO, f"{self.label}: {self.failure!r}")
            error.__cause__ = self.failure
            return error
        if self.result < 0:
            return OSError(-self.result, f"{self.label}: {os.strerror(-self.result)}")
        return None

    @property
    def was_cancelled(self) -> bool:
        """True if it ended because of that, and did nothing."""
        return self.result == -errno.ECANCELED and self.failure is None

    @property
    def is_over(self) -> bool:
        """True when the kernel is done with it, whether or not the result was taken."""
        return self.state >= State.DONE

    @property
    def label(self) -> str:
        return f"{self.opcode.name.lower()} on fd {self.fd}"

    def __repr__(self) -> str:
        amount = f", result {self.result}" if self.is_over else ""
        return f"<{self.label}, {self.state.name}{amount}>"
