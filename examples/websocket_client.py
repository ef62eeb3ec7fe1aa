"""A WebSocket client on wsproto (RFC 6455) that says Close however it ends.

python examples/websocket_client.py HOST [TARGET] < lines
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason

import ringtls


def closing_words(websocket: WSConnection) -> bytes:
    """Close, unless that is said. Does not refer to the stream, which could else not be lost."""
    if websocket.state is not ConnectionState.OPEN:
        return b""
    return websocket.send(CloseConnection(code=CloseReason.GOING_AWAY))


class Client:
    """One WebSocket."""

    def __init__(self, stream: ringtls.TlsStream) -> None:
        self._stream = stream
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._events = self._websocket.events()

    async def connect(self, host: str, target: str) -> None:
        await self._send(Request(host=host, target=target))
        if isinstance(event := await self._next_event(), RejectConnection):
            raise ConnectionRefusedError(f"the server answered {event.status_code}")
        assert isinstance(event, AcceptConnection)
        self._stream.farewell = partial(closing_words, self._websocket)

    async def send_text(self, text: str) -> None:
        await self._send(TextMessage(data=text))

    async def receive_text(self) -> str | None:
        """One message; None when the server has closed."""
        text = ""
        while True:
            event = await self._next_event()
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    return text
            elif isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, CloseConnection):
                await self._send(event.response())
                return None

    async def _send(self, event: Event) -> None:
        await self._stream.send_all(self._websocket.send(event))

    async def _next_event(self) -> Event:
        while (event := next(self._events, None)) is None:
            self._websocket.receive_data(await self._stream.receive_some() or None)
            self._events = self._websocket.events()
        return event


async def talk(host: str, target: str) -> None:
    async with await ringtls.open_tls_over_tcp_stream(host, 443) as stream:
        client = Client(stream)
        await client.connect(host, target)
        for line in sys.stdin:
            await client.send_text(line)
            print(await client.receive_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("target", nargs="?", default="/")
    args = parser.parse_args()
    trio.run(talk, args.host, args.target)


if __name__ == "__main__":
    main()
