"""The two directions of a relay, and the callbacks that drive them.

1. After ORDERLY the other direction goes on. With a broken source it can't: that is then
   UNDELIVERED. Where only the target broke, its input has yet to tell how: a backend may have
   answered, and ended, before it was asked all. Until then the source is read and what it says is
   thrown away, because a peer that is blocked in a send reads no answer.
2. When both directions have ended, both connections end, each as the direction into it did. From
   then on that is Closing's, which is bounded. Where an idle timeout bounds the relay, a connection
   does not end before all is sent to it that came before an orderly end: a peer that is not idle
   may be slow with it. Nor while it still has something to say, before its TCP has acknowledged
   that: to close over what it says would destroy the rest. The other one does not wait for that.
3. All is done in callbacks of the transports. What has come is passed on in the call that brings
   it; everything else is looked at anew whenever something has changed. The task only waits.
4. While a target is full nothing is read for it, so that TCP slows the source. What is on its way
   then is taken.
5. A callback passes on MOST_AT_ONCE bytes, and then lets others have their turn: a source and a
   target that are as fast as this would keep the loop for as long as there is something to say.
6. What raises in a callback ends both directions (rule C16).
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from .._outcome import CloseOutcome
from .._transports.base import ANSWER_LIMIT, HIGH_WATER
from .relay_ends import ANSWERS, RelayDirection, RelayEnd
from .relay_sides import BrokenError, Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._interfaces import Driver
    from .relay_sides import Data

__all__ = ["Direction", "Relay"]

#: Bytes; see rule 5.
MOST_AT_ONCE = 4 * HIGH_WATER

#: What a peer's end is when nothing more can be sent to it after that.
_ENDED_IN_ORDER = {
    CloseOutcome.CLEAN,
    CloseOutcome.UNACKNOWLEDGED,
    CloseOutcome.BEFORE_HANDSHAKE,
}


class Direction:
    """What one side says to the other."""

    __slots__ = ("bytes", "end", "reason", "source", "source_ended", "target", "thrown_away")

    def __init__(self, source: Side, target: Side) -> None:
        self.source = source
        self.target = target
        self.bytes = 0
        self.thrown_away = 0
        self.end: RelayEnd | None = None
        self.reason: str | None = None
        self.source_ended = False
        source.out_of = target.into = self

    def deliver(self, data: Data, *, lent: bool = False) -> None:
        if self.end is None:
            self.bytes += len(data)
            self.target.write(data, lent=lent)
        else:
            self.thrown_away += len(data)

    def room(self) -> int:
        """Bytes that may be read from the source; 0 if it is held up. Asked for each piece, so
        what is mostly false is not called."""
        source, target = self.source, self.target
        if source.transport.answered >= ANSWER_LIMIT and source.transport.answers_too_much():
            return 0
        if self.end is not None:
            return HIGH_WATER
        room = HIGH_WATER - target.unsent()
        if room > 0:
            return room
        return 0 if target.is_full() else HIGH_WATER - target.unsent()

    def step(self) -> None:
        """Pass on what has come, as far as there is room."""
        source, target = self.source, self.target
        moved = 0
        while not self.source_ended:
            room = self.room()
            if not room:
                source.transport.pause()
                return
            if moved >= MOST_AT_ONCE:
                source.relay.look_soon()
                return
            try:
                data = source.read(room)
            except BrokenError as broken:
                self.source_ended = True
                self.finish(broken.end, broken.reason)
                source.into.finish(RelayEnd.UNDELIVERED)
                return
            if data:
                moved += len(data)
                self.deliver(data)
                if source.has_nothing_more():
                    return
            elif data is not None:
                self.source_ended = True
                if self.finish(RelayEnd.ORDERLY):
                    target.half_close()
            elif not source.transport.answers_too_much():
                source.transport.resume()
                return

    def look(self) -> None:
        """Something has changed: go on, and see whether this has ended."""
        source, target = self.source, self.target
        target.go_on()
        if not (self.source_ended or source.has_nothing_more()):
            self.step()
        if target.is_broken():
            self.finish(RelayEnd.UNDELIVERED)
        if self.source_ended and source.transport.input_error is not None:
            source.into.finish(RelayEnd.UNDELIVERED)

    def finish(self, end: RelayEnd, reason: str | None = None) -> bool:
        """It ends so. False if it has ended before."""
        if self.end is not None:
            return False
        self.end = end
        self.reason = reason
        self.source.relay.again = True
        return True

    def result(self) -> RelayDirection:
        """What became of it, when the target's end is known."""
        assert self.end is not None
        outcome = self.target.closing.outcome
        if self.end is RelayEnd.ORDERLY and outcome not in _ENDED_IN_ORDER:
            reason = None if outcome is None else outcome.value
            return RelayDirection(self.bytes, RelayEnd.UNDELIVERED, reason)
        return RelayDirection(self.bytes, self.end, self.reason)


