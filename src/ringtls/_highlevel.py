"""trio's helpers for opening and serving connections, for ringtls' streams; and their figures.

Resolving names, and the race between addresses (happy eyeballs), are trio's; the connected
or listening sockets are then taken over.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import NoReturn, TypeVar

import trio

from ._accepting import accept_by_callbacks
from ._drivers.trio import TrioDriver
from ._statistics import Statistics
from ._streams.self_connection import refuse_itself
from ._streams.socket import SocketStream
from ._streams.socket_listener import SocketListener
from ._streams.tls import TlsStream
from ._streams.tls_listener import TlsListener

__all__ = [
    "open_tcp_listeners",
    "open_tcp_stream",
    "open_tls_over_tcp_listeners",
    "open_tls_over_tcp_stream",
    "open_unix_listeners",
    "open_unix_socket",
    "serve_tcp",
    "serve_tls_over_tcp",
    "statistics",
]

#: Seconds to wait for one address before the next is tried (RFC 8305, section 5).
HAPPY_EYEBALLS_DELAY = 0.25

#: Connections that wait to be accepted: as many as the kernel allows (net.core.somaxconn), as trio
#: has it.
BACKLOG = 65535

StreamT = TypeVar("StreamT", bound=trio.abc.AsyncResource)


async def open_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
    local_address: str | None = None,
) -> SocketStream:
    """Connect to ``host`` and ``port``: trio.open_tcp_stream for SocketStream.

    If this is cancelled there is no connection.

    Raises:
      OSError: no address of the host could be connected to.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
    """
    TrioDriver.current().ring  # noqa: B018
    stream = await trio.open_tcp_stream(
        host, port, happy_eyeballs_delay=happy_eyeballs_delay, local_address=local_address
    )
    refuse_itself(stream.socket)
    return SocketStream(stream.socket)


async def open_unix_socket(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
) -> SocketStream:
    """Connect to a Unix socket: trio.open_unix_socket for SocketStream.

    If this is cancelled there is no connection.

    Raises:
      OSError: it could not be connected to.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
    """
    TrioDriver.current().ring  # noqa: B018
    stream = await trio.open_unix_socket(filename)
    return SocketStream(stream.socket)


async def open_tls_over_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    https_compatible: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    happy_eyeballs_delay: float | None = HAPPY_EYEBALLS_DELAY,
) -> TlsStream:
    """Connect to a TLS server: trio.open_ssl_over_tcp_stream for TlsStream.

    The handshake, which checks that the certificate is valid for ``host``, is made by the first
    call on the stream, or by ``do_handshake()``. If this is cancelled there is no connection.

    Args:
      ssl_context: by default ssl.create_default_context().

    Raises:
      OSError: no address of the host could be connected to.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      TypeError, ValueError, ssl.SSLError: as for TlsStream.
    """
    context = ssl_context or ssl.create_default_context()
    stream = await open_tcp_stream(host, port, happy_eyeballs_delay=happy_eyeballs_delay)
    try:
        return TlsStream(stream, context, server_hostname=host, https_compatible=https_compatible)
    except BaseException:
        stream.close_unclean()
        raise


async def open_tcp_listeners(
    port: int, *, host: str | bytes | None = None, backlog: int | None = None
) -> list[SocketListener]:
    """Listen for connections: trio.open_tcp_listeners for SocketListener.

    Parameters and errors are those of ``open_tls_over_tcp_listeners``, and so is what a
    cancellation leaves.
    """
    TrioDriver.current().ring  # noqa: B018 raises before there is anything to be closed
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    with _all_or_none(listeners):  # it raises where no descriptor is left, say
        return [SocketListener(listener.socket) for listener in listeners]


async def open_unix_listeners(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, backlog: int | None = None
) -> list[SocketListener]:
    """Listen for connections at a path; one listener, in a list as of the other functions.

    The path is made by this, and must not be there before; to remove it afterwards is left to the
    caller. See unix(7). If this is cancelled there is no listener, but the path may have been made.

    Args:
      backlog: how many connections may wait to be accepted (listen(2)); None: as many as the kernel
        allows.

    Raises:
      OSError: the path can't be had, of errno EADDRINUSE if it is there already.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
    """
    TrioDriver.current().ring  # noqa: B018
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    try:
        await sock.bind(os.fspath(filename))
        sock.listen(BACKLOG if backlog is None else backlog)
        return [SocketListener(sock)]
    except BaseException:
        sock.close()
        raise


async def open_tls_over_tcp_listeners(
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
) -> list[TlsListener]:
    """Listen for TLS connections: trio.open_ssl_over_tcp_listeners for TlsListener.

    If this is cancelled there is no listener.

    Args:
      port: 0 lets the kernel choose one.
      host: the address to bind to; None means all.
      backlog: how many connections may wait to be accepted (listen(2)); None: as many as the kernel
        allows.

    Raises:
      OSError: the address can't be had, as when the port is in use.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      ValueError: the context is one for clients.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    with _all_or_none(listeners):
        return [
            TlsListener(listener, ssl_context, https_compatible=https_compatible)
            for listener in listeners
        ]


