"""One process that serves: one trio run with one ring.

Rules:

1. A first SIGINT or SIGTERM drains: no connection is accepted any more, idle ones end, and what is
   being served has the graceful timeout to finish. A second one, or the end of that time, cancels
   what is left. Every connection ends with close_notify all the same.
2. SIGHUP loads the certificates anew, for connections that are accepted from then on. That is
   done in threads: neither files that are slow nor certificates that are many stop the loop. A
   file that hangs keeps one thread at most, and none of those that requests need. What is short
   (reloading.py) is tried again; what is left of that ends with the drain.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from ringtls import RingUnavailableError, SocketListener, SocketStream
from ringtls._accepting import accept_by_callbacks

from .connections import Connections, Limits
from .credentials import Credentials
from .errors import StartError
from .figures import Figures
from .handling import Handler, begin_connection
from .notify import notify, notify_reloading, watchdog_interval
from .reloading import KEPT, READ_TIMEOUT, RETRY_INTERVAL, Reloader, Result
from .service import Service
from .supervisor import SIGNALS

if TYPE_CHECKING:
    from .observation import Observation

__all__ = ["Orders", "Server", "own_signals", "serve"]

#: Seconds between two samples of what the streams count.
SAMPLE_INTERVAL = 1.0

logger = logging.getLogger("ringtls.server")

#: What a process is told: numbers of signals, and what a supervisor had read after SIGHUP.
Orders = AsyncIterator[int | bytes]


@dataclass(frozen=True)
class Server:
    """What all processes of a server have in common."""

    service: Service
    credentials: Credentials
    reloader: Reloader
    limits: Limits
    graceful_timeout: float
    figures: Figures
    allowed: frozenset[str]
    observation: Observation | None


@contextmanager
def own_signals() -> Iterator[AsyncIterator[int]]:
    """The signals that this process gets. From the end on it ignores them.

    Their default actions would kill it when all is served, but the exit status is not given yet.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none is to meet the handlers below
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    with trio.open_signal_receiver(*SIGNALS) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield received


async def serve(
    server: Server,
    sockets: list[socket.socket],
    orders: AbstractContextManager[Orders],
    on_ready: Callable[[], object],
) -> None:
    """Serve those who connect to the sockets, until a signal ends it.

    Raises:
      StartError: io_uring is forced, and there is none here.
    """
    try:
        listeners = [SocketListener(sock) for sock in sockets]
    except RingUnavailableError as error:
        raise StartError(error.strerror) from error
    await _Process(server, listeners).run(orders, on_ready)


class _Process:
    def __init__(self, server: Server, listeners: list[SocketListener]) -> None:
        self._server = server
        self._listeners = listeners
        self._connections = Connections(server.limits)
        self._handler = Handler(
            server.service, server.credentials, self._connections, server.figures, server.allowed
        )
        self._accepting = trio.CancelScope()
        self._reloading = trio.Lock()
        self._reader = trio.CapacityLimiter(1)
        self._to_be_read = False
        self._latest = b""

    async def run(
        self, orders: AbstractContextManager[Orders], on_ready: Callable[[], object]
    ) -> None:
        with orders as received:
            async with self._server.service.running(), trio.open_nursery() as watch:
                watch.start_soon(self._connections.sweep)
                watch.start_soon(self._sample)
                if (observation := self._server.observation) is not None:
                    watch.start_soon(observation.serve, self._is_healthy)
                if (interval := watchdog_interval()) is not None:
                    watch.start_soon(_feed_watchdog, interval)
                async with trio.open_nursery() as nursery:
                    watch.start_soon(self._obey, received, watch, nursery)
                    on_ready()
                    with self._accepting:
                        await self._accept(nursery)
                    for listener in self._listeners:
                        await listener.aclose()
                watch.cancel_scope.cancel()

    async def _accept(self, nursery: trio.Nursery) -> None:
        def begin(stream: SocketStream) -> None:
            begin_connection(self._handler, stream, nursery)

        accept = partial(
            accept_by_callbacks,
            begin=begin,
            make_room=self._connections.make_room,
            has_room=self._connections.has_room,
            until_there_is_room=self._connections.until_there_is_room,
        )
        async with trio.open_nursery() as acceptors:
            for listener in self._listeners:
                acceptors.start_soon(accept, listener)

    # Orders

    async def _obey(self, orders: Orders, watch: trio.Nursery, connections: trio.Nursery) -> None:
        while (order := await anext(orders)) not in (signal.SIGINT, signal.SIGTERM):
            if isinstance(order, bytes):
                watch.start_soon(self._use, order)
            elif not self._to_be_read:
                self._to_be_read = True
                watch.start_soon(self._reload)
        notify("STOPPING=1")
        self._accepting.cancel()
        self._connections.drain()
        timeout = self._server.graceful_timeout
        name = signal.Signals(order).name
        logger.info("%s: finishing what is being served, for at most %g s", name, timeout)
        with trio.move_on_after(timeout):
            while await anext(orders) not in (signal.SIGINT, signal.SIGTERM):
                pass  # nobody comes for whom a certificate would matter
        if left := self._connections.uncut:
            many = "connection is" if left == 1 else "connections are"
            logger.warning("%d %s cut short", left, many)
        connections.cancel_scope.cancel()

    async def _reload(self) -> None:
        async with self._reloading:
            self._to_be_read = False  # what changes from now on is for the next time
            while not self._to_be_read:
                notify_reloading()
                result = await _counting_on_a_thread(self._read_and_use)
                notify("READY=1")
                if result is not Result.SHORT:
                    return
                await trio.sleep(RETRY_INTERVAL)

    async def _read_and_use(self) -> Result:
        reloader = self._server.reloader
        with trio.move_on_after(READ_TIMEOUT) as reading:
            data = await trio.to_thread.run_sync(
                reloader.read, abandon_on_cancel=True, limiter=self._reader
            )
        if reading.cancelled_caught:
            reloader.give_up()
            return Result.REFUSED
        return await trio.to_thread.run_sync(reloader.use, data)

    async def _use(self, data: bytes) -> None:
        """The supervisor has found it good: if it can't be used here, something is short."""
        self._latest = data
        use = partial(trio.to_thread.run_sync, self._server.reloader.use, data)
        async with self._reloading:
            while self._latest is data:
                if await _counting_on_a_thread(use) is Result.USED:
                    return
                await trio.sleep(RETRY_INTERVAL)

    # Figures

    async def _sample(self) -> None:
        while True:
            self._server.figures.sample()
            await trio.sleep(SAMPLE_INTERVAL)

    def _is_healthy(self) -> bool:
        return not self._accepting.cancel_called


async def _counting_on_a_thread(work: Callable[[], Awaitable[Result]]) -> Result:
    """If there can't be another thread, that is a shortage, too."""
    try:
        return await work()
    except RuntimeError as error:
        logger.error("%s: %s", KEPT, error)
        return Result.SHORT


async def _feed_watchdog(interval: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(interval)
