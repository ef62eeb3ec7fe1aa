"""Measures how connections to a server end, as their peers see it.

Everything happens in one process and over loopback: servers are tasks of the current trio run,
their clients are blocking, in threads.
"""

from __future__ import annotations

import random
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from ..._streams.socket_listener import SocketListener
from ..._streams.tls_listener import TlsListener
from ..certificates import client_context, make_certificate, server_context
from .cases import Case, Connection, HandlerFailedError
from .peer import End, observe_end

__all__ = ["RINGTLS", "TRIO", "Contexts", "Server", "measure", "throwaway_contexts"]

HOST = "127.0.0.1"

#: Clients that are connected at once.
CLIENTS = 12

#: The servers' send buffer, fixed so that a stalled client soon blocks a sender.
SEND_BUFFER = 64 * 1024

#: Bytes that a server can send on one connection.
SOURCE_SIZE = 4 * 1024 * 1024

#: What a handler may end with: its connection broke, or the case wants it.
HANDLER_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError, HandlerFailedError)

#: A client starts with its connection's number in so many bytes.
NUMBER_SIZE = 4


@dataclass(frozen=True)
class Server:
    """A kind of TLS server: what it puts on top of a TCP listener."""

    name: str
    wrap: Callable[[trio.SocketListener, ssl.SSLContext], trio.abc.Listener[trio.abc.Stream]]


def _wrap_in_ringtls(listener: trio.SocketListener, context: ssl.SSLContext) -> TlsListener:
    return TlsListener(SocketListener(listener.socket), context)


RINGTLS = Server("ringtls", _wrap_in_ringtls)
TRIO = Server("trio.SSLStream", trio.SSLListener)


@dataclass(frozen=True)
class Contexts:
    """SSL contexts of two sides that trust each other."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def throwaway_contexts() -> Contexts:
    """Contexts with a certificate that is kept nowhere; the client's does not hide truncation."""
    with tempfile.TemporaryDirectory() as directory:
        made = make_certificate(Path(directory))
        return Contexts(server_context(made.certificate, made.key), client_context(made.ca))


async def measure(
    server: Server,
    case: Case,
    connections: int,
    contexts: Contexts,
    on_end: Callable[[End], object] = lambda end: None,
) -> Counter[End]:
    """Count how so many connections end.

    Args:
      on_end: called for each of them.

    Raises:
      RingUnavailableError: the server needs an io_uring, as that is forced, and there is none here.
    """
    [tcp_listener] = await trio.open_tcp_listeners(0, host=HOST)
    tcp_listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    address = tcp_listener.socket.getsockname()
    source = memoryview(random.Random(case.name).randbytes(SOURCE_SIZE + connections))
    known = [Connection(n, source[n:][:SOURCE_SIZE]) for n in range(connections)]
    limiter = trio.CapacityLimiter(CLIENTS)
    ends: Counter[End] = Counter()

    async def handle(stream: trio.abc.Stream) -> None:
        with suppress(*HANDLER_ERRORS), trio.CancelScope() as scope:
            async with stream:
                connection = known[await _receive_number(stream)]
                connection.scope = scope
                await case.serve(stream, connection)

    def converse(connection: Connection, client: ssl.SSLSocket) -> None:
        client.sendall(connection.number.to_bytes(NUMBER_SIZE, "big"))
        case.converse(client, connection)

    async def run_client(connection: Connection) -> None:
        observe = partial(observe_end, address, contexts.client, partial(converse, connection))
        observation = await trio.to_thread.run_sync(
            observe, limiter=limiter, abandon_on_cancel=True
        )
        end = connection.judge(observation)
        ends[end] += 1
        on_end(end)

    async with tcp_listener:
        listener = server.wrap(tcp_listener, contexts.server)
        async with trio.open_nursery() as serving:
            serving.start_soon(trio.serve_listeners, handle, [listener])
            async with trio.open_nursery() as clients:
                for connection in known:
                    clients.start_soon(run_client, connection)
            serving.cancel_scope.cancel()
    return ends


async def _receive_number(stream: trio.abc.Stream) -> int:
    number = b""
    while len(number) < NUMBER_SIZE:
        received = await stream.receive_some(NUMBER_SIZE - len(number))
        if not received:
            raise trio.BrokenResourceError("the client went away before it had said its number")
        number += received
    return int.from_bytes(number, "big")
