"""A side of a relay: a stream with its task gone, to be read from and written to by callbacks.

1. What has come goes to the other side in the call that brings it, by the side's sink. The rest
   of its events only make the relay look at everything anew (relay_directions.py).
2. Nothing in here waits. ``read`` and ``write`` do what can be done now; a side of TLS holds what
   it is given before its handshake is done.
3. A target that has HIGH_WATER bytes to send is full, until less than LOW_WATER are left.
4. A source with TLS whose piece has filled a buffer of the pool may fill them all, before it can be
   told that its target is full. So it is paused at once, and the rest of what has come is received
   as there is room for it.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from .._errors import TruncationError
from .._transports.base import HIGH_WATER, RECEIVE_SIZE
from .relay_ends import Answer, RelayEnd

if TYPE_CHECKING:
    from .._interfaces import Transport
    from .closing import Closing
    from .session import TlsSession

__all__ = ["BrokenError", "Side", "TlsSide"]

Data = bytes | bytearray | memoryview

#: Unsent bytes below which a target that was full is not full any more.
LOW_WATER = HIGH_WATER // 2


class BrokenError(Exception):
    """A source has ended, but not in order."""

    def __init__(self, end: RelayEnd, reason: str | None) -> None:
        self.end = end
        self.reason = reason


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


class DirectionLike(Protocol):
    """What a side knows of a direction (relay_directions.py)."""

    source_ended: bool
    end: RelayEnd | None

    def deliver(self, data: Data, *, lent: bool = False) -> None: ...

    def room(self) -> int: ...

    def step(self) -> None: ...

    def finish(self, end: RelayEnd, reason: str | None = None) -> bool: ...


class RelayLike(Protocol):
    """What a side knows of its relay (relay_directions.py)."""

    over: bool
    busy: bool
    again: bool

    def look(self) -> None: ...

    def look_soon(self) -> None: ...

    def crash(self, failure: BaseException) -> None: ...


class Side:
    """A stream without TLS, as one side of a relay."""

    __slots__ = ("_input_ended", "closing", "into", "out_of", "relay", "transport")

    relay: RelayLike
    into: DirectionLike
    out_of: DirectionLike

    def __init__(self, transport: Transport, closing: Closing) -> None:
        self.transport = transport
        self.closing = closing
        self._input_ended = False

    def start(self) -> None:
        """Pass on what comes, from now on."""
        self.transport.pass_on(self.take, self._end_input, self.relay.look)

    def take(self, view: Data) -> None:
        """The sink: what has come goes to the other side."""
        relay, direction = self.relay, self.out_of
        if relay.over:
            return
        try:
            relay.busy = True
            direction.deliver(view, lent=True)
            if not direction.room():
                self.transport.pause()
            relay.busy = False
            if relay.again:
                relay.look()
        except BaseException as failure:
            relay.crash(failure)

    def _end_input(self) -> None:
        self._input_ended = True

    def read(self, max_bytes: int) -> bytes | memoryview | None:
        """What has come and was not passed on; b"" at the end, None if that is nothing yet.

        Raises:
          BrokenError: the input broke, and all that came before was read.
        """
        data = self.transport.receive_now(max_bytes)
        if data or self._input_ended:
            return data
        self.check_input()
        return None

    def check_input(self) -> None:
        error = self.transport.input_error
        if error is not None:
            raise BrokenError(RelayEnd.RESET, _name(error))

    def is_broken(self) -> bool:
        """True if nothing can be sent any more."""
        return self.transport.error is not None

    def unsent(self) -> int:
        return self.transport.unsent

    def is_full(self) -> bool:
        """True if it takes no more at present; ``relay.look`` is called when that changes."""
        return self.unsent() >= HIGH_WATER and self.transport.has_unsent(LOW_WATER)

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


class TlsSide(Side):
    """The same with TLS. What can't be encrypted yet, as before the handshake, is held."""

    __slots__ = ("_half_closes", "_held", "_session")

    def __init__(self, transport: Transport, closing: Closing, session: TlsSession) -> None:
        super().__init__(transport, closing)
        self._session = session
        self._held: list[bytes] = []
        self._half_closes = False

    def _end_input(self) -> None:
        super()._end_input()
        self._session.feed_end()

    def take(self, view: Data) -> None:
        relay, direction = self.relay, self.out_of
        if relay.over:
            return
        try:
            relay.busy = True
            if not direction.source_ended:
                if len(view) == RECEIVE_SIZE:  # rule 4
                    self.transport.pause()
                self._session.feed(view)
                direction.step()
            relay.busy = False
            if relay.again or self._held or self._half_closes:
                relay.look()
        except BaseException as failure:
            relay.crash(failure)

    def read(self, max_bytes: int) -> bytes | memoryview | None:
        session = self._session
        try:
            had_ended = self._input_ended
            while True:
                if session.handshake_done or self._shake_hands():
                    data = session.read(max_bytes)
                    if data is not None:
                        return data
                    if session.has_ciphertext:  # rule 6 of session.py
                        self.transport.answer(session.take_output())
                        if self.transport.answers_too_much():
                            return None
                        continue
                received = self._receive_more()
                if received == RECEIVE_SIZE and session.handshake_done:  # and there may be more
                    much = self._read_much(max_bytes)
                    if much:
                        return much
                elif not received and self._input_ended is had_ended:
                    self.check_input()
                    return None
                had_ended = self._input_ended
        except (TruncationError, ssl.SSLEOFError):
            self.check_input()
            raise BrokenError(RelayEnd.TRUNCATED, None) from None
        except ssl.SSLError as error:
            raise BrokenError(RelayEnd.TLS_ERROR, error.reason or str(error)) from None
        finally:
            if session.output:
                self.transport.answer(session.take_output())

    def _read_much(self, max_bytes: int) -> memoryview:
        """What has come, and what comes without waiting: put where it stays until it is sent, so
        that nothing is copied to be put together. Empty where ``read`` can tell why."""
        session = self._session
        memory = memoryview(bytearray(max_bytes))
        filled = 0
        with suppress(trio.BrokenResourceError, ssl.SSLError):  # which come again
            while True:
                if filled == max_bytes:
                    break
                count = session.read(max_bytes - filled, memory[filled:])
                if not count and (count == 0 or session.output or not self._receive_more()):
                    break
                filled += count or 0
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
        if not (session.has_last_word or session.has_ciphertext or self.unsent()):
            self.transport.acknowledge()
        return True

    def has_nothing_more(self) -> bool:
        session = self._session
        return (
            session.has_nothing_buffered
            and not session.has_ciphertext
            and self.transport.is_receiving
        )

    def is_full(self) -> bool:
        return self.unsent() >= HIGH_WATER if self._held else super().is_full()

    def is_broken(self) -> bool:
        return self.transport.error is not None or self._session.failure is not None

    def unsent(self) -> int:
        unsent = self.transport.unsent
        return unsent + sum(map(len, self._held)) if self._held else unsent

    def write(self, data: Data, *, lent: bool = False) -> None:
        session = self._session
        try:
            if self._held or not session.handshake_done or not session.write(data):
                self._held.append(bytes(data))
        except ssl.SSLError:
            pass  # ``is_broken``, and the next read says why
        finally:
            if session.output:
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
            if session.output:
                self.transport.enqueue(session.take_output())

    def close(self, answer: Answer) -> None:
        if answer is Answer.BREAK_OFF and self._session.failure is not None:
            answer = Answer.END  # by the alert that says why (rule C5)
        elif answer is Answer.END and self._held:
            answer = Answer.BREAK_OFF
        super().close(answer)
