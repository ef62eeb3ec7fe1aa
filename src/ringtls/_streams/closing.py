"""The destructor: how a connection ends, whatever becomes of the tasks that used it.

The ring runs it, by callbacks, and not a task: so it can't be cancelled, and goes on when the
task, or the stream object, is gone. A task may wait for it, and is not needed for it.

    phase       event      next        what is done
    OPEN        CLOSE      FLUSHING    close_notify is queued behind all that was accepted
    OPEN        ABORT      LINGERING   reset
    OPEN        CRASHED    LINGERING   reset
    FLUSHING    FLUSHED    LINGERING   FIN; input is discarded until the peer's FIN or a limit
    FLUSHING    CUT_SHORT  DELIVERING  no close_notify may follow: wait until the peer's TCP has all
    FLUSHING    BROKEN     LINGERING   reset: the peer is gone
    FLUSHING    EXPIRED    LINGERING   reset: so that the peer can't mistake it for an end
    FLUSHING    ABORT      LINGERING   reset
    FLUSHING    CRASHED    LINGERING   reset: something raised in here
    FLUSHING    RELEASED   CLOSED      the run crashed, and its ring reset what it still had
    DELIVERING  DELIVERED  LINGERING   reset: it comes after the last byte, or the time is over
    DELIVERING  ABORT      LINGERING   reset
    DELIVERING  CRASHED    LINGERING   reset: as above
    DELIVERING  RELEASED   CLOSED      as above
    LINGERING   RELEASED   CLOSED      the socket is closed, nothing is in flight

The outcome is known when FLUSHING is over, and nobody waits any more. (RFC 8446, section 6.1.)

An exception can come anywhere in here: memory is short, a signal's handler raises. So there are
two boundaries, the start of an end and the ring's callbacks, and what gets there makes the event
CRASHED: the connection is reset, all who wait are woken, and the rest of the run does not notice
(rule C16). User code that runs in here (a farewell, logging) can't raise into it.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .._clock import now
from .._log import log
from .._outcome import CloseOutcome
from . import leaks

if TYPE_CHECKING:
    from .._interfaces import Owner, Transport
    from .session import TlsSession

__all__ = [
    "TRANSITIONS",
    "Closing",
    "Event",
    "Farewell",
    "Phase",
    "check_farewell",
    "checked_timeout",
]

#: Seconds that a connection's end may take.
SHUTDOWN_TIMEOUT = 5.0

#: Bytes that last words may have: one record (RFC 8446, section 5.1).
LONGEST_FAREWELL = 16384

Farewell = bytes | Callable[[], bytes] | None


class Phase(enum.IntEnum):
    OPEN = 0
    FLUSHING = 1
    DELIVERING = 2
    LINGERING = 3
    CLOSED = 4


class Event(enum.IntEnum):
    CLOSE = 0
    FLUSHED = 1
    CUT_SHORT = 2
    DELIVERED = 3
    BROKEN = 4
    EXPIRED = 5
    ABORT = 6
    CRASHED = 7
    RELEASED = 8


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPEN, Event.CLOSE): Phase.FLUSHING,
    (Phase.OPEN, Event.ABORT): Phase.LINGERING,
    (Phase.OPEN, Event.CRASHED): Phase.LINGERING,
    (Phase.FLUSHING, Event.FLUSHED): Phase.LINGERING,
    (Phase.FLUSHING, Event.CUT_SHORT): Phase.DELIVERING,
    (Phase.FLUSHING, Event.BROKEN): Phase.LINGERING,
    (Phase.FLUSHING, Event.EXPIRED): Phase.LINGERING,
    (Phase.FLUSHING, Event.ABORT): Phase.LINGERING,
    (Phase.FLUSHING, Event.CRASHED): Phase.LINGERING,
    (Phase.FLUSHING, Event.RELEASED): Phase.CLOSED,
    (Phase.DELIVERING, Event.DELIVERED): Phase.LINGERING,
    (Phase.DELIVERING, Event.ABORT): Phase.LINGERING,
    (Phase.DELIVERING, Event.CRASHED): Phase.LINGERING,
    (Phase.DELIVERING, Event.RELEASED): Phase.CLOSED,
    (Phase.LINGERING, Event.RELEASED): Phase.CLOSED,
}

#: The outcome, where the event decides it; else it is the way the stream took its leave.
_OUTCOMES = {
    Event.BROKEN: CloseOutcome.PEER_RESET,
    Event.EXPIRED: CloseOutcome.TIMED_OUT,
    Event.ABORT: CloseOutcome.UNCLEAN,
    Event.CRASHED: CloseOutcome.CRASHED,
    Event.RELEASED: CloseOutcome.TIMED_OUT,
}

_ENDED_BY_FIN = {
    CloseOutcome.CLEAN,
    CloseOutcome.BEFORE_HANDSHAKE,
    CloseOutcome.AFTER_FATAL_ALERT,
}

#: Ways to take leave after which the peer must not read an end.
_WITHOUT_END = {CloseOutcome.BROKEN_OFF, CloseOutcome.DURING_RENEGOTIATION}


class Closing:
    """The end of one connection, from before its start (Ending of _interfaces).

    Made with the stream, which it outlives. Holds the run open until the connection is closed.
    """

    __slots__ = (
        "_afterwards",
        "_below",
        "_leave",
        "_phase",
        "_session",
        "_settled",
        "deadline",
        "farewell",
        "made_at",
        "outcome",
        "owner",
        "reset_on_error",
        "started",
        "timeout",
        "torn",
        "transport",
    )

    runs_user_code = False

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._session: TlsSession | None = None
        self.timeout = SHUTDOWN_TIMEOUT
        self.deadline = math.inf
        self.outcome: CloseOutcome | None = None
        self.farewell: Farewell = None
        self.torn = False  # a part of a send_all was accepted, and the rest was not
        self.reset_on_error = False
        self.owner: Owner | None = None  # closes the stream, though it was dropped
        self.made_at = leaks.caller()
        self._phase = Phase.OPEN
        self.started = False
        self._leave = CloseOutcome.CLEAN
        self._below: tuple[Closing, ...] = ()
        self._afterwards: tuple[Callable[[], object], ...] = ()
        self._settled = transport.driver.wait_queue()
        transport.on_crash = self.crash
        transport.driver.register(self)
        leaks.still_open.add(self)

    def attach_session(self, session: TlsSession | None, timeout: float) -> None:
        """The connection is TLS from now on (or no longer, with None)."""
        self._session = session
        self.timeout = timeout

    def succeed(self, before: Closing) -> None:
        """The connection has come back from TLS, whose end was to be another's affair."""
        self.owner, self.made_at, self.timeout = before.owner, before.made_at, before.timeout

    def own(self, below: Iterable[Closing]) -> None:
        """This connection is put upon others. Its end closes them, and they wait for that."""
        self._below = tuple(below)
        for each in self._below:
            each.owner = self

    @property
    def holds_tasks(self) -> bool:
        """One sends over a stream below, whose peer may take in nothing."""
        is_sending = self.transport.has_stream_below and self.transport.unsent > 0
        return is_sending and not self.started

    @property
    def is_below_another(self) -> bool:
        return isinstance(self.owner, Closing)

    def postpone(self, function: Callable[[], object]) -> bool:
        self._afterwards += (function,)
        return True

    def detach(self) -> None:
        """The connection goes on without this: somebody else sees to its end."""
        self._let_go()
        leaks.still_open.discard(self)

    def start(self, timeout: float | None = None, *, after_error: bool = False) -> None:
        """Begin the end. Later calls do nothing.

        Args:
          timeout: seconds that it may take; by default the stream's own.
          after_error: the stream is left by an exception, or was lost.
        """
        if self.started:
            return
        self.transport.driver.check_caller()
        seconds = checked_timeout(self.timeout if timeout is None else timeout)
        try:
            self.deadline = now() + seconds
            self._step(Event.CLOSE)
            self._take_leave(break_off=after_error and self.reset_on_error)
            self.transport.begin_close(self.deadline, self._flushed, self._released)
        except BaseException as failure:
            self.crash(failure)
            raise

    def abort(self) -> None:
        """Reset the connection at once. Nothing, if its end is settled already."""
        self.transport.driver.check_caller()
        if self._phase >= Phase.LINGERING:
            return
        try:
            was_open = not self.started
            if was_open:
                self.deadline = now()
            self._settle(Event.ABORT)
            if was_open:
                self.transport.begin_close(self.deadline, self._flushed, self._released)
            self._end_transport()
        except BaseException as failure:
            self.crash(failure)
            raise

    async def wait(self) -> None:
        """Wait until the outcome is known, and a stream below closed. No cancellation ends this;
        the timeout does."""
        if not self._is_waited_for:
            await self.transport.driver.uncancellable_checkpoint()
            return
        self.transport.driver.check_caller()
        while self._is_waited_for:
            await self._settled.wait_uncancellable()

    @property
    def is_settled(self) -> bool:
        """True if it has begun, and nobody need ``wait`` for it."""
        return self.started and not self._is_waited_for

    @property
    def _is_waited_for(self) -> bool:
        if self.transport.has_stream_below:
            return self.transport.on_crash is not None
        if self._phase is Phase.DELIVERING:
            return not self.transport.driver.runs_between_calls  # else nobody would reset it
        return self._phase is Phase.FLUSHING

    # What nobody waits for

    def drop(self) -> None:
        """The stream was garbage-collected, perhaps in another thread."""
        driver = self.transport.driver
        if not self.started and not driver.is_forked:
            driver.call_soon(self.start_as_orphan)
            if self.owner is None:
                self.warn_unclosed()

    def start_as_orphan(self) -> None:
        if self.started or (self.owner and self.owner.postpone(self.start_as_orphan)):
            return
        self.transport.driver.tally.orphans_adopted += 1
        self.start_unawaited(after_error=True)

    def start_unawaited(self, *, after_error: bool = False) -> None:
        """Begin the end where nobody would catch an exception."""
        try:
            self.start(after_error=after_error)
        except BaseException as failure:
            if not (self.started or self.transport.driver.is_forked):
                self.crash(failure)  # else it has, or is the parent's

    def warn_unclosed(self) -> None:
        """Give the ResourceWarning of a stream that nobody closed."""
        text = f"unclosed stream to {self.transport.name}, made at {self.made_at}"
        leaks.report(text)
        warnings.warn(
            f"{text}; it is closed in the background. Use its context manager to close it in time",
            ResourceWarning,
            stacklevel=3,
            source=self,
        )

    def crash(self, failure: BaseException) -> None:
        """Something raised inside the end, or inside a callback of the ring (rule C16)."""
        if self._phase < Phase.LINGERING:
            self._settle(Event.CRASHED)
        self.started = True
        self.deadline = min(self.deadline, now())
        self._settled.wake()
        if self.transport.break_off(self._released) and self.outcome in _ENDED_BY_FIN:
            self.outcome = CloseOutcome.CRASHED
        log(
            logging.ERROR,
            "connection to %s was reset: %r was raised inside ringtls",
            self.transport.name,
            failure,
            failure=failure,
        )

    def give_up(self) -> None:
        """The run has waited for long enough."""
        try:
            self.crash(TimeoutError("its end did not come in time"))
        finally:
            self._let_go()

    # The sequence

    def _take_leave(self, *, break_off: bool) -> None:
        session = self._session
        if break_off:
            self._leave = CloseOutcome.BROKEN_OFF
        elif session is not None:
            self._leave = self._end_tls(session)
        if session is not None:
            self.transport.enqueue(session.take_output())

    def _end_tls(self, session: TlsSession) -> CloseOutcome:
        """Make the farewell and close_notify, as far as they are possible."""
        if not session.handshake_done:
            return CloseOutcome.BEFORE_HANDSHAKE
        self._say_farewell(session)
        session.close_output(keep_unread=False)
        if session.close_notify_sent:
            return CloseOutcome.CLEAN
        if session.failure is not None:
            return CloseOutcome.AFTER_FATAL_ALERT
        return CloseOutcome.DURING_RENEGOTIATION

    def _say_farewell(self, session: TlsSession) -> None:
        """Rule C22: what the user's function raises does not stop the end."""
        if (
            self.farewell is None
            or self.torn
            or session.close_notify_sent
            or session.failure is not None
        ):
            return
        try:
            words = self.farewell() if callable(self.farewell) else self.farewell
            check_farewell(words)
            if words:
                session.write(words)
        except BaseException as failure:
            log(
                logging.ERROR,
                "connection to %s ends without its farewell: %r",
                self.transport.name,
                failure,
                failure=failure,
            )

    def _flushed(self, error: OSError | None) -> None:
        if self._phase is not Phase.FLUSHING:
            return
        if error is not None:
            self._settle(Event.EXPIRED if error.errno == errno.ETIMEDOUT else Event.BROKEN)
        elif self._leave in _WITHOUT_END:
            self._settle(Event.CUT_SHORT)
            self.transport.await_delivery(self.deadline, self._delivered)
            return
        else:
            self._settle(Event.FLUSHED)
        self._end_transport()

    def _delivered(self) -> None:
        if self._phase is Phase.DELIVERING:
            self._step(Event.DELIVERED)
            self._settled.wake()
            self._end_transport()

    def _settle(self, event: Event) -> None:
        self.outcome = _OUTCOMES.get(event, self._leave)
        self._step(event)
        self._settled.wake()

    def _end_transport(self) -> None:
        try:
            if self.outcome in _ENDED_BY_FIN:
                self.transport.end_output()
            else:
                self.transport.reset()
        except OSError:
            if self.outcome is not CloseOutcome.UNCLEAN:
                self.outcome = CloseOutcome.PEER_RESET
        self._log_outcome()

    def _released(self, *, acknowledged: bool, error: OSError | None = None) -> None:
        if self._phase in (Phase.FLUSHING, Phase.DELIVERING):
            self._settle(Event.RELEASED)
        elif self._phase is Phase.LINGERING:
            self._step(Event.RELEASED)
        if error is not None and self.outcome in _ENDED_BY_FIN:
            timed_out = error.errno == errno.ETIMEDOUT
            self.outcome = CloseOutcome.TIMED_OUT if timed_out else CloseOutcome.PEER_RESET
            self._log_outcome()
        elif self.outcome is CloseOutcome.CLEAN and not acknowledged:
            self.outcome = CloseOutcome.UNACKNOWLEDGED
            self._log_outcome()
        self._let_go()

    def _log_outcome(self) -> None:
        if self.outcome is not CloseOutcome.CLEAN:
            assert self.outcome is not None
            log(
                logging.DEBUG if self._was_health_check else logging.INFO,
                "connection to %s ended: %s",
                self.transport.name,
                self.outcome.value,
            )

    @property
    def _was_health_check(self) -> bool:
        """A peer that connects, sends nothing and goes: a load balancer does that all day, and
        spares itself TIME_WAIT by a reset."""
        session = self._session
        return (
            self.outcome in (CloseOutcome.BEFORE_HANDSHAKE, CloseOutcome.PEER_RESET)
            and session is not None
            and session.peer_is_silent
        )

    def _let_go(self) -> None:
        if self.outcome is not None and self.transport.on_crash is not None:
            self.transport.driver.tally.closings[self.outcome] += 1  # once it is final
        self.transport.driver.unregister(self)
        self._settled.wake()
        self.transport.on_crash = None  # no reference cycle
        for each in self._below:
            each.owner = None
        self._below = ()
        afterwards, self._afterwards = self._afterwards, ()
        for function in afterwards:
            function()

    def _step(self, event: Event) -> None:
        self._phase = TRANSITIONS[self._phase, event]
        self.started = True
        leaks.still_open.discard(self)


def checked_timeout(seconds: float) -> float:
    """A timeout as a float.

    Raises:
      TypeError: it is no number.
      ValueError: it is negative or NaN, or more than a float can say.
    """
    if not seconds >= 0:
        raise ValueError(f"a timeout must be >= 0, not {seconds}")
    try:
        return float(seconds)
    except OverflowError:
        raise ValueError("a timeout is too large: use math.inf for one that never ends") from None


def check_farewell(words: object) -> None:
    """What can be said.

    Raises:
      TypeError: it is not bytes.
      ValueError: it is too long.
    """
    if not isinstance(words, bytes | bytearray | memoryview):
        raise TypeError(f"a farewell is bytes, or a function that returns them, not {words!r}")
    if memoryview(words).nbytes > LONGEST_FAREWELL:
        raise ValueError(f"a farewell has {LONGEST_FAREWELL} bytes at most")
