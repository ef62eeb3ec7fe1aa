"""relay: what each of two streams says goes to the other, and so does how it ends.

Rules (R1 to R6 of docs/contract.md say what is promised):

1. There are two directions, and the ends are two tables. How a direction ended decides what its
   target gets:

    end           source                                  target
    ORDERLY       close_notify, or FIN of a plain one     END        close_notify, or FIN
    RESET         RST, or the network is gone             BREAK_OFF  what came, then a reset
    TRUNCATED     FIN without close_notify                BREAK_OFF  what came, then a reset
    TLS_ERROR     no TLS, or a fatal alert                BREAK_OFF  what came, then a reset
    UNDELIVERED   goes on, or was cut                     BREAK_OFF  takes no more itself
    TIMED_OUT     said nothing, and so did the target     RESET      a reset, at once
    CANCELLED     whatever                                RESET      a reset, at once
    CRASHED       something raised in here                RESET      a reset, at once

2. After ORDERLY the other direction goes on. With a broken source it can't: that is then
   UNDELIVERED. Where only the target broke, its input has yet to tell how: a backend may have
   answered, and ended, before it was asked all. Until then the source is read and what it says is
   thrown away, because a peer that is blocked in a send reads no answer.
3. When both directions have ended, both connections end, each as the direction into it did. From
   then on that is Closing's, which is bounded.
4. All is done in callbacks of the transports. What has come is passed on in the call that brings
   it; everything else is looked at anew whenever something has changed. The task only waits.
5. A target that has HIGH_WATER bytes to send is full, until less than LOW_WATER are left. Nothing
   is read for it meanwhile, so that TCP slows the source. What is on its way then is taken.
6. What raises in a callback ends both directions (rule C16).
"""

from __future__ import annotations

import enum
import errno
import ssl
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import trio
from trio.lowlevel import enable_ki_protection

from .._errors import TruncationError
from .._outcome import CloseOutcome
from .._transports.base import HIGH_WATER, RECEIVE_SIZE
from .closing import checked_timeout
from .socket import SocketStream
from .tls import ANSWER_LIMIT, TlsStream, give_back, take_over

if TYPE_CHECKING:
    from .._interfaces import Transport
    from .closing import Closing
    from .session import TlsSession

__all__ = ["ANSWERS", "Answer", "RelayDirection", "RelayEnd", "RelayOutcome", "relay"]

Data = bytes | bytearray | memoryview

#: Unsent bytes below which a target that was full is not full any more.
LOW_WATER = HIGH_WATER // 2

#: How often in its time an idle relay looks whether it is idle.
LOOKS = 4

#: What a peer's end is when nothing more can be sent to it after that.
_ENDED_IN_ORDER = {
    CloseOutcome.CLEAN,
    CloseOutcome.UNACKNOWLEDGED,
    CloseOutcome.BEFORE_HANDSHAKE,
}


class RelayEnd(enum.Enum):
    """How one direction of a relay ended."""

    ORDERLY = "orderly"
    """The source ended in order, by close_notify, or by FIN if it has no TLS, and so did the
    target's side."""

    RESET = "reset"
    """The source's connection broke: its peer, or the network, did that."""

    TRUNCATED = "truncated"
    """The source's connection ended without close_notify."""

    TLS_ERROR = "TLS error"
    """The source broke TLS, or sent a fatal alert."""

    UNDELIVERED = "undelivered"
    """The target broke, or did not take in the rest in its shutdown timeout. The source may have
    had more to say."""

    TIMED_OUT = "timed out"
    """Nothing was said in either direction for ``idle_timeout`` seconds."""

    CANCELLED = "cancelled"
    """The relay was cancelled or interrupted."""

    CRASHED = "crashed"
    """Something raised inside ringtls, as where memory is short."""


class Answer(enum.Enum):
    """What becomes of a target when the direction to it has ended."""

    END = enum.auto()
    BREAK_OFF = enum.auto()
    RESET = enum.auto()


ANSWERS = {
    RelayEnd.ORDERLY: Answer.END,
    RelayEnd.RESET: Answer.BREAK_OFF,
    RelayEnd.TRUNCATED: Answer.BREAK_OFF,
    RelayEnd.TLS_ERROR: Answer.BREAK_OFF,
    RelayEnd.UNDELIVERED: Answer.BREAK_OFF,
    RelayEnd.TIMED_OUT: Answer.RESET,
    RelayEnd.CANCELLED: Answer.RESET,
    RelayEnd.CRASHED: Answer.RESET,
}


