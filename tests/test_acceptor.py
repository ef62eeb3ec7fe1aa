"""Accepting by callbacks: ringtls._streams.acceptor."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar

import pytest
import trio
import trio.testing

from ringtls import SocketListener, SocketStream
from ringtls._engine.ring import Ring
from ringtls._streams.acceptor import AT_ONCE, Acceptor
from ringtls._transports.owned_socket import OwnedSocket

from .support.rings import drive_until
from .support.waiting import LIMIT

NAME: ContextVar[str] = ContextVar("NAME")


async def at_once() -> None:
    """There is room."""


def has_room() -> bool:
    return True


@asynccontextmanager
async def listening() -> AsyncIterator[SocketListener]:
    with socket.create_server(("127.0.0.1", 0)) as sock, trio.fail_after(LIMIT):
        async with SocketListener(sock) as listener:
            yield listener


def connect(listener: SocketListener, stack: ExitStack) -> None:
    stack.enter_context(socket.create_connection(listener.socket.getsockname()))


class Begun:
    """The connections that were begun."""

    def __init__(self, see: Callable[[], object] = lambda: None) -> None:
        self.streams: list[SocketStream] = []
        self.seen: list[object] = []
        self._see = see
        self._changed = trio.Event()

    def add(self, stream: SocketStream) -> None:
        self.streams.append(stream)
        self.seen.append(self._see())
        self._changed.set()

    async def until(self, count: int) -> None:
        while len(self.streams) < count:
            self._changed = trio.Event()
            await self._changed.wait()

    async def close(self) -> None:
        for stream in self.streams:
            await stream.aclose()


async def test_connections_are_begun_in_the_context_of_the_task_and_without_it() -> None:
    def see() -> object:
        with pytest.raises(RuntimeError):
            trio.lowlevel.current_task()
        return NAME.get()

    begun = Begun(see)
    async with listening() as listener, trio.open_nursery() as nursery:
        NAME.set("the acceptor's")
        acceptor = Acceptor(listener, begun.add, has_room)
        NAME.set("another")
        nursery.start_soon(acceptor.run, at_once)
        with ExitStack() as stack:
            for _ in range(3 * AT_ONCE):
                connect(listener, stack)
            await begun.until(3 * AT_ONCE)
        nursery.cancel_scope.cancel()
    assert begun.seen == ["the acceptor's"] * (3 * AT_ONCE)
    await begun.close()


@pytest.mark.parametrize("steps", range(4))
async def test_h4_a_cancellation_loses_no_connection(steps: int) -> None:
    begun = Begun()
    count = 2 * AT_ONCE
    async with listening() as listener:
        acceptor = Acceptor(listener, begun.add, has_room)
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.run, at_once)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(count):
                    connect(listener, stack)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert not acceptor._in_flight
            while len(begun.streams) < count:
                begun.add(await listener.accept())
        await begun.close()


async def test_what_begin_raises_comes_out_of_the_task() -> None:
    streams = []

    def begin(stream: SocketStream) -> None:
        streams.append(stream)
        raise ZeroDivisionError

    async with listening() as listener:
        with ExitStack() as stack:
            connect(listener, stack)
            with pytest.raises(ZeroDivisionError):
                await Acceptor(listener, begin, has_room).run(at_once)
            connect(listener, stack)
            streams.append(await listener.accept())  # it is as it was
        for stream in streams:
            await stream.aclose()


async def test_no_more_are_accepted_than_there_is_room_for() -> None:
    begun = Begun()
    room = AT_ONCE
    waits, has_more = trio.Event(), trio.Event()

    async def until_there_is_room() -> None:
        if len(begun.streams) >= room:
            waits.set()
            await has_more.wait()

    async with listening() as listener, trio.open_nursery() as nursery:
        acceptor = Acceptor(listener, begun.add, lambda: len(begun.streams) < room)
        nursery.start_soon(acceptor.run, until_there_is_room)
        with ExitStack() as stack:
            for _ in range(3 * AT_ONCE):
                connect(listener, stack)
            await waits.wait()
            assert AT_ONCE <= len(begun.streams) < 2 * AT_ONCE  # some were in flight by then
            room = 3 * AT_ONCE
            has_more.set()
            await begun.until(room)
        nursery.cancel_scope.cancel()
    await begun.close()


async def test_a_failure_while_there_is_no_room_comes_out_later() -> None:
    waits, has_more = trio.Event(), trio.Event()

    def begin(stream: SocketStream) -> None:
        begun.add(stream)
        if waits.is_set():
            raise ZeroDivisionError

    async def until_there_is_room() -> None:
        if begun.streams:
            waits.set()
            await has_more.wait()

    begun = Begun()
    async with listening() as listener, trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(ZeroDivisionError):
                await Acceptor(listener, begin, lambda: not begun.streams).run(until_there_is_room)

        nursery.start_soon(accept)
        with ExitStack() as stack:
            connect(listener, stack)
            await waits.wait()
            connect(listener, stack)
            await begun.until(2)
            has_more.set()
    await begun.close()


async def test_a_listener_that_is_closed_ends_it() -> None:
    async with listening() as listener, trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await Acceptor(listener, Begun().add, has_room).run(at_once)

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()


def test_a_wake_up_that_another_ring_has_swallowed(ring: Ring) -> None:
    """As that of a process which hangs, or which was killed until the kernel has taken it apart."""
    other = Ring(buffers=4, buffer_size=4096)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets = [OwnedSocket.to_come() for _ in range(AT_ONCE)]
        swallowing = [other.accept(listener.fileno(), sock) for sock in sockets]
        other.submit()
        accepted = OwnedSocket.to_come()
        accepting = ring.accept(listener.fileno(), accepted)
        ring.submit()
        with socket.create_connection(listener.getsockname()):
            drive_until(ring, lambda: accepting.is_over)
            accepted.close()
        for request in swallowing:
            other.cancel(request)
        assert other.close(timeout=5.0)
