"""hypercorn's protocols, HTTP/1.1, HTTP/2 and WebSocket, on ringtls' streams, in a trio run.

    trio.run(ringtls.hypercorn.serve, app, config)

``ringtls asgi module:app`` is the same as a server with workers, certificates that are reloaded,
limits and metrics.

Of hypercorn's, this uses what is above a connection: protocols, lifespan, configuration, log.

It needs hypercorn: ``pip install 'ringtls[asgi]'``.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import trio

try:
    from hypercorn.trio.lifespan import Lifespan
    from hypercorn.trio.statsd import StatsdLogger
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.utils import LifespanFailureError, repr_socket_addr, wrap_app
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "hypercorn":
        raise
    raise ModuleNotFoundError(
        "ringtls.hypercorn needs hypercorn: pip install 'ringtls[asgi]'", name="hypercorn"
    ) from _error

from .._accepting import accept_by_callbacks
from .._streams.socket import SocketStream
from .._streams.socket_listener import SocketListener
from .._streams.tls import TlsStream
from ._applications import ClientDisconnectedError
from ._connection import HypercornConnection

if TYPE_CHECKING:
    from hypercorn.config import Config, Sockets
    from hypercorn.typing import AppWrapper, Framework

__all__ = ["ClientDisconnectedError", "serve", "worker_serve"]


async def serve(
    app: Framework,
    config: Config,
    *,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    mode: Literal["asgi", "wsgi"] | None = None,
) -> None:
    """Serve an application in this trio run: hypercorn.trio.serve on ringtls.

    Cancelled, it ends all connections with close_notify at once, and the application's lifespan
    without its shutdown event. A KeyboardInterrupt that comes while connections are accepted is
    taken for the shutdown trigger, as hypercorn does.

    Args:
      config: hypercorn's. What is for other processes (``workers``, ``use_reloader``) or for QUIC
        has no effect.
      shutdown_trigger: when this returns, no connection is accepted any more, idle ones end, and
        requests may go on for ``config.graceful_timeout`` seconds.
      task_status: is started with the URLs when connections are accepted.
      mode: by default what the application looks like.

    Raises:
      ExceptionGroup: has one of the following inside, in further groups.
      OSError: an address can't be had.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      LifespanFailureError, LifespanTimeoutError: of hypercorn.utils: the application did not start.
    """
    await worker_serve(
        wrap_app(app, config.wsgi_max_body_size, mode),
        config,
        shutdown_trigger=shutdown_trigger,
        task_status=task_status,
    )


async def worker_serve(
    app: AppWrapper,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """``serve`` for what hypercorn's ``wrap_app`` made, and for sockets that are there already.

    What it raises, and what a cancellation does, is as with ``serve``.

    Args:
      sockets: of hypercorn's ``config.create_sockets()``; by default they are made by this.
    """
    config.set_statsd_logger_class(StatsdLogger)
    max_requests = config.max_requests
    if max_requests is not None:
        max_requests += random.randint(0, config.max_requests_jitter)
    context = WorkerContext(max_requests)
    handshakes: set[trio.CancelScope] = set()
    async with lifespan(app, config) as state, trio.open_nursery() as connections:
        try:
            async with AsyncExitStack() as stack:
                binds = []
                acceptors = []
                for sock, ssl_context in _listening(config, sockets):
                    scheme = "http" if ssl_context is None else "https"
                    binds.append(f"{scheme}://{repr_socket_addr(sock.family, sock.getsockname())}")
                    await config.log.info(f"Running on {binds[-1]} (CTRL + C to quit)")
                    listener = await stack.enter_async_context(SocketListener(sock))
                    begin = partial(
                        connections.start_soon,
                        partial(_serve, app, config, context, state, handshakes, ssl_context),
                    )
                    acceptors.append(partial(accept_by_callbacks, listener, begin))
                nursery = await stack.enter_async_context(trio.open_nursery())
                for acceptor in acceptors:
                    nursery.start_soon(acceptor)
                if shutdown_trigger is not None:
                    nursery.start_soon(_cancel_after, shutdown_trigger, nursery.cancel_scope)
                task_status.started(binds)
                await context.terminate.wait()
                nursery.cancel_scope.cancel()
        except* KeyboardInterrupt:
            pass
        finally:
            await context.terminated.set()
            for scope in handshakes:
                scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


def _listening(
    config: Config, sockets: Sockets | None
) -> list[tuple[socket.socket, ssl.SSLContext | None]]:
    """Sockets that listen, with the context of those for TLS."""
    context = config.create_ssl_context()  # which may raise
    if sockets is None:
        sockets = config.create_sockets()
        for sock in [*sockets.secure_sockets, *sockets.insecure_sockets]:
            sock.listen(config.backlog)
    listening: list[tuple[socket.socket, ssl.SSLContext | None]]
    listening = [(sock, context) for sock in sockets.secure_sockets]
    return listening + [(sock, None) for sock in sockets.insecure_sockets]


async def _cancel_after(trigger: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await trigger()
    scope.cancel()


async def _serve(
    app: AppWrapper,
    config: Config,
    context: WorkerContext,
    state: dict[str, Any],
    handshakes: set[trio.CancelScope],
    ssl_context: ssl.SSLContext | None,
    below: SocketStream,
) -> None:
    stream: SocketStream | TlsStream = below
    if ssl_context is not None:
        stream = TlsStream(below, ssl_context, server_side=True, https_compatible=True)
    async with stream:
        if isinstance(stream, TlsStream):
            with trio.move_on_after(config.ssl_handshake_timeout) as scope:
                handshakes.add(scope)
                try:
                    await stream.do_handshake()
                except trio.BrokenResourceError:
                    return
                finally:
                    handshakes.remove(scope)
            if scope.cancelled_caught:
                return
        try:
            await HypercornConnection(app, config, context, state, stream).run()
        except Exception:
            await config.log.exception("Error in a connection")


class _Lifespan(Lifespan):
    """One that knows at once that the application has not started: hypercorn's task may be slower
    to end than the one that waits for it."""

    failure: str | None = None

    async def asgi_send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            self.failure = message.get("message", "")
        await super().asgi_send(message)


@asynccontextmanager
async def lifespan(app: AppWrapper, config: Config) -> AsyncIterator[dict[str, Any]]:
    """A context in which the application has started: its lifespan's state."""
    state: dict[str, Any] = {}
    events = _Lifespan(app, config, state)
    async with trio.open_nursery() as nursery:
        await nursery.start(events.handle_lifespan)
        with suppress(trio.ClosedResourceError):  # it has returned, and wants no such events
            await events.wait_for_startup()
        if events.failure is not None:
            raise LifespanFailureError("startup", events.failure)
        yield state
        with suppress(trio.ClosedResourceError):
            await events.wait_for_shutdown()
        nursery.cancel_scope.cancel()