@dataclass(frozen=True, slots=True)
class RelayDirection:
    """What became of one direction of a relay."""

    bytes: int
    """Bytes that were passed on, without TLS around them."""

    end: RelayEnd

    reason: str | None = None
    """What the kernel, or OpenSSL, calls the error: "ECONNRESET", "HTTP_REQUEST"."""


@dataclass(frozen=True, slots=True)
class RelayOutcome:
    """What ``relay(a, b)`` has passed on, and how each direction ended."""

    a_to_b: RelayDirection
    b_to_a: RelayDirection

    @property
    def is_orderly(self) -> bool:
        """True if both directions ended in order."""
        return self.a_to_b.end is self.b_to_a.end is RelayEnd.ORDERLY


class _BrokenError(Exception):
    """A source has ended, but not in order."""

    def __init__(self, end: RelayEnd, reason: str | None) -> None:
        self.end = end
        self.reason = reason


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


class _Side:
    """A stream without TLS, as one side of a relay."""

    __slots__ = ("_input_ended", "closing", "into", "out_of", "relay", "transport")

    into: _Direction
    out_of: _Direction

    def __init__(self, relay: _Relay, transport: Transport, closing: Closing) -> None:
        self.relay = relay
        self.transport = transport
        self.closing = closing
        self._input_ended = False

    def start(self) -> None:
        """Pass on what comes, from now on."""
        self.transport.pass_on(self.take, self._end_input, self.relay.look)

    def take(self, view: Data) -> None:
        """The sink: what has come goes to the other side."""
        direction = self.out_of
        if not self.relay.begin():
            return
        try:
            direction.deliver(view, lent=True)
            if direction.is_held_up():
                self.transport.pause()
            self.relay.end()
        except BaseException as failure:
            self.relay.crash(failure)

    def _end_input(self) -> None:
        self._input_ended = True

    def read(self, max_bytes: int) -> bytes | memoryview | None:
        """What has come and was not passed on; b"" at the end, None if that is nothing yet.

        Raises:
          _BrokenError: the input broke, and all that came before was read.
        """
        data = self.transport.receive_now(max_bytes)
        if data or self._input_ended:
            return data
        self.check_input()
        return None

    def check_input(self) -> None:
        error = self.transport.input_error
        if error is not None:
            raise _BrokenError(RelayEnd.RESET, _name(error))

    @property
    def is_broken(self) -> bool:
        """True if nothing can be sent any more."""
        return self.transport.error is not None

    @property
    def unsent(self) -> int:
        return self.transport.unsent

    @property
    def is_full(self) -> bool:
        """True if it takes no more at present; ``relay.look`` is called when that changes."""
        return self.unsent >= HIGH_WATER and self.transport.has_unsent(LOW_WATER)

    @property
    def answers_too_much(self) -> bool:
        return False

    @property
    def has_nothing_more(self) -> bool:
        """True if ``read`` would only find that nothing else has come, and that more will be told
        of."""
        return self.transport.is_receiving

    def write(self, data: Data, *, lent: bool = False) -> None:
        """Send it. What is lent is there for this call only."""
        self.transport.enqueue(bytes(data) if lent or isinstance(data, bytearray) else data)

    def half_close(self) -> None:
        """End what is sent, in order."""
        self.transport.half_close()

    def go_on(self) -> None:
        """Do what had to wait for the peer."""

    def close(self, answer: Answer) -> None:
        if answer is Answer.RESET:
            self.closing.abort()
        else:
            self.closing.reset_on_error = answer is Answer.BREAK_OFF
            self.closing.start(after_error=True)


