"""hypercorn's protocols, HTTP/1.1, HTTP/2 and WebSocket, on ringtls' streams, in a trio run.

    trio.run(ringtls.hypercorn.serve, app, config)

``ringtls asgi module:app`` is the same as a server with workers, certificates that are reloaded,
limits and metrics.

Rules:

1. Of hypercorn's, this uses what is above a connection: protocols, lifespan, configuration, log.
   The connection is not its TCPServer: that starts a task for each request which says when the
   connection is idle, keeps one that its client has ended until that time, and can't be told to end
   while its peer takes in nothing.
2. An application may cancel its own ``send``. What is given to a protocol has to go out whole all
   the same, or the next message would land inside of this one. So a send is shielded from the
   application; what cancels the connection itself cancels the watching task, and that the sends.
3. A connection says farewell however it ends: GOAWAY for HTTP/2 (RFC 9113, section 6.8), so that
   its client knows what to send again; Close for a WebSocket that is open (RFC 6455, section 7.4.1:
   1001, going away).
4. An application hears that its client is gone, even if it has not taken what came before. What it
   sends afterwards raises ClientDisconnectedError, an OSError as ASGI asks for: one that sends for
   ever would never stop. Where that comes out of the application it is no error.
5. What a client does ends no more than its own connection.

It needs hypercorn: ``pip install 'ringtls[asgi]'``.
"""

from __future__ import annotations

import math
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import trio

try:
    from hypercorn.events import Closed, RawData, Updated
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.protocol.ws_stream import WSStream
    from hypercorn.trio.lifespan import Lifespan
    from hypercorn.trio.statsd import StatsdLogger
    from hypercorn.trio.task_group import TaskGroup, _handle
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState
    from hypercorn.utils import (
        LifespanFailureError,
        parse_socket_addr,
        repr_socket_addr,
        wrap_app,
    )
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "hypercorn":
        raise
    raise ModuleNotFoundError(
        "ringtls.hypercorn needs hypercorn: pip install 'ringtls[asgi]'", name="hypercorn"
    ) from error
from h2.connection import ConnectionState as H2State
from wsproto.connection import ConnectionState as WebSocketState
from wsproto.events import CloseConnection
from wsproto.frame_protocol import CloseReason

from ._accepting import ACCEPTORS, accept_forever
from ._streams.socket import SocketListener, SocketStream
from ._streams.tls import TlsStream

if TYPE_CHECKING:
    from hypercorn.config import Config, Sockets
    from hypercorn.events import Event
    from hypercorn.typing import AppWrapper, Framework

__all__ = ["ClientDisconnectedError", "HypercornConnection", "lifespan", "serve", "worker_serve"]

RECEIVE_SIZE = 65536

#: Seconds in which a client has to take in what was sent to it, before the end begins.
ROOM_TIMEOUT = 60.0


class ClientDisconnectedError(OSError):
    """An application has sent something to a client that is gone; see rule 4."""


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
    without its shutdown event.

    Args:
      config: hypercorn's. What is for other processes (``workers``, ``use_reloader``) or for QUIC
        has no effect.
      shutdown_trigger: when this returns, no connection is accepted any more, idle ones end, and
        requests may go on for ``config.graceful_timeout`` seconds.
      task_status: is started with the URLs when connections are accepted.
      mode: by default what the application looks like.

    Raises:
      OSError: an address can't be had.
      RingUnavailableError: there is no io_uring here.
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
    """The same for what hypercorn's ``wrap_app`` made, and for sockets that are there already."""
    config.set_statsd_logger_class(StatsdLogger)
    max_requests = config.max_requests
    if max_requests is not None:
        max_requests += random.randint(0, config.max_requests_jitter)
    context = WorkerContext(max_requests)
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
                        partial(_serve, app, config, context, state, ssl_context),
                    )
                    acceptors += [partial(accept_forever, listener.accept, begin)] * ACCEPTORS
                nursery = await stack.enter_async_context(trio.open_nursery())
                for acceptor in acceptors:
                    nursery.start_soon(acceptor)
                if shutdown_trigger is not None:
                    nursery.start_soon(_cancel_after, shutdown_trigger, nursery.cancel_scope)
                task_status.started(binds)
                await context.terminate.wait()
                nursery.cancel_scope.cancel()
        finally:
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