@contextmanager
def _all_or_none(
    listeners: Sequence[trio.SocketListener] | Sequence[SocketListener],
) -> Iterator[None]:
    """Close all of them if what is made of them fails."""
    try:
        yield
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise


async def serve_tcp(
    handler: Callable[[SocketStream], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve connections, each by a task that runs ``handler(stream)``.

    trio.serve_tcp for SocketStream; what it raises, and what a cancellation does, is as with
    ``serve_tls_over_tcp``.
    """
    listeners = await open_tcp_listeners(port, host=host, backlog=backlog)
    await _serve(handler, listeners, handler_nursery, partial(task_status.started, listeners))


async def serve_tls_over_tcp(
    handler: Callable[[TlsStream], Awaitable[object]],
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[TlsListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve TLS connections, each by a task that runs ``handler(stream)``.

    trio.serve_ssl_over_tcp for TlsStream. When the handler ends, however it ends, its stream is
    closed. An exception of the handler goes to its nursery, and so by default ends the server:
    catch what one bad connection may raise.

    Never returns. Cancel it to stop: listening ends at once and, unless they are in a
    ``handler_nursery`` of yours, so do the handlers, whose streams are closed in order.

    Raises:
      OSError, RingUnavailableError, ValueError: as for ``open_tls_over_tcp_listeners``. Once it
        serves, running out of descriptors is waited out, and no more than logged.
      ExceptionGroup: what handlers raised, if they run in this function's own nursery.
    """
    listeners = await open_tls_over_tcp_listeners(
        port, ssl_context, host=host, https_compatible=https_compatible, backlog=backlog
    )
    await _serve(handler, listeners, handler_nursery, partial(task_status.started, listeners))


async def _serve(
    handler: Callable[[StreamT], Awaitable[object]],
    listeners: Sequence[SocketListener] | Sequence[TlsListener[SocketStream]],
    handler_nursery: trio.Nursery | None,
    announce: Callable[[], object],
) -> NoReturn:
    async with AsyncExitStack() as stack:
        for listener in listeners:
            await stack.enter_async_context(listener)
        nursery = await stack.enter_async_context(trio.open_nursery())
        handlers = handler_nursery or nursery

        def begin(stream: StreamT) -> None:
            handlers.start_soon(_handle, handler, stream)

        for listener in listeners:
            nursery.start_soon(accept_by_callbacks, listener, begin)
        announce()
        await trio.sleep_forever()


async def _handle(handler: Callable[[StreamT], Awaitable[object]], stream: StreamT) -> None:
    async with stream:
        await handler(stream)


def statistics() -> Statistics:
    """The figures of the current trio run's streams. Cheap; may be called at any time.

    Raises:
      RuntimeError: not called from inside a trio run.
    """
    return TrioDriver.current().statistics()