class Relay:
    """Both directions."""

    __slots__ = (
        "again",
        "awaited",
        "busy",
        "changed",
        "directions",
        "driver",
        "is_timed",
        "over",
        "sides",
    )

    def __init__(self, driver: Driver, a: Side, b: Side, *, is_timed: bool) -> None:
        self.driver = driver
        self.is_timed = is_timed  # it will be cut when it is idle (rule 2)
        self.changed = driver.wait_queue()
        self.sides = a, b
        self.directions = Direction(a, b), Direction(b, a)
        a.relay = b.relay = self
        self.busy = False
        self.again = False  # something has changed while busy
        self.over = False  # both directions have ended
        self.awaited: dict[Side, bool] = {}  # until its TCP has acknowledged, or is gone

    def start(self) -> None:
        """Pass on what comes, from now on."""
        for side in self.sides:
            side.start()
        self.look()

    # Rule 3

    def look(self) -> None:
        """Look at everything; called where something may have changed. Never raises."""
        if self.busy:
            self.again = True
            return
        if self.over:
            return
        try:
            self.busy = True
            self.again = True
            self._look_until_settled()
            self.busy = False
        except BaseException as failure:
            self.crash(failure)

    def _look_until_settled(self) -> None:
        while self.again and not self.over:
            self.again = False
            for direction in self.directions:
                direction.look()
            for side in self.sides:
                if side.closing.started:
                    self._notice_close(side)
            a_to_b, b_to_a = self.directions
            if a_to_b.end and b_to_a.end:
                self._close([each for each in self.sides if not self._is_delivering(each)])

    def look_soon(self) -> None:
        """Look when others have had their turn."""
        self.driver.call_soon(self.look)

    def _notice_close(self, side: Side) -> None:
        """Somebody else has closed it: its owner, or an exception (rule C16)."""
        crashed = side.closing.outcome is CloseOutcome.CRASHED
        side.out_of.finish(RelayEnd.CRASHED if crashed else RelayEnd.CANCELLED)
        side.into.finish(RelayEnd.UNDELIVERED)

    # The end

    def _is_delivering(self, side: Side) -> bool:
        """True if it has time to take in what came before an orderly end (rule 2), and has not yet;
        ``look`` is called when that changes."""
        if (
            not self.is_timed
            or side.into.end is not RelayEnd.ORDERLY
            or side.is_broken()
            or side.closing.started
        ):
            return False
        return side.transport.has_unsent(1) or self._is_unacknowledged(side)

    def _is_unacknowledged(self, side: Side) -> bool:
        if side.out_of.source_ended or not side.transport.unacknowledged():
            return False
        if side not in self.awaited:
            self.awaited[side] = True
            side.transport.await_delivery(math.inf, partial(self._acknowledged, side))
        return self.awaited[side]

    def _acknowledged(self, side: Side) -> None:
        self.awaited[side] = False
        self.look()

    def _close(self, sides: Sequence[Side]) -> None:
        """Rule 2. Both are closed in the end; a second time is none."""
        self.over = len(sides) == len(self.sides)
        for side in sides:
            assert side.into.end is not None
            side.close(ANSWERS[side.into.end])
        if self.over:
            self.changed.wake()

    def cut(self, end: RelayEnd) -> None:
        """End both directions here and now (rule R5)."""
        if self.over:
            return
        for direction in self.directions:
            direction.finish(end)
        try:
            self._close(self.sides)
        except BaseException as failure:
            self.crash(failure)

    def time_out(self) -> None:
        """Nothing has moved for too long."""
        self.cut(RelayEnd.TIMED_OUT)

    def crash(self, failure: BaseException) -> None:
        """Rule 6."""
        self.over = True
        for direction in self.directions:
            direction.finish(RelayEnd.CRASHED)
        for side in self.sides:
            with suppress(BaseException):  # it has done what can be done
                side.closing.crash(failure)
        self.changed.wake()

    def moved(self) -> tuple[int, ...]:
        """Something that changes when a byte comes or goes, or is taken in by a peer's kernel: ours
        may hold megabytes for one that takes them in slowly."""
        figures = [direction.bytes + direction.thrown_away for direction in self.directions]
        for side in self.sides:
            side.transport.has_unsent(1)  # which updates what is unsent
            figures += side.unsent(), side.transport.unacknowledged()
        return tuple(figures)