class _TlsSide(_Side):
    """The same with TLS. What can't be encrypted yet, as before the handshake, is held."""

    __slots__ = ("_answered", "_half_closes", "_held", "_session")

    def __init__(
        self, relay: _Relay, transport: Transport, closing: Closing, session: TlsSession
    ) -> None:
        super().__init__(relay, transport, closing)
        self._session = session
        self._held: list[bytes] = []
        self._half_closes = False
        self._answered = 0  # bytes that TLS itself has said since less than HIGH_WATER was unsent

    def _end_input(self) -> None:
        super()._end_input()
        self._session.feed_end()

    def take(self, view: Data) -> None:
        if not self.relay.begin():
            return
        try:
            if not self.out_of.source_ended:
                self._session.feed(view)
                self.out_of.step()
                if self._held or self._half_closes:
                    self.relay.again = True
            self.relay.end()
        except BaseException as failure:
            self.relay.crash(failure)

    def read(self, max_bytes: int) -> bytes | memoryview | None:
        session = self._session
        try:
            while True:
                if session.handshake_done or self._shake_hands():
                    data = session.read(max_bytes)
                    if data is not None:
                        return data
                    if session.has_ciphertext:  # rule 6 of session.py
                        self._answer()
                        if self.answers_too_much:
                            return None
                        continue
                had_ended = self._input_ended
                received = self._receive_more()
                if received == RECEIVE_SIZE and session.handshake_done:  # and there may be more
                    much = self._read_much(max_bytes)
                    if much:
                        return much
                elif not received and self._input_ended is had_ended:
                    self.check_input()
                    return None
        except (TruncationError, ssl.SSLEOFError):
            self.check_input()
            raise _BrokenError(RelayEnd.TRUNCATED, None) from None
        except ssl.SSLError as error:
            raise _BrokenError(RelayEnd.TLS_ERROR, error.reason or str(error)) from None
        finally:
            if session.has_output:
                self._answer()

    def _read_much(self, max_bytes: int) -> memoryview:
        """What has come, and what comes without waiting: put where it stays until it is sent, so
        that nothing is copied to be put together. Empty where ``read`` can tell why."""
        session = self._session
        memory = memoryview(bytearray(max_bytes))
        filled = 0
        with suppress(trio.BrokenResourceError, ssl.SSLError):  # which come again
            while filled < max_bytes:
                count = session.read(max_bytes - filled, memory[filled:])
                if count:
                    filled += count
                elif count == 0 or session.has_output or not self._receive_more():
                    break
        return memory[:filled]

    def _receive_more(self) -> int:
        """Have the session what can be received without waiting. Returns how much that is."""
        ciphertext = self.transport.receive_now(RECEIVE_SIZE)
        if ciphertext:
            self._session.feed(ciphertext)
        return len(ciphertext)

    def _shake_hands(self) -> bool:
        session = self._session
        if not session.handshake():
            return False
        self.relay.again = True
        if not (session.has_last_word or session.has_ciphertext or self.unsent):
            self.transport.acknowledge()
        return True

    def _answer(self) -> None:
        output = self._session.take_output()
        self.transport.enqueue(output)
        if self.transport.unsent < HIGH_WATER:
            self._answered = 0
        else:
            self._answered += len(output)

    @property
    def answers_too_much(self) -> bool:
        """True if the peer has TLS answer, and takes in nothing (rule C19)."""
        if self._answered < ANSWER_LIMIT:
            return False
        if self.transport.has_unsent(HIGH_WATER):
            return True
        self._answered = 0
        return False

    @property
    def has_nothing_more(self) -> bool:
        session = self._session
        return (
            session.has_nothing_buffered
            and not session.has_ciphertext
            and self.transport.is_receiving
        )

    @property
    def is_full(self) -> bool:
        return self.unsent >= HIGH_WATER if self._held else super().is_full

    @property
    def is_broken(self) -> bool:
        return super().is_broken or self._session.failure is not None

    @property
    def unsent(self) -> int:
        held = sum(map(len, self._held)) if self._held else 0
        return self.transport.unsent + held

    def write(self, data: Data, *, lent: bool = False) -> None:
        session = self._session
        try:
            if self._held or not session.handshake_done or not session.write(data):
                self._held.append(bytes(data))
        except ssl.SSLError:
            pass  # ``is_broken``, and the next read says why
        finally:
            if session.has_output:
                self.transport.enqueue(session.take_output())

    def half_close(self) -> None:
        self._half_closes = True
        self.go_on()

    def go_on(self) -> None:
        session = self._session
        if not session.handshake_done:
            return
        if self._held:
            held, self._held = self._held, []
            for data in held:
                self.write(data)
        if self._half_closes and not self._held:
            session.close_output(keep_unread=True)
            self._half_closes = not session.close_notify_sent
            if session.has_output:
                self.transport.enqueue(session.take_output())

    def close(self, answer: Answer) -> None:
        if answer is Answer.BREAK_OFF and self._session.failure is not None:
            answer = Answer.END  # by the alert that says why (rule C5)
        elif answer is Answer.END and self._held:
            answer = Answer.BREAK_OFF
        super().close(answer)