def _listening(
    config: Config, sockets: Sockets | None
) -> list[tuple[socket.socket, ssl.SSLContext | None]]:
    """Sockets that listen, with the context of those for TLS."""
    if sockets is None:
        sockets = config.create_sockets()
        for sock in [*sockets.secure_sockets, *sockets.insecure_sockets]:
            sock.listen(config.backlog)
    context = config.create_ssl_context()
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
    ssl_context: ssl.SSLContext | None,
    below: SocketStream,
) -> None:
    stream: SocketStream | TlsStream = below
    if ssl_context is not None:
        stream = TlsStream(below, ssl_context, server_side=True, https_compatible=True)
    async with stream:
        try:
            if isinstance(stream, TlsStream):
                with trio.fail_after(config.ssl_handshake_timeout):
                    await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
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


class HypercornConnection:
    """One connection, after its handshake: hypercorn's protocols over a stream."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: dict[str, Any],
        stream: SocketStream | TlsStream,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._state = state
        self._stream = stream
        self._protocol: ProtocolWrapper
        self._is_idle = True
        self._is_over = False  # the protocol has nothing more to say
        self._receiving = trio.CancelScope()
        self._idling = trio.CancelScope()
        self._turn = trio.Lock()
        self._sends: set[trio.CancelScope] = set()
        self._is_cut = False

    async def run(self) -> None:
        """Serve it until it ends. Where the client has not ended it first, its stream is closed."""
        stream = self._stream
        tls = stream if isinstance(stream, TlsStream) else None
        sock = stream.transport_stream.socket if isinstance(stream, TlsStream) else stream.socket
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
        except OSError:  # it is gone
            return
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            async with _Tasks(None if tls is None else tls_extension(tls)) as tasks:
                self._protocol = ProtocolWrapper(
                    self._app,
                    self._config,
                    self._context,
                    tasks,
                    ConnectionState(self._state),
                    tls is not None,
                    client,
                    server,
                    self._send,
                    None if tls is None else tls.selected_alpn_protocol(),
                )
                if tls is not None:
                    tls.farewell = self._last_words
                await self._protocol.initiate()
                self.note(is_idle=True)
                await self._receive()
                await self._protocol.handle(Closed())
                if self._is_over:
                    await self.close()
            watching.cancel_scope.cancel()

    async def close(self) -> None:
        """End it once the client has taken in what was sent, or has had the time for it."""
        if isinstance(self._stream, TlsStream):
            with trio.move_on_after(ROOM_TIMEOUT), suppress(trio.BrokenResourceError):
                await self._stream.wait_acknowledged()
        await self._stream.aclose()

    def note(self, *, is_idle: bool) -> None:
        """No request is being served, or one is."""
        self._is_idle = is_idle
        if not is_idle:
            self._idling.deadline = math.inf
        elif self._context.terminated.is_set():
            self._idling.deadline = -math.inf
        else:
            self._idling.deadline = trio.current_time() + self._config.keep_alive_timeout

    async def _watch(self) -> None:
        try:
            with self._idling:
                await self._context.terminated.wait()
                self.note(is_idle=self._is_idle)
                await trio.sleep_forever()
            await self._end_soon()
        except trio.Cancelled:
            self._is_cut = True
            for scope in self._sends:
                scope.cancel()
            raise

    async def receive(self) -> bytes:
        """What comes next; b"" at the end.

        Raises:
          trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError
        """
        with trio.fail_after(self._config.read_timeout or math.inf):
            return await self._stream.receive_some(RECEIVE_SIZE)

    async def _receive(self) -> None:
        """Pass on what comes, until an end of any kind."""
        while not self._is_over:
            try:
                with trio.CancelScope() as self._receiving:
                    data = await self.receive()
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if self._receiving.cancelled_caught:
                return
            if not data:
                await trio.lowlevel.checkpoint()  # who has just sent the last of an answer goes on
            await self._protocol.handle(RawData(data))
            if not data:
                return

    async def _end_soon(self) -> None:
        self._is_over = True
        self._receiving.cancel()
        await self._protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data:
                await self._send_data(event.data)
        elif isinstance(event, Updated):
            self.note(is_idle=event.idle)
        else:
            await self._end_soon()

    async def _send_data(self, data: bytes) -> None:
        """Rule 2."""
        with trio.CancelScope(shield=not self._is_cut) as scope:
            self._sends.add(scope)
            try:
                try:
                    self._turn.acquire_nowait()
                except trio.WouldBlock:
                    await self._turn.acquire()
                try:
                    await self.send_all(data)
                finally:
                    self._turn.release()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._end_soon()
            finally:
                self._sends.discard(scope)

    async def send_all(self, data: bytes) -> None:
        """Send what a protocol has to say."""
        await self._stream.send_all(data)

    def _last_words(self) -> bytes:
        """Rule 3."""
        protocol = self._protocol.protocol
        if isinstance(protocol, H2Protocol):
            if protocol.connection.state_machine.state is not H2State.CLOSED:
                protocol.connection.close_connection()
            words: bytes = protocol.connection.data_to_send()
            return words
        socket_stream = protocol.stream
        if isinstance(socket_stream, WSStream) and socket_stream.handshake.accepted:
            connection = socket_stream.connection
            if connection.state is WebSocketState.OPEN:
                return connection.send(CloseConnection(code=CloseReason.GOING_AWAY))
        return b""


class _Tasks(TaskGroup):
    """The tasks of a connection, and how they talk with applications."""

    def __init__(self, tls: dict[str, Any] | None) -> None:
        super().__init__()
        self._tls = tls

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        messages, received = trio.open_memory_channel[Any](config.max_app_queue_size)
        disconnect: dict[str, Any] | None = None
        if self._tls is not None:
            scope["extensions"]["tls"] = self._tls

        async def put(message: Any) -> None:
            nonlocal disconnect
            if not message["type"].endswith(".disconnect"):
                with suppress(trio.ClosedResourceError):
                    await messages.send(message)
            elif disconnect is None:
                disconnect = message
                messages.close()

        async def receive() -> Any:
            try:
                return await received.receive()
            except trio.EndOfChannel:
                return disconnect

        async def send_unless_gone(message: Any) -> None:
            if disconnect is not None and scope["type"] == "http":
                raise ClientDisconnectedError("the client is gone")
            await send(message)

        async def finish(message: None) -> None:
            """The application has returned; or was cancelled with the connection: then the last
            words are the connection's."""
            if trio.current_effective_deadline() > -math.inf:
                await send(message)

        async def run(*arguments: Any) -> None:
            _, _, _, *spawning = arguments
            try:
                await app(scope, receive, send_unless_gone, *spawning)
            except* ClientDisconnectedError:
                pass

        self.spawn(
            _handle,
            run,
            config,
            scope,
            receive,
            finish,
            trio.to_thread.run_sync,
            trio.from_thread.run,
        )
        return put


def tls_extension(stream: TlsStream) -> dict[str, Any]:
    """What ASGI's TLS extension tells of a connection. Our own certificate is not known to ssl."""
    certificate = stream.getpeercert(binary_form=True)
    name = None
    if certificate is not None:
        from cryptography import x509

        name = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    cipher = stream.cipher()
    version = stream.version()
    assert cipher is not None
    assert version is not None
    return {
        "server_cert": None,
        "client_cert_chain": [] if not certificate else [ssl.DER_cert_to_PEM_cert(certificate)],
        "client_cert_name": name,
        "client_cert_error": None,
        "tls_version": ssl.TLSVersion[version.replace(".", "_")].value,
        "cipher_suite": _cipher_suites()[cipher[0]],
    }


@cache
def _cipher_suites() -> dict[str, int]:
    """The numbers of cipher suites, as IANA has them, by OpenSSL's names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:COMPLEMENTOFALL")
    return {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}
