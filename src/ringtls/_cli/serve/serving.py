"""One process of ``ringtls serve``: one trio run with one ring.

A first SIGINT or SIGTERM drains: no connection is accepted any more, idle ones end, and requests
that are being served have the graceful timeout to finish. A second one, or the end of that time,
cancels what is left. Every connection ends with close_notify all the same.

SIGHUP loads the certificate anew, for connections that are accepted from then on.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import trio

from ringtls import RingUnavailableError, SocketListener, SocketStream, TlsStream

from .connection import Drain, serve_connection
from .credentials import Credentials
from .errors import StartError

__all__ = ["SIGNALS", "own_signals", "serve"]

logger = logging.getLogger("ringtls.serve")

#: What ``serve`` is told by.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


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
    root: Path,
    credentials: Credentials,
    graceful_timeout: float,
    sockets: list[socket.socket],
    signals: AbstractContextManager[AsyncIterator[int]],
    on_ready: Callable[[], object],
) -> None:
    """Serve what is below ``root`` to those who connect to the sockets, until a signal ends it.

    Raises:
      StartError: there is no io_uring here.
    """
    try:
        listeners = [SocketListener(sock) for sock in sockets]
    except RingUnavailableError as error:
        raise StartError(error.strerror) from error
    drain = Drain()

    async def handle(stream: SocketStream) -> None:
        tls = TlsStream(stream, credentials.context, server_side=True, https_compatible=True)
        await serve_connection(root, drain, tls)

    with signals as received:
        async with trio.open_nursery() as watch:
            async with trio.open_nursery() as connections:
                accepting = trio.CancelScope()
                watch.start_soon(
                    _obey, received, credentials, drain, accepting, connections, graceful_timeout
                )
                on_ready()
                with accepting:
                    await trio.serve_listeners(handle, listeners, handler_nursery=connections)
            watch.cancel_scope.cancel()


async def _obey(
    signals: AsyncIterator[int],
    credentials: Credentials,
    drain: Drain,
    accepting: trio.CancelScope,
    connections: trio.Nursery,
    graceful_timeout: float,
) -> None:
    while (number := await anext(signals)) == signal.SIGHUP:
        credentials.reload()
    name = signal.Signals(number).name
    logger.info("%s: finishing what is being served, for at most %g s", name, graceful_timeout)
    accepting.cancel()
    drain.start()
    with trio.move_on_after(graceful_timeout):
        while await anext(signals) == signal.SIGHUP:
            pass  # nobody comes for whom a certificate would matter
    if left := len(connections.child_tasks):
        logger.warning("%d %s cut short", left, "connection is" if left == 1 else "connections are")
    connections.cancel_scope.cancel()