class _Direction:
    """What one side says to the other."""

    __slots__ = ("bytes", "end", "reason", "source", "source_ended", "target")

    def __init__(self, source: _Side, target: _Side) -> None:
        self.source = source
        self.target = target
        self.bytes = 0
        self.end: RelayEnd | None = None
        self.reason: str | None = None
        self.source_ended = False
        source.out_of = target.into = self

    def deliver(self, data: Data, *, lent: bool = False) -> None:
        if self.end is None:
            self.bytes += len(data)
            self.target.write(data, lent=lent)

    def is_held_up(self) -> bool:
        if self.source.answers_too_much:
            return True
        return self.end is None and self.target.is_full

    def step(self) -> None:
        """Pass on what has come, as far as there is room."""
        source, target = self.source, self.target
        while not self.source_ended:
            if self.is_held_up():
                source.transport.pause()
                return
            room = HIGH_WATER - target.unsent if self.end is None else HIGH_WATER
            try:
                data = source.read(room)
            except _BrokenError as broken:
                self.source_ended = True
                self.finish(broken.end, broken.reason)
                source.into.finish(RelayEnd.UNDELIVERED)
                return
            if data:
                self.deliver(data)
                if source.has_nothing_more:
                    return
            elif data is not None:
                self.source_ended = True
                if self.finish(RelayEnd.ORDERLY):
                    target.half_close()
            elif not source.answers_too_much:
                source.transport.resume()
                return

    def look(self) -> None:
        """Something has changed: go on, and see whether this has ended."""
        self.target.go_on()
        self.step()
        if self.target.is_broken:
            self.finish(RelayEnd.UNDELIVERED)
        if self.source_ended and self.source.transport.input_error is not None:
            self.source.into.finish(RelayEnd.UNDELIVERED)

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


class _Relay:
    """Both directions."""

    __slots__ = ("_changed", "_directions", "_driver", "_sides", "again", "busy", "over")

    def __init__(self, a: _Taken, b: _Taken) -> None:
        self._driver = a.transport.driver
        self._changed = self._driver.wait_queue()
        self._sides = side_a, side_b = self._side(a), self._side(b)
        self._directions = _Direction(side_a, side_b), _Direction(side_b, side_a)
        self.busy = False
        self.again = False  # something has changed while busy
        self.over = False  # both directions have ended

    def _side(self, taken: _Taken) -> _Side:
        if taken.session is None:
            return _Side(self, taken.transport, taken.closing)
        return _TlsSide(self, taken.transport, taken.closing, taken.session)

    # Rule 4

    def begin(self) -> bool:
        """A callback begins. False if there is nothing to do any more."""
        if self.over:
            return False
        self.busy = True
        return True

    def end(self) -> None:
        self.busy = False
        if self.again:
            self.look()

    def look(self) -> None:
        """Look at everything; called where something may have changed. Never raises."""
        if self.busy:
            self.again = True
            return
        if not self.begin():
            return
        try:
            self.again = True
            while self.again and not self.over:
                self.again = False
                for direction in self._directions:
                    direction.look()
                for side in self._sides:
                    self._notice_close(side)
                if all(direction.end for direction in self._directions):
                    self._close()
            self.busy = False
        except BaseException as failure:
            self.crash(failure)

    def _notice_close(self, side: _Side) -> None:
        """Somebody else may have closed it: its owner, or an exception (rule C16)."""
        if side.closing.started:
            crashed = side.closing.outcome is CloseOutcome.CRASHED
            side.out_of.finish(RelayEnd.CRASHED if crashed else RelayEnd.CANCELLED)
            side.into.finish(RelayEnd.UNDELIVERED)

    # The end

    def _close(self) -> None:
        """Rule 3."""
        self.over = True
        for side in self._sides:
            assert side.into.end is not None
            side.close(ANSWERS[side.into.end])
        self._changed.wake()

    def cut(self, end: RelayEnd) -> None:
        """End both directions here and now (rule R5)."""
        if self.over:
            return
        for direction in self._directions:
            direction.finish(end)
        try:
            self._close()
        except BaseException as failure:
            self.crash(failure)

    def crash(self, failure: BaseException) -> None:
        """Rule 6."""
        self.over = True
        for direction in self._directions:
            direction.finish(RelayEnd.CRASHED)
        for side in self._sides:
            with suppress(BaseException):  # it has done what can be done
                side.closing.crash(failure)
        self._changed.wake()

    # The task

    async def run(self, idle_timeout: float | None) -> RelayOutcome:
        try:
            for side in self._sides:
                side.start()
            self.look()
            await self._wait(idle_timeout)
        except trio.Cancelled:
            self.cut(RelayEnd.CANCELLED)  # the cancellation comes out at the next checkpoint
        for side in self._sides:
            await side.closing.wait()
        a_to_b, b_to_a = self._directions
        return RelayOutcome(a_to_b.result(), b_to_a.result())

    async def _wait(self, idle_timeout: float | None) -> None:
        if idle_timeout is None:
            while not self.over:
                await self._changed.wait()
            return
        seen, times = self._moved(), 0
        while not self.over:
            await self._driver.wait_at_most(self._changed, idle_timeout / LOOKS)
            last, seen = seen, self._moved()
            times = times + 1 if seen == last else 0
            if times == LOOKS:
                self.cut(RelayEnd.TIMED_OUT)

    def _moved(self) -> tuple[int, ...]:
        """Something that changes when a byte comes or goes."""
        for side in self._sides:
            side.transport.has_unsent(1)
        return (
            *(direction.bytes for direction in self._directions),
            *(side.unsent for side in self._sides),
        )


