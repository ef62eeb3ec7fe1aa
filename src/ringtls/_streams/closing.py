"""The destructor: how a connection ends, whatever becomes of the tasks that used it.

The ring runs it, by callbacks, and not a task: so it can't be cancelled, and goes on when the
task, or the stream object, is gone. A task may wait for it, and is not needed for it.

    phase      event     next       what is done
    OPEN       CLOSE     FLUSHING   close_notify is queued behind all that was accepted
    OPEN       ABORT     LINGERING  reset
    FLUSHING   FLUSHED   LINGERING  FIN; input is discarded until the peer's FIN or a limit
    FLUSHING   BROKEN    LINGERING  reset: the peer is gone
    FLUSHING   EXPIRED   LINGERING  reset: so that the peer can't mistake it for an end
    FLUSHING   ABORT     LINGERING  reset
    FLUSHING   RELEASED  CLOSED     the run crashed, and its ring reset what it still had
    LINGERING  RELEASED  CLOSED     the socket is closed, nothing is in flight

From LINGERING on the outcome is known, and nobody waits any more. (RFC 8446, section 6.1.)
"""

from __future__ import annotations

import enum
import errno
import logging
import time
import warnings
from typing import TYPE_CHECKING

from .._outcome import CloseOutcome
from . import leaks

if TYPE_CHECKING:
    from .._interfaces import Transport
    from .session import TlsSession

__all__ = [
    "TRANSITIONS",
    "Closing",
    "Event",
    "Phase",
    "checked_timeout",
]

logger = logging.getLogger("ringtls")

#: Seconds that a connection's end may take.
SHUTDOWN_TIMEOUT = 5.0


class Phase(enum.IntEnum):
    OPEN = 0
    FLUSHING = 1
    LINGERING = 2
    CLOSED = 3


class Event(enum.IntEnum):
    CLOSE = 0
    FLUSHED = 1
    BROKEN = 2
    EXPIRED = 3
    ABORT = 4
    RELEASED = 5


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPEN, Event.CLOSE): Phase.FLUSHING,
    (Phase.OPEN, Event.ABORT): Phase.LINGERING,
    (Phase.FLUSHING, Event.FLUSHED): Phase.LINGERING,
    (Phase.FLUSHING, Event.BROKEN): Phase.LINGERING,
    (Phase.FLUSHING, Event.EXPIRED): Phase.LINGERING,
    (Phase.FLUSHING, Event.ABORT): Phase.LINGERING,
    (Phase.FLUSHING, Event.RELEASED): Phase.CLOSED,
    (Phase.LINGERING, Event.RELEASED): Phase.CLOSED,
}

_OUTCOMES = {
    Event.BROKEN: CloseOutcome.PEER_RESET,
    Event.EXPIRED: CloseOutcome.TIMED_OUT,
    Event.ABORT: CloseOutcome.UNCLEAN,
    Event.RELEASED: CloseOutcome.TIMED_OUT,
}


_ENDED_BY_FIN = {
    CloseOutcome.CLEAN,
    CloseOutcome.BEFORE_HANDSHAKE,
    CloseOutcome.AFTER_FATAL_ALERT,
}


class Closing:
    """The end of one connection, from before its start.

    Made with the stream, which it outlives. Holds the run open until the connection is closed.
    """

    __slots__ = (
        "_farewell",
        "_phase",
        "_session",
        "_settled",
        "made_at",
        "outcome",
        "started",
        "timeout",
        "transport",
    )

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._session: TlsSession | None = None
        self.timeout = SHUTDOWN_TIMEOUT
        self.outcome: CloseOutcome | None = None
        self.made_at = leaks.caller()
        self._phase = Phase.OPEN
        self.started = False
        self._farewell = CloseOutcome.CLEAN
        self._settled = transport.driver.wait_queue()
        transport.driver.register(self)
        leaks.still_open.add(self)

    def attach_session(self, session: TlsSession | None, timeout: float) -> None:
        """The connection is TLS from now on (or no longer, with None)."""
        self._session = session
        self.timeout = timeout

    def detach(self) -> None:
        """The connection goes on without this: somebody else sees to its end."""
        self.transport.driver.unregister(self)
        leaks.still_open.discard(self)

    def start(self, timeout: float | None = None) -> None:
        """Begin the end. Later calls do nothing."""
        if self.started:
            return
        self.transport.driver.check_process()
        deadline = time.monotonic() + checked_timeout(self.timeout if timeout is None else timeout)
        self._step(Event.CLOSE)
        self._say_farewell()
        self.transport.begin_close(deadline, self._flushed, self._released)

    def abort(self) -> None:
        """Reset the connection at once. Nothing, if its end is settled already."""
        self.transport.driver.check_process()
        was_open = not self.started
        if self._phase > Phase.FLUSHING:
            return
        self._settle(Event.ABORT)
        if was_open:
            self.transport.begin_close(time.monotonic(), self._flushed, self._released)
        self._end_transport()

    async def wait(self) -> None:
        """Wait until the outcome is known. No cancellation ends this; the timeout does."""
        if self._phase is Phase.FLUSHING:
            await self._settled.wait_uncancellable()
        else:
            await self.transport.driver.uncancellable_checkpoint()

    # Dropped streams

    def drop(self) -> None:
        """The stream was garbage-collected, perhaps in another thread."""
        driver = self.transport.driver
        if not self.started and not driver.is_forked:
            driver.call_soon(self.start_as_orphan)
            self.warn_unclosed()

    def start_as_orphan(self) -> None:
        self.transport.driver.tally.orphans_adopted += 1
        self.start()

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

    # The sequence

    def _say_farewell(self) -> None:
        session = self._session
        if session is None:
            return
        if not session.handshake_done:
            self._farewell = CloseOutcome.BEFORE_HANDSHAKE
        else:
            session.close_output()
            if session.failure is not None and not session.close_notify_sent:
                self._farewell = CloseOutcome.AFTER_FATAL_ALERT
            elif not session.close_notify_sent:
                self._farewell = CloseOutcome.DURING_RENEGOTIATION
        self.transport.enqueue(session.take_output())

    def _flushed(self, error: OSError | None) -> None:
        if self._phase is not Phase.FLUSHING:
            return
        if error is None:
            self._settle(Event.FLUSHED)
        elif error.errno == errno.ETIMEDOUT:
            self._settle(Event.EXPIRED)
        else:
            self._settle(Event.BROKEN)
        self._end_transport()

    def _settle(self, event: Event) -> None:
        self._step(event)
        self.outcome = _OUTCOMES.get(event, self._farewell)
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
        assert self.outcome is not None
        self.transport.driver.tally.closings[self.outcome] += 1
        if self.outcome is not CloseOutcome.CLEAN:
            logger.info("connection to %s ended: %s", self.transport.name, self.outcome.value)

    def _released(self) -> None:
        if self._phase is Phase.FLUSHING:
            self._settle(Event.RELEASED)
        else:
            self._step(Event.RELEASED)
        self.transport.driver.unregister(self)

    def _step(self, event: Event) -> None:
        self._phase = TRANSITIONS[self._phase, event]
        self.started = True
        leaks.still_open.discard(self)


def checked_timeout(seconds: float) -> float:
    """A timeout as it was given.

    Raises:
      ValueError: it is negative or not a number.
    """
    if not seconds >= 0:
        raise ValueError(f"a timeout must be >= 0, not {seconds}")
    return seconds
