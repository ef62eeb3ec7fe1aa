"""Clients: httpx, and over a raw peer, which sees the end, HTTP/1.1, WebSocket and HTTP/2."""

from __future__ import annotations

from typing import Any, TypeVar

import h2.connection
import h2.events
import httpx
from h2.connection import ConnectionInputs, ConnectionState, H2ConnectionStateMachine
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, Request, TextMessage

from ringtls.httpcore import transport

from ..conftest import Contexts, contexts_of
from .peer import Peer
from .waiting import LIMIT

__all__ = ["Http2Peer", "Http2WebSocket", "WebSocketPeer", "client_of", "read_head"]

Event = TypeVar("Event", bound=h2.events.Event)

#: h2 takes a GOAWAY for the end, but streams up to its last go on: RFC 9113, section 6.8.
_TRANSITIONS = {
    **H2ConnectionStateMachine._transitions,
    **{
        (ConnectionState.CLIENT_OPEN, goaway): (None, ConnectionState.CLIENT_OPEN)
        for goaway in (ConnectionInputs.SEND_GOAWAY, ConnectionInputs.RECV_GOAWAY)
    },
}


def client_of(contexts: Contexts, **options: Any) -> httpx.AsyncClient:
    verify = contexts_of(contexts.ca, contexts.certificate, contexts.key).client
    return httpx.AsyncClient(transport=transport(verify=verify, **options), timeout=LIMIT)


def read_head(peer: Peer) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += peer.receive(1)
    return head


class WebSocketPeer:
    """The client's side of a WebSocket, over a raw peer."""

    def __init__(self, peer: Peer, path: str) -> None:
        self.peer = peer
        self.protocol = WSConnection(ConnectionType.CLIENT)
        peer.send(self.protocol.send(Request(host="localhost", target=path)))
        self.protocol.receive_data(read_head(peer))
        (event,) = self.protocol.events()
        assert isinstance(event, AcceptConnection)

    def say(self, text: str) -> Any:
        self.peer.send(self.protocol.send(TextMessage(data=text)))
        return self.receive()

    def receive(self) -> Any:
        """What is in the next frame: a small one."""
        head = self.peer.receive(2)
        self.protocol.receive_data(head + self.peer.receive(head[1]))
        (event,) = self.protocol.events()
        return event


class Http2Peer:
    """The client's side of HTTP/2, over a raw peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.http2 = h2.connection.H2Connection()
        self.http2.state_machine._transitions = _TRANSITIONS
        self.http2.initiate_connection()
        self._events: list[h2.events.Event] = []

    def flush(self) -> None:
        self.peer.send(self.http2.data_to_send())

    def request(self, stream: int, path: str, *, ends: bool = True, **pseudo: str) -> None:
        known = {"method": "GET", "path": path, "scheme": "https", "authority": "localhost"}
        headers = [(f":{name}", value) for name, value in (known | pseudo).items()]
        self.http2.send_headers(stream, [*headers, ("sec-websocket-version", "13")], ends)
        self.flush()

    def send(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        self.http2.send_data(stream, data, ends)
        self.flush()

    def receive(self, kind: type[Event], stream: int) -> Event:
        """The next of its kind, on a stream; what comes before it is dropped."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, kind) and event.stream_id == stream:  # type: ignore[attr-defined]
                    return event
            self._events += self.http2.receive_data(self.peer.receive(1))

    def get(self, stream: int) -> bytes:
        self.request(stream, "/")
        return self.receive(h2.events.DataReceived, stream).data

    def end(self) -> list[h2.events.Event]:
        """What still comes, until a clean end."""
        end = self.peer.end()
        assert end.is_clean
        return self._events + self.http2.receive_data(end.data)


class Http2WebSocket:
    """The client's side of a WebSocket over HTTP/2: RFC 8441."""

    def __init__(self, peer: Http2Peer, stream: int) -> None:
        self._peer = peer
        self._stream = stream
        self.protocol = Connection(ConnectionType.CLIENT)
        self._events: list[Any] = []
        peer.request(stream, "/talk", ends=False, method="CONNECT", protocol="websocket")
        response = peer.receive(h2.events.ResponseReceived, stream)
        assert (b":status", b"200") in response.headers

    def send(self, event: Any) -> None:
        self._peer.send(self._stream, self.protocol.send(event))

    def receive(self) -> Any:
        while not self._events:
            self.take(self._peer.receive(h2.events.DataReceived, self._stream))
        return self._events.pop(0)

    def take(self, event: h2.events.DataReceived) -> None:
        self.protocol.receive_data(event.data)
        self._events += self.protocol.events()

    def say(self, text: str) -> str:
        self.send(TextMessage(data=text))
        answer: str = self.receive().data
        return answer

    def receive_end(self) -> None:
        self._peer.receive(h2.events.StreamEnded, self._stream)
        self._peer.send(self._stream, b"", ends=True)
