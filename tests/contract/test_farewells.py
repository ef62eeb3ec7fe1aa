"""C22 with real peers: WebSocket's Close, HTTP/2's GOAWAY and SMTP's QUIT, however it ends.

The clients and servers are those of examples/; the peers wsproto, h2 and aiosmtpd. Each of them has
sent something that we do not read when the end comes.
"""

from __future__ import annotations

import gc
import signal
import socket
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import h2.connection
import h2.events
import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage

from examples import http2_server, smtp_client, websocket_client
from ringtls import SocketStream, TlsStream, blocking
from ringtls._drivers.blocking import BlockingDriver

from ..conftest import Contexts
from ..support.mail import MailServer
from ..support.signals import signal_in_the_ring
from ..support.streams import tcp_pair
from ..support.waiting import LIMIT

Tls = TlsStream[Any]


class HandlerError(Exception):
    """Our handler's own."""


# The peers, in plain blocking code. A TLS end without close_notify raises ssl.SSLEOFError.


def websocket_peer(sock: socket.socket, contexts: Contexts, seen: list[str]) -> None:
    with contexts.server.wrap_socket(
        sock, server_side=True, suppress_ragged_eofs=False
    ) as connection:
        websocket = WSConnection(ConnectionType.SERVER)
        while data := connection.recv(65536):
            websocket.receive_data(data)
            for event in websocket.events():
                if isinstance(event, Request):
                    connection.sendall(websocket.send(AcceptConnection()))
                elif isinstance(event, TextMessage):
                    seen.append(event.data)
                    answers = (TextMessage(data="read"), TextMessage(data="unread"))
                    connection.sendall(b"".join(map(websocket.send, answers)))
                elif isinstance(event, CloseConnection):
                    seen.append(f"Close {int(event.code)}")
    seen.append("close_notify")


def http2_peer(sock: socket.socket, contexts: Contexts, seen: list[str]) -> None:
    with contexts.client.wrap_socket(
        sock, server_hostname="localhost", suppress_ragged_eofs=False
    ) as connection:
        http2 = h2.connection.H2Connection()
        http2.initiate_connection()
        headers = [(":method", "GET"), (":scheme", "https"), (":path", "/")]
        http2.send_headers(1, [*headers, (":authority", "localhost")], end_stream=True)
        connection.sendall(http2.data_to_send())
        while data := connection.recv(65536):
            for event in http2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    seen.append(event.data.decode().strip())
                    http2.ping(b"unread..")
                    connection.sendall(http2.data_to_send())
                elif isinstance(event, h2.events.ConnectionTerminated):
                    seen.append(f"GOAWAY {event.last_stream_id}")
    seen.append("close_notify")


# What we say before the end


async def use_websocket(stream: Tls) -> None:
    client = websocket_client.Client(stream)
    await client.connect("localhost", "/")
    await client.send_text("hello")
    assert await client.receive_text() == "read"


async def use_http2(stream: Tls) -> None:
    connection = http2_server.Connection(stream)
    await connection.start()
    while not connection.answered:
        await connection.go_on()


async def use_smtp(stream: Tls) -> None:
    client = smtp_client.Client(stream)
    await client.greet("localhost")
    await client.command("MAIL FROM:<me@example.org>")
    await stream.send_all(b"NOOP\r\n")  # whose answer nobody reads


Use = Callable[[Tls], Awaitable[None]]

USES: dict[str, tuple[Use, list[str]]] = {
    "websocket": (use_websocket, ["hello", "Close 1001", "close_notify"]),
    "http2": (use_http2, ["hello", "GOAWAY 1", "close_notify"]),
    "smtp": (use_smtp, ["EHLO localhost", "MAIL FROM:<me@example.org>", "NOOP", "QUIT", "END"]),
}


class Meeting:
    """A connection to one of the peers, as a socket of ours, and what the peer has seen of it."""

    def __init__(self, name: str, contexts: Contexts, mail: MailServer) -> None:
        self._is_server = name == "http2"
        self._contexts = contexts
        self._mail = mail
        self._seen: list[str] = []
        self._thread: threading.Thread | None = None
        if name == "smtp":
            self.sock = socket.create_connection(("127.0.0.1", mail.port))
            return
        peer = websocket_peer if name == "websocket" else http2_peer
        self.sock, theirs = tcp_pair()
        self._thread = threading.Thread(target=peer, args=(theirs, contexts, self._seen))
        self._thread.start()

    @property
    def options(self) -> dict[str, Any]:
        if self._is_server:
            side = {"ssl_context": self._contexts.server, "server_side": True}
        else:
            side = {"ssl_context": self._contexts.client, "server_hostname": "localhost"}
        return {**side, "shutdown_timeout": LIMIT}

    def trio_stream(self) -> Tls:
        return TlsStream(SocketStream(self.sock), **self.options)

    def blocking_stream(self) -> blocking.TlsStream:
        return blocking.TlsStream(blocking.SocketStream(self.sock), **self.options)

    def seen(self) -> list[str]:
        if self._thread is None:
            return self._mail.seen()
        self._thread.join()
        return self._seen


# The rows of the close matrix


