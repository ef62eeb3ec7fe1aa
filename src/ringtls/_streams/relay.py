"""relay: what each of two streams says goes to the other, and so does how it ends.

R1 to R6 of docs/contract.md say what is promised. A relay takes both connections from their
streams; then callbacks do the work (relay_directions.py), and the task only waits until both
connections have ended.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio
from trio.lowlevel import enable_ki_protection

from .below import give_back, take_over
from .closing import checked_timeout
from .relay_directions import Relay
from .relay_ends import RelayEnd, RelayOutcome
from .relay_sides import Side, TlsSide
from .socket import SocketStream
from .tls import TlsStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._interfaces import Transport
    from .closing import Closing
    from .session import TlsSession

__all__ = ["relay", "relay_watched"]

#: How often in its time an idle relay looks whether it is idle.
LOOKS = 4


class _Taken(NamedTuple):
    """A stream's connection, while the stream may not be used."""

    stream: trio.abc.Stream
    transport: Transport
    closing: Closing
    session: TlsSession | None

    @classmethod
    def out_of(cls, stream: trio.abc.Stream) -> _Taken:
        if type(stream) is TlsStream:
            return cls(stream, *stream._release_to_relay())
        if type(stream) is SocketStream or isinstance(stream, trio.abc.Stream):  # ABCs are slow
            return cls(stream, *take_over(stream), None)
        raise TypeError(f"relay needs streams of trio's interface, not {stream!r}")

    def side(self) -> Side:
        if self.session is None:
            return Side(self.transport, self.closing)
        return TlsSide(self.transport, self.closing, self.session)

    def give_back(self) -> None:
        if type(self.stream) is TlsStream:
            self.stream._is_owner = True
        else:
            give_back(self.stream, self.transport, self.closing)


def _take_both(a: trio.abc.Stream, b: trio.abc.Stream, *, is_timed: bool) -> Relay:
    if a is b:
        raise ValueError("can't relay a stream to itself")
    first = _Taken.out_of(a)
    try:
        second = _Taken.out_of(b)
        if first.transport.driver is not second.transport.driver:
            second.give_back()
            raise ValueError("both streams must belong to one trio run, or one thread")
        return Relay(first.transport.driver, first.side(), second.side(), is_timed=is_timed)
    except BaseException:
        first.give_back()
        raise


async def _run(both: Relay, wait: Callable[[Relay], Awaitable[None]]) -> RelayOutcome:
    try:
        both.start()
        if both.over:
            await both.driver.uncancellable_checkpoint()
        else:
            await wait(both)
    except trio.Cancelled:
        both.cut(RelayEnd.CANCELLED)  # the cancellation comes out at the next checkpoint
    for side in both.sides:
        if not side.closing.is_settled:
            await side.closing.wait()
    a_to_b, b_to_a = both.directions
    return RelayOutcome(a_to_b.result(), b_to_a.result())


async def _wait(both: Relay) -> None:
    while not both.over:
        await both.changed.wait()


async def _wait_while_busy(both: Relay, idle_timeout: float) -> None:
    seen, times = both.moved(), 0
    while True:
        await both.driver.wait_at_most(both.changed, idle_timeout / LOOKS)
        if both.over:
            return
        last, seen = seen, both.moved()
        times = times + 1 if seen == last else 0
        if times == LOOKS:
            both.time_out()


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
    both directions have ended (of a TlsStream its own) is given up, and that connection reset. With
    ``idle_timeout`` that begins only when what came before an orderly end is sent to it (and, while
    it still has something to say, acknowledged by its kernel), or idle.

    If this is cancelled, both connections are reset, but for one whose direction had ended before;
    then it returns, and the cancellation comes out at the next checkpoint.

    Args:
      a: a TlsStream, a SocketStream, or any other stream of trio's interface.
      b: another one, of the same trio run.
      idle_timeout: seconds (and up to a quarter more) after which both are reset if meanwhile
        nothing was received from either, or sent to either and taken in by its kernel. By the
        run's clock. None: they may be idle for ever.

    Raises:
      TypeError, ValueError: these can't be relayed. Nothing has happened to them.
      trio.ClosedResourceError: one is closed, or its ``send_eof`` was called; likewise.
      trio.BusyResourceError: a task uses one; likewise.
    """
    if idle_timeout is None:
        return await _relay(a, b, _wait, is_timed=False)
    wait = partial(_wait_while_busy, idle_timeout=checked_timeout(idle_timeout))
    return await _relay(a, b, wait, is_timed=True)


@enable_ki_protection
async def relay_watched(
    a: trio.abc.Stream, b: trio.abc.Stream, watch: Callable[[Relay], object]
) -> RelayOutcome:
    """The same, for a caller that looks at many relays now and then, to ask whether they have
    ``moved`` and to ``cut`` them: a timeout of its own costs a relay a tenth of what Python does
    for a short connection."""

    async def wait(both: Relay) -> None:
        watch(both)
        await _wait(both)

    return await _relay(a, b, wait, is_timed=True)


async def _relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    wait: Callable[[Relay], Awaitable[None]],
    *,
    is_timed: bool,
) -> RelayOutcome:
    both = _take_both(a, b, is_timed=is_timed)  # so nobody uses them
    ours = [
        stream for stream in (a, b) if type(stream) is SocketStream or type(stream) is TlsStream
    ]
    try:
        for stream in ours:
            stream._sending.busy = stream._receiving.busy = True
        return await _run(both, wait)
    except BaseException:
        both.cut(RelayEnd.CANCELLED)
        raise
    finally:
        for stream in ours:
            stream._sending.busy = stream._receiving.busy = False
