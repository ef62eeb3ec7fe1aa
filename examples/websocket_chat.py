"""A chat over WebSocket, on trio-websocket: a room, and those who come and go.

However somebody goes, by Ctrl-C or by an exception, the other side hears Close (RFC 6455, section
5.5.1), then close_notify, and the room goes on.

    python examples/websocket_chat.py serve PORT CERTIFICATE KEY
    python examples/websocket_chat.py join HOST PORT NAME < lines
"""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import cast

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection
from wsproto.frame_protocol import CloseReason

import ringtls

#: Lines that may wait for a member who does not read. With one more the member has to go.
BACKLOG = 100

#: Seconds for the handshake of a WebSocket.
PATIENCE = 10


def last_words(connection: WebSocketConnection) -> bytes:
    """Close, unless that is said."""
    if connection.closed:
        return b""
    role = ConnectionType.CLIENT if connection.is_client else ConnectionType.SERVER
    return Connection(role).send(CloseConnection(code=CloseReason.GOING_AWAY))


# The server


class Room:
    """Who is there."""

    def __init__(self) -> None:
        self._members: dict[trio.MemorySendChannel[str], trio.CancelScope] = {}

    def say(self, line: str) -> None:
        for member, scope in self._members.items():
            try:
                member.send_nowait(line)
            except trio.WouldBlock:
                scope.cancel()

    @contextmanager
    def joined(
        self, name: str, scope: trio.CancelScope
    ) -> Iterator[trio.MemoryReceiveChannel[str]]:
        """The value is what is said. ``scope`` is cancelled if it is not taken."""
        member, lines = trio.open_memory_channel[str](BACKLOG)
        self._members[member] = scope
        self.say(f"{name} is here")
        try:
            yield lines
        finally:
            del self._members[member]
            self.say(f"{name} has left")


async def handle(room: Room, stream: ringtls.TlsStream) -> None:
    try:
        async with stream, trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                request = await wrap_server_stream(nursery, stream)
                connection = await request.accept()
            stream.farewell = partial(last_words, connection)
            name = request.path.strip("/")
            with room.joined(name, nursery.cancel_scope) as lines:
                nursery.start_soon(pass_on, lines, connection)
                while True:
                    room.say(f"{name}: {await connection.get_message()!s}")
    except* (ConnectionClosed, trio.TooSlowError):
        pass  # others stay


async def pass_on(lines: trio.MemoryReceiveChannel[str], connection: WebSocketConnection) -> None:
    async for line in lines:
        await connection.send_message(line)


async def serve(port: int, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with trio.open_nursery() as nursery:
        serve = partial(ringtls.serve_tls_over_tcp, partial(handle, Room()), port, context)
        listeners = await nursery.start(serve)
        print(listeners[0].port, flush=True)


# A client


async def join(host: str, port: int, name: str) -> None:
    stream = await ringtls.open_tls_over_tcp_stream(host, port)
    try:
        async with stream, trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                # It takes any stream, whatever its annotation says.
                any_stream = cast("trio.SocketStream", stream)
                connection = await wrap_client_stream(nursery, any_stream, host, f"/{name}")
            stream.farewell = partial(last_words, connection)
            nursery.start_soon(show, connection)
            async with aclosing(typed_lines()) as lines:
                async for line in lines:
                    await connection.send_message(line)
            await connection.aclose()
    except* ConnectionClosed:
        print(f"the chat is over: {connection.closed}")


async def show(connection: WebSocketConnection) -> None:
    while True:
        print(await connection.get_message(), flush=True)


async def typed_lines() -> AsyncGenerator[str]:
    rest = b""
    while data := await trio.to_thread.run_sync(os.read, 0, 4096, abandon_on_cancel=True):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("serve")
    server.add_argument("port", type=int)
    server.add_argument("certificate")
    server.add_argument("key")
    client = roles.add_parser("join")
    client.add_argument("host")
    client.add_argument("port", type=int)
    client.add_argument("name")
    args = parser.parse_args()
    if args.role == "serve":
        trio.run(serve, args.port, args.certificate, args.key)
    else:
        trio.run(join, args.host, args.port, args.name)