class _Taken(NamedTuple):
    """A stream's connection, while the stream may not be used."""

    stream: trio.abc.Stream
    transport: Transport
    closing: Closing
    session: TlsSession | None

    @classmethod
    def out_of(cls, stream: trio.abc.Stream) -> _Taken:
        if isinstance(stream, TlsStream):
            return cls(stream, *stream._release_to_relay())
        if isinstance(stream, trio.abc.Stream):
            return cls(stream, *take_over(stream), None)
        raise TypeError(f"relay needs streams of trio's interface, not {stream!r}")

    def give_back(self) -> None:
        if isinstance(self.stream, TlsStream):
            self.stream._is_owner = True
        else:
            give_back(self.stream, self.transport, self.closing)


def _take_both(a: trio.abc.Stream, b: trio.abc.Stream) -> _Relay:
    if a is b:
        raise ValueError("can't relay a stream to itself")
    first = _Taken.out_of(a)
    try:
        second = _Taken.out_of(b)
        if first.transport.driver is not second.transport.driver:
            second.give_back()
            raise ValueError("both streams must belong to one trio run, or one thread")
        return _Relay(first, second)
    except BaseException:
        first.give_back()
        raise


@enable_ki_protection
async def relay(
    a: trio.abc.Stream, b: trio.abc.Stream, *, idle_timeout: float | None = None
) -> RelayOutcome:
    """Pass on what each of two streams says to the other, and how it ends, until both have ended.

    An orderly end, by close_notify or by FIN of a stream without TLS, becomes an orderly end of
    the other stream's output, and the other direction goes on. What is not an orderly end never
    becomes one: what came before it is delivered, and then the other connection is reset. A
    handshake that has not happened yet is made. Streams on the ring are relayed without a task
    step for a piece.

    Both streams belong to the relay from the call on, and are ended when this returns or raises.
    It raises nothing that a peer does. What was not delivered ``shutdown_timeout`` seconds after
    both directions have ended (of a TlsStream its own) is given up, and that connection reset.

    If this is cancelled, both connections are reset, but for one whose direction had ended before;
    then it returns, and the cancellation comes out at the next checkpoint.

    Args:
      a: a TlsStream, a SocketStream, or any other stream of trio's interface.
      b: another one, of the same trio run.
      idle_timeout: seconds (and up to a quarter more) after which both are reset if meanwhile
        nothing was received from either or sent to either. None: they may be idle for ever.

    Raises:
      TypeError, ValueError: these can't be relayed. Nothing has happened to them.
      trio.ClosedResourceError: one is closed, or its ``send_eof`` was called; likewise.
      trio.BusyResourceError: a task uses one; likewise.
    """
    if idle_timeout is not None:
        checked_timeout(idle_timeout)
    both = _take_both(a, b)
    try:
        with ExitStack() as stack:
            for stream in (a, b):
                if isinstance(stream, SocketStream | TlsStream):
                    stack.enter_context(stream._sending)
                    stack.enter_context(stream._receiving)
            return await both.run(idle_timeout)
    except BaseException:
        both.cut(RelayEnd.CANCELLED)
        raise