def in_trio(leave: Callable[[Tls, Use], Awaitable[None]]) -> Callable[[Meeting, Use], None]:
    def row(meeting: Meeting, use: Use) -> None:
        async def main() -> None:
            await leave(meeting.trio_stream(), use)

        trio.run(main)

    return row


async def returns(stream: Tls, use: Use) -> None:
    async with stream:
        await use(stream)


async def raises(stream: Tls, use: Use) -> None:
    with suppress(HandlerError):
        async with stream:
            await use(stream)
            raise HandlerError


async def is_cancelled(stream: Tls, use: Use) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            await use(stream)
            scope.cancel()
            await trio.sleep_forever()


async def is_cancelled_in_a_receive(stream: Tls, use: Use) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            await use(stream)
            scope.deadline = trio.current_time()
            while True:
                await stream.receive_some()


async def is_interrupted(stream: Tls, use: Use) -> None:
    with suppress(KeyboardInterrupt):
        async with stream:
            await use(stream)
            signal.raise_signal(signal.SIGINT)


async def closes(stream: Tls, use: Use) -> None:
    await use(stream)
    await trio.aclose_forcefully(stream)


async def is_dropped(stream: Tls, use: Use) -> None:
    await use(stream)
    del stream
    gc.collect()
    await trio.lowlevel.checkpoint()


KEPT: list[object] = []


async def ends_the_run(stream: Tls, use: Use) -> None:
    await use(stream)
    KEPT.append(stream)


def returns_from_a_thread(meeting: Meeting, use: Use) -> None:
    with meeting.blocking_stream() as stream:
        blocking.call(use, stream)


def raises_in_a_thread(meeting: Meeting, use: Use) -> None:
    with suppress(HandlerError), meeting.blocking_stream() as stream:
        blocking.call(use, stream)
        raise HandlerError


def is_interrupted_in_a_thread(meeting: Meeting, use: Use) -> None:
    with suppress(KeyboardInterrupt), meeting.blocking_stream() as stream:
        blocking.call(use, stream)
        with signal_in_the_ring():
            while True:
                stream.receive_some()


def is_timed_out(meeting: Meeting, use: Use) -> None:
    with suppress(TimeoutError), meeting.blocking_stream() as stream:
        blocking.call(use, stream)
        stream.timeout = 0
        while True:
            stream.receive_some()


def is_dropped_in_a_thread(meeting: Meeting, use: Use) -> None:
    blocking.call(use, meeting.blocking_stream())
    gc.collect()


def ends_with_its_thread(meeting: Meeting, use: Use) -> None:
    def story() -> None:
        stream = meeting.blocking_stream()
        blocking.call(use, stream)
        KEPT.append(stream)

    thread = threading.Thread(target=story)
    thread.start()
    thread.join()


ROWS: dict[str, Callable[[Meeting, Use], None]] = {
    **{
        leave.__name__: in_trio(leave)
        for leave in (
            returns,
            raises,
            is_cancelled,
            is_cancelled_in_a_receive,
            is_interrupted,
            closes,
            is_dropped,
            ends_the_run,
        )
    },
    **{
        row.__name__: row
        for row in (
            returns_from_a_thread,
            raises_in_a_thread,
            is_interrupted_in_a_thread,
            is_timed_out,
            is_dropped_in_a_thread,
            ends_with_its_thread,
        )
    },
}


@pytest.fixture(scope="module")
def mail(contexts: Contexts) -> Iterator[MailServer]:
    with MailServer.running(contexts) as server:
        yield server


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", USES)
def test_c22_last_words_to_real_peers(
    contexts: Contexts, mail: MailServer, name: str, row: str
) -> None:
    use, expected = USES[name]
    meeting = Meeting(name, contexts, mail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # some rows drop streams on purpose
        ROWS[row](meeting, use)
        KEPT.clear()
        gc.collect()
        BlockingDriver.current().end()
    assert meeting.seen() == expected


@pytest.mark.parametrize("leave", [in_trio(returns), returns_from_a_thread], ids=["trio", "thread"])
def test_c22_no_quit_inside_of_a_message(
    contexts: Contexts, mail: MailServer, leave: Callable[[Meeting, Use], None]
) -> None:
    """It would be a line of that; so the client has no farewell until the message is over."""

    async def is_lost(stream: Tls) -> None:
        client = smtp_client.Client(stream)
        await client.greet("localhost")
        stream.send_all = fail_in_the_message(stream.send_all)  # type: ignore[method-assign]
        await client.send_message("me@example.org", ["you@example.org"], b"half a message")

    def fail_in_the_message(send_all: Callable[[bytes], Awaitable[None]]) -> Any:
        async def send(data: bytes) -> None:
            if data.startswith(b"half"):
                await send_all(b"half")
                raise HandlerError
            await send_all(data)

        return send

    meeting = Meeting("smtp", contexts, mail)
    with pytest.raises(HandlerError):
        leave(meeting, is_lost)
    assert mail.seen() == [
        "EHLO localhost",
        "MAIL FROM:<me@example.org>",
        "RCPT TO:<you@example.org>",
        "DATA",
        "halfEND",
    ]
