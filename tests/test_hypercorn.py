"""ringtls.hypercorn.serve, in the run of its clients."""

from __future__ import annotations

import importlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h2.connection
import h2.events
import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, Response
from hypercorn.utils import LifespanFailureError, wrap_app
from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Ping, Request

from ringtls import statistics
from ringtls.hypercorn import ClientDisconnectedError, serve, worker_serve
from ringtls.hypercorn._http2 import Http2
from ringtls.hypercorn._websockets import WebSocket

from .conftest import Contexts, contexts_of
from .support.application import PIECE, application, unwilling
from .support.http_peers import Http2Peer, Http2WebSocket, WebSocketPeer, client_of
from .support.peer import End, Peer, Transport
from .support.streams import open_sockets, reset
from .support.waiting import LIMIT, until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def config_of(contexts: Contexts, **options: Any) -> Config:
    files = {"certfile": str(contexts.certificate), "keyfile": str(contexts.key)}
    return Config.from_mapping({"bind": "127.0.0.1:0", "errorlog": None, **files, **options})


@asynccontextmanager
async def serving(config: Config, app: Any = application) -> AsyncIterator[tuple[str, trio.Event]]:
    """The value is where it is, and what ends it."""
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        start = partial(serve, app, config, shutdown_trigger=ended.wait)
        url, *_ = await nursery.start(start)
        yield url.replace("127.0.0.1", "localhost"), ended
        ended.set()


async def raw_peer(contexts: Contexts, url: str, *, alpn: str = "http/1.1") -> Peer:
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    own.client.set_alpn_protocols([alpn])
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    sock = stream.socket._sock.dup()  # type: ignore[attr-defined]
    await stream.aclose()
    sock.setblocking(True)
    peer = Peer(sock, own, server_side=False)
    await trio.to_thread.run_sync(peer.handshake)
    return peer


def receive_until(peer: Peer, text: bytes) -> bytes:
    data = b""
    while not data.endswith(text):
        data += peer.receive(1)
    return data


@pytest.mark.parametrize("http2", [False, True])
async def test_requests(contexts: Contexts, http2: bool) -> None:
    async with serving(config_of(contexts)) as (url, _), client_of(contexts, http2=http2) as client:
        for _ in range(2):
            assert (await client.get(url)).text == ("2" if http2 else "1.1")


def head(name: bytes, value: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(name, value)]}


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    "message",
    [
        head(b"a", b"1\r\nb: 2"),
        head(b"a", b"1\n2"),
        head(b"a", b"1\r2"),
        head(b"a", b"1\x002"),
        head(b"a\r\nb", b"1"),
        head(b"a b", b"1"),
        {"type": "http.response.early_hint", "links": [b"</a>\r\nb: 2"]},
    ],
)
async def test_a_header_that_is_none_is_not_sent(
    contexts: Contexts, http2: bool, message: dict[str, Any]
) -> None:
    """It is an error of its application's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/broken":
            await send(message)
        await application(scope, receive, send)

    served = serving(config_of(contexts), app)
    async with served as (url, _), client_of(contexts, http2=http2) as client:
        response = await client.get(f"{url}/broken")
        assert (response.status_code, response.content) == (500, b"")
        assert (await client.get(url)).text == ("2" if http2 else "1.1")


async def test_trailers_that_are_none_are_not_sent(contexts: Contexts) -> None:
    """The answer is not whole, then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({**head(b"a", b"1"), "trailers": True})
            await send({"type": "http.response.body", "body": b"half"})
            await send({"type": "http.response.trailers", "headers": [(b"b", b"1\r\nc: 2")]})
        await application(scope, receive, send)

    async with serving(config_of(contexts), app) as (url, _):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        headers = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "localhost"}
        peer.http2.send_headers(1, [*headers.items(), ("te", "trailers")], end_stream=True)
        peer.flush()
        await trio.to_thread.run_sync(peer.receive, h2.events.StreamReset, 1)
        peer.peer.sock.close()


async def refused_websocket(raw: Peer, http2: bool, status: bytes, said: bytes = b"") -> Http2Peer:
    """Ask for a WebSocket, say something at once, and be refused: HTTP/1.1 ends then, in order."""
    peer = Http2Peer(raw)
    if http2:
        peer.request(1, "/talk", ends=False, method="CONNECT", protocol="websocket")
        if said:
            peer.send(1, said)
        answer = await trio.to_thread.run_sync(peer.receive, h2.events.ResponseReceived, 1)
        assert (b":status", status) in answer.headers
    else:
        request = Request(host="localhost", target="/talk")
        raw.send(WSConnection(ConnectionType.CLIENT).send(request) + said)
        end = await trio.to_thread.run_sync(raw.end)
        assert end.is_clean
        assert end.data.startswith(b"HTTP/1.1 %s " % status)
    return peer


@pytest.mark.parametrize(
    "how", [{"headers": [(b"a", b"1\r\nb: 2")]}, {"subprotocol": "that nobody named"}]
)
@pytest.mark.parametrize("http2", [False, True])
async def test_a_websocket_that_can_not_be_accepted_so(
    contexts: Contexts, http2: bool, how: dict[str, Any]
) -> None:
    """Its client has an answer, and of HTTP/2 the other requests go on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept", **how})
        await application(scope, receive, send)

    async with serving(config_of(contexts), app) as (url, _):
        raw = await raw_peer(contexts, url, alpn="h2" if http2 else "http/1.1")
        with raw.sock:
            peer = await refused_websocket(raw, http2, b"500")
            if http2:
                peer.request(3, "/")
                await trio.to_thread.run_sync(peer.receive, h2.events.StreamEnded, 3)


async def test_sockets_that_are_there_already(contexts: Contexts) -> None:
    config = config_of(contexts)
    sockets = config.create_sockets()
    [sock] = sockets.secure_sockets
    sock.listen()
    app: Any = application
    app = wrap_app(app, config.wsgi_max_body_size, None)
    async with trio.open_nursery() as nursery, client_of(contexts) as client:
        [url] = await nursery.start(partial(worker_serve, app, config, sockets=sockets))
        assert url == f"https://127.0.0.1:{sock.getsockname()[1]}"
        assert (await client.get(url.replace("127.0.0.1", "localhost"))).text == "1.1"
        nursery.cancel_scope.cancel()


async def test_requests_that_come_before_the_answer(contexts: Contexts) -> None:
    """In one piece, one by one, and with more behind them than is read ahead."""
    answered = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/":
            await answered.wait()
        await application(scope, receive, send)

    body = PIECE * 8
    post = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    post += b"Content-Length: %d\r\n\r\n" % len(body)
    async with serving(config_of(contexts), app) as (url, _):
        peer = await raw_peer(contexts, url)
        peer.send(2 * GET)
        for data in (GET, post, body):
            await trio.to_thread.run_sync(peer.send, data)
            await trio.testing.wait_all_tasks_blocked()
        answered.set()
        end = await trio.to_thread.run_sync(peer.end)
    assert end.is_clean
    assert end.data.count(b"\r\n\r\n1.1") == 3
    assert end.data.count(b"\0") == len(body)


async def test_plain(contexts: Contexts) -> None:
    config = config_of(contexts, certfile=None, keyfile=None)
    async with serving(config) as (url, _), client_of(contexts) as client:
        assert (await client.get(url)).text == "1.1"


async def test_without_its_certificate_it_listens_nowhere(contexts: Contexts) -> None:
    app: Any = application
    before = open_sockets()
    with pytest.RaisesGroup(FileNotFoundError, flatten_subgroups=True) as raised:
        await serve(app, config_of(contexts, certfile="nowhere"))
    assert raised.value is not None  # what it was raised in is still there
    assert open_sockets() == before


async def test_an_idle_connection_ends(contexts: Contexts) -> None:
    async with serving(config_of(contexts, keep_alive_timeout=0.01)) as (url, _):
        peer = await raw_peer(contexts, url)
        assert (await trio.to_thread.run_sync(peer.end)).is_clean


async def test_idle_connections_end_with_the_server(contexts: Contexts) -> None:
    config = config_of(contexts, keep_alive_timeout=10 * LIMIT, graceful_timeout=10 * LIMIT)
    async with serving(config) as (url, ended):
        peer = await raw_peer(contexts, url)
        peer.send(GET)
        await trio.to_thread.run_sync(peer.receive, 1)
        ended.set()
        assert (await trio.to_thread.run_sync(peer.end)).is_clean


async def test_a_connection_without_a_handshake_ends_with_the_server(contexts: Contexts) -> None:
    async with serving(config_of(contexts, graceful_timeout=10 * LIMIT)) as (url, ended):
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            await until(lambda: statistics().connections_open)
            ended.set()
            assert await stream.receive_some() == b""


async def test_the_server_ends_amid_an_answer(contexts: Contexts) -> None:
    async with serving(config_of(contexts, graceful_timeout=0)) as (url, ended):
        peer = await raw_peer(contexts, url)
        peer.send(GET.replace(b"/", b"/for-ever", 1))
        await trio.to_thread.run_sync(peer.receive, 1)
        ended.set()
        assert (await trio.to_thread.run_sync(peer.end)).is_clean


# An answer that only the end of its connection delimits


def half_request(path: str) -> bytes:
    return b"GET %s HTTP/1.0\r\n\r\n" % path.encode()


@pytest.mark.parametrize("path", ["/half", "/stop"])
async def test_c21_half_an_answer_is_no_whole_one(contexts: Contexts, path: str) -> None:
    """The application fails, or the server ends."""
    async with serving(config_of(contexts, graceful_timeout=0)) as (url, ended):
        peer = await raw_peer(contexts, url)
        peer.send(half_request(path))
        data = await trio.to_thread.run_sync(partial(receive_until, peer, b"half"))
        ended.set()
        end = await trio.to_thread.run_sync(peer.end)
    assert b"half" in data + end.data
    assert (end.close_notify, end.transport) == (False, Transport.RST)


async def test_c21_half_an_answer_to_a_client_that_ends_first(contexts: Contexts) -> None:
    async with serving(config_of(contexts)) as (url, _):
        peer = await raw_peer(contexts, url)
        peer.send(half_request("/stop"))
        await trio.to_thread.run_sync(partial(receive_until, peer, b"half"))
        peer.send_close_notify()
        end = await trio.to_thread.run_sync(peer.end)
    assert (end.close_notify, end.transport) == (False, Transport.RST)


@pytest.mark.parametrize("path", ["/half", "/stop"])
async def test_half_an_answer_over_http2_is_no_whole_one(contexts: Contexts, path: str) -> None:
    """Its connection ends in order, and its stream does not."""
    async with serving(config_of(contexts, graceful_timeout=0)) as (url, ended):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        peer.request(1, path)
        await trio.to_thread.run_sync(peer.receive, h2.events.ResponseReceived, 1)
        ended.set()
        seen = await trio.to_thread.run_sync(peer.end)
    assert any(isinstance(event, h2.events.ConnectionTerminated) for event in seen)
    assert not any(isinstance(event, h2.events.StreamEnded) for event in seen)


async def test_an_application_waits_for_room(contexts: Contexts) -> None:
    """In HTTP/2, too, where its client's window has room for one byte."""
    sent = 0

    async def send_much(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["type"] == "lifespan":
            await application(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            sent += 1

    async with serving(config_of(contexts, graceful_timeout=0), send_much) as (url, ended):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        peer.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1})
        peer.request(1, "/")
        await trio.to_thread.run_sync(peer.receive, h2.events.DataReceived, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 10
        ended.set()
        await trio.to_thread.run_sync(peer.end)


@pytest.mark.parametrize("end", [Peer.send_close_notify, lambda peer: reset(peer.sock)])
@pytest.mark.parametrize(("piece", "more"), [(PIECE, True), (b"two", False)])
async def test_an_application_that_waits_for_room_hears_of_the_end(
    contexts: Contexts, end: Callable[[Peer], None], piece: bytes, more: bool
) -> None:
    over = trio.Event()

    async def send_much(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await application(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            over.set()

    async with serving(config_of(contexts), send_much) as (url, _):
        peer = await raw_peer(contexts, url, alpn="h2")
        http2 = Http2Peer(peer)
        http2.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1})
        http2.request(1, "/")
        await trio.to_thread.run_sync(http2.receive, h2.events.DataReceived, 1)
        await trio.testing.wait_all_tasks_blocked()
        end(peer)
        await over.wait()
        peer.sock.close()


async def test_a_host_that_is_not_served(contexts: Contexts) -> None:
    config = config_of(contexts, server_names=["localhost"], graceful_timeout=0)
    async with serving(config) as (url, _):
        peer = await raw_peer(contexts, url)
        peer.send(GET.replace(b"localhost", b"elsewhere"))
        end = await trio.to_thread.run_sync(peer.end)
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 404 ")


async def test_a_host_that_is_not_served_over_http2(contexts: Contexts) -> None:
    """The connection goes on, and is idle afterwards."""
    config = config_of(contexts, server_names=["localhost"])
    async with serving(config) as (url, ended):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        for stream, host in ((1, "elsewhere"), (3, "localhost")):
            headers = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": host}
            peer.http2.send_headers(stream, [*headers.items(), ("host", host)], end_stream=True)
            peer.flush()
            kind = h2.events.ResponseReceived
            response = await trio.to_thread.run_sync(peer.receive, kind, stream)
            assert response.headers[0] == (b":status", b"404" if stream == 1 else b"200")
        ended.set()
        await trio.to_thread.run_sync(peer.end)


async def test_half_an_answer_without_tls(contexts: Contexts) -> None:
    config = config_of(contexts, certfile=None, keyfile=None, graceful_timeout=0)
    async with serving(config) as (url, ended):
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        await stream.send_all(half_request("/stop"))
        data = b""
        while not data.endswith(b"half"):
            data += await stream.receive_some()
        ended.set()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /early HTTP/1.0\r\n\r\n",
        b"GET /unsized HTTP/1.0\r\n\r\n",
        b"HEAD /half HTTP/1.0\r\n\r\n",
        b"GET /half HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_what_delimits_itself_ends_in_order(contexts: Contexts, request_head: bytes) -> None:
    """It has a length, is whole, has no body, or tells its pieces."""
    async with serving(config_of(contexts)) as (url, _):
        peer = await raw_peer(contexts, url)
        peer.send(request_head)
        assert (await trio.to_thread.run_sync(peer.end)).is_clean


# Other ends


async def test_the_last_requests_of_an_http2_connection(contexts: Contexts) -> None:
    """Those that it may have are answered, and the next one can be sent elsewhere."""
    async with serving(config_of(contexts, keep_alive_max_requests=3)) as (url, _):
        peer = await raw_peer(contexts, url, alpn="h2")
        seen = await trio.to_thread.run_sync(use_up, Http2Peer(peer))
    goaway, *_, last = (e for e in seen if isinstance(e, h2.events.ConnectionTerminated))
    assert goaway.last_stream_id == last.last_stream_id == 5
    pieces = [e.data for e in seen if isinstance(e, h2.events.DataReceived)]
    assert b"".join(pieces) == b"told"
    (ended,) = (e for e in seen if isinstance(e, h2.events.StreamEnded))
    assert ended.stream_id == 1


def use_up(peer: Http2Peer) -> list[h2.events.Event]:
    """What comes after the last request."""
    peer.request(1, "/when-told", ends=False)
    for stream in (3, 5):
        assert peer.get(stream) == b"2"
        peer.receive(h2.events.StreamEnded, stream)
    peer.request(7, "/")
    peer.send(1, b"", ends=True)
    return peer.end()


async def test_an_http2_connection_without_requests_left(contexts: Contexts) -> None:
    config = config_of(contexts, keep_alive_max_requests=1, keep_alive_timeout=10 * LIMIT)
    async with serving(config) as (url, _):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        assert await trio.to_thread.run_sync(peer.get, 1) == b"2"
        await trio.to_thread.run_sync(peer.end)


async def test_an_http2_connection_whose_request_was_over_at_once(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is idle, though hypercorn says that the request goes on when its answer is out."""
    config = config_of(contexts, keep_alive_timeout=10 * LIMIT)
    create = Http2._create_stream

    async def create_and_answer(protocol: Http2, request: h2.events.RequestReceived) -> None:
        config.keep_alive_timeout = 0.2
        await create(protocol, request)
        await until(lambda: not (protocol.stream_buffers or protocol.streams))

    monkeypatch.setattr(Http2, "_create_stream", create_and_answer)
    async with serving(config) as (url, _):
        peer = Http2Peer(await raw_peer(contexts, url, alpn="h2"))
        peer.request(1, "/")
        await trio.to_thread.run_sync(peer.end)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_websocket_without_tls_is_told_to_go_away(
    contexts: Contexts, cancelled: bool
) -> None:
    opening = WSConnection(ConnectionType.CLIENT).send(Request(host="localhost", target="/talk"))
    assert (await said_last(contexts, opening, cancelled=cancelled))[-4:] == b"\x88\x02\x03\xe9"


#: What a client says at the end of a WebSocket; the code and reason that its application hears, and
#: the code that the client does.
WEBSOCKET_ENDS = {
    "enough": (bytes.fromhex("88 88 00000000 0fa1") + b"enough", (4001, "enough"), 4001),
    "no code": (bytes.fromhex("88 80 00000000"), (1005, ""), 1005),
    "no WebSocket": (bytes.fromhex("ff ff ff ff"), (1006, ""), 1002),
}


def talk(peer: Peer, http2: bool, said: bytes) -> int:
    """Say something by a WebSocket. Returns the code of the server's Close."""
    websocket: Http2WebSocket | WebSocketPeer
    if http2:
        multiplexed = Http2Peer(peer)
        websocket = Http2WebSocket(multiplexed, 1)
        multiplexed.send(1, said)
    else:
        websocket = WebSocketPeer(peer, "/talk")
        peer.send(said)
    code: int = websocket.receive().code
    return code


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(("said", "heard", "answered"), WEBSOCKET_ENDS.values(), ids=WEBSOCKET_ENDS)
async def test_both_sides_hear_why_a_websocket_ends(
    contexts: Contexts, http2: bool, said: bytes, heard: tuple[int, str], answered: int
) -> None:
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def tell() -> Any:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                told.append((message["code"], message.get("reason", "")))
            return message

        await application(scope, tell, send)

    async with serving(config_of(contexts), app) as (url, ended):
        peer = await raw_peer(contexts, url, alpn="h2" if http2 else "http/1.1")
        assert await trio.to_thread.run_sync(talk, peer, http2, said) == answered
        ended.set()
        assert (await trio.to_thread.run_sync(peer.end)).is_clean
    assert told == [heard]


#: Of a client's WebSocket: it says "hi".
FRAME = bytes.fromhex("82 82 00000000") + b"hi"


def waiting_amid_an_answer(
    send: Callable[[Any], Awaitable[None]], wait: Callable[[], Awaitable[None]]
) -> Callable[[Any], Awaitable[None]]:
    """A stream's ``send`` that waits behind the head of an answer."""

    async def send_and_wait(event: Any) -> None:
        await send(event)
        if isinstance(event, Response):
            await wait()

    return send_and_wait


@pytest.mark.parametrize("http2", [False, True])
async def test_a_client_that_sends_before_its_websocket_is_accepted(
    contexts: Contexts, http2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its application accepts while it is refused, and hears that it is over."""
    is_refused, has_accepted = trio.Event(), trio.Event()
    told: list[OSError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await application(scope, receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        await is_refused.wait()
        try:
            await send({"type": "websocket.accept"})
        except OSError as error:
            told.append(error)
        finally:
            has_accepted.set()

    async def let_accept() -> None:
        is_refused.set()
        await has_accepted.wait()

    refuse = WebSocket._send_error_response

    async def refuse_slowly(websocket: WebSocket, status: int) -> None:
        websocket.send = waiting_amid_an_answer(websocket.send, let_accept)
        await refuse(websocket, status)

    monkeypatch.setattr(WebSocket, "_send_error_response", refuse_slowly, raising=False)
    async with serving(config_of(contexts), app) as (url, _):
        raw = await raw_peer(contexts, url, alpn="h2" if http2 else "http/1.1")
        with raw.sock:
            await refused_websocket(raw, http2, b"400", FRAME)
            await has_accepted.wait()
    assert [type(error) for error in told] == [ClientDisconnectedError]


@pytest.mark.parametrize(("status", "body"), [(500, b""), (403, b"no")])
async def test_a_client_that_sends_while_its_websocket_is_refused(
    contexts: Contexts,
    status: int,
    body: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its application, which says nothing or answers by itself: there is no second answer."""
    has_come = trio.Event()
    handle, app_send = WebSocket.handle, WebSocket.app_send

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await application(scope, receive, send)
        elif body:
            headers = [(b"content-length", b"%d" % len(body))]
            start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
            await send(start)
            await send({"type": "websocket.http.response.body", "body": body})

    async def tell_and_handle(websocket: WebSocket, event: Any) -> None:
        if isinstance(event, Body | Data):
            has_come.set()
        await handle(websocket, event)

    async def answer_slowly(websocket: WebSocket, message: Any) -> None:
        websocket.send = waiting_amid_an_answer(websocket.send, has_come.wait)
        await app_send(websocket, message)

    monkeypatch.setattr(WebSocket, "handle", tell_and_handle)
    monkeypatch.setattr(WebSocket, "app_send", answer_slowly)
    log = logging.getLogger(__name__)
    async with serving(config_of(contexts, errorlog=log), app) as (url, _):
        peer = await raw_peer(contexts, url)
        with peer.sock:
            request = Request(host="localhost", target="/talk")
            peer.send(WSConnection(ConnectionType.CLIENT).send(request))
            head = await trio.to_thread.run_sync(receive_until, peer, b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            peer.send(FRAME)
            end = await trio.to_thread.run_sync(peer.end)
            assert end.is_clean
            assert end.data == body
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def leave(peer: Peer, http2: bool, how: str) -> None:
    """Open a WebSocket, which is pinged at once, and end it."""
    websocket: Http2WebSocket | WebSocketPeer
    websocket = Http2WebSocket(Http2Peer(peer), 1) if http2 else WebSocketPeer(peer, "/talk")
    assert isinstance(websocket.receive(), Ping)
    if how == "reset":
        peer.vanish()
    elif how == "end":
        peer.send_close_notify()
    else:
        close = CloseConnection(code=1000)
        if isinstance(websocket, Http2WebSocket):
            websocket.send(close)
        else:
            peer.send(websocket.protocol.send(close))
        assert websocket.receive().code == 1000


@pytest.mark.parametrize("how", ["Close", "end", "reset"])
@pytest.mark.parametrize("http2", [False, True])
async def test_nothing_pings_a_websocket_that_is_over(
    contexts: Contexts, http2: bool, how: str
) -> None:
    """The server ends soon."""
    long = 10 * LIMIT
    config = config_of(contexts, websocket_ping_interval=long, graceful_timeout=long)
    with trio.fail_after(LIMIT):
        async with serving(config) as (url, ended):
            peer = await raw_peer(contexts, url, alpn="h2" if http2 else "http/1.1")
            await trio.to_thread.run_sync(leave, peer, http2, how)
            ended.set()
    peer.sock.close()


@pytest.mark.parametrize("http2", [False, True])
async def test_a_websocket_whose_message_is_too_big_is_over(
    contexts: Contexts, http2: bool
) -> None:
    """Though its client goes on: the rest of the message would be kept without a limit."""
    over = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await application(scope, receive, send)
        if scope["type"] == "websocket":
            over.set()

    said = bytes.fromhex("02 8b 00000000") + bytes(11)  # and more is to follow
    config = config_of(contexts, websocket_max_message_size=10)
    async with serving(config, app) as (url, ended):
        peer = await raw_peer(contexts, url, alpn="h2" if http2 else "http/1.1")
        assert await trio.to_thread.run_sync(talk, peer, http2, said) == 1009
        with trio.fail_after(LIMIT):
            await over.wait()
        ended.set()
        assert (await trio.to_thread.run_sync(peer.end)).is_clean


@pytest.mark.parametrize("cancelled", [False, True])
async def test_http2_without_tls_says_goaway(contexts: Contexts, cancelled: bool) -> None:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    said = await said_last(contexts, client.data_to_send(), cancelled=cancelled)
    assert isinstance(client.receive_data(said)[-1], h2.events.ConnectionTerminated)


async def test_the_request_that_asked_for_http2_is_counted(contexts: Contexts) -> None:
    config = config_of(contexts, certfile=None, keyfile=None, keep_alive_max_requests=1)
    config.keep_alive_timeout = 10 * LIMIT
    client = h2.connection.H2Connection()
    settings = client.initiate_upgrade_connection()
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    head += b"Upgrade: h2c\r\nHTTP2-Settings: %s\r\n\r\n" % settings
    async with serving(config) as (url, _):
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        await stream.send_all(head)
        heard = b""
        with trio.fail_after(LIMIT):
            async for data in stream:
                heard += data
        await stream.aclose()
    *_, goaway = client.receive_data(heard.partition(b"\r\n\r\n")[2])
    assert isinstance(goaway, h2.events.ConnectionTerminated)
    assert goaway.last_stream_id == 1


async def said_last(contexts: Contexts, opening: bytes, *, cancelled: bool) -> bytes:
    """What a client without TLS hears, from its first words to the server's end."""
    config = config_of(contexts, certfile=None, keyfile=None, graceful_timeout=0)
    with trio.CancelScope() as scope:
        async with serving(config) as (url, ended):
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
            await stream.send_all(opening)
            heard = await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            (scope.cancel if cancelled else ended.set)()
            with trio.CancelScope(shield=True):
                async for data in stream:
                    heard += data
                await stream.aclose()
    return heard


def test_ctrl_c_ends_it_in_order(contexts: Contexts) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def tell() -> Any:
            message = await receive()
            told.append(message["type"])
            return message

        if scope["type"] != "lifespan":
            interrupt()
        await application(scope, tell, send)

    def client(address: Any) -> End:
        peer = Peer(socket.create_connection(address), contexts, server_side=False)
        peer.handshake()
        peer.send(GET)
        return peer.end()

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = config_of(contexts, bind=f"fd://{listener.detach()}")
    with ThreadPoolExecutor() as pool:
        end = pool.submit(client, address)
        trio.run(serve, app, config)
    assert end.result().is_clean
    assert end.result().data.endswith(b"1.1")
    assert told == ["lifespan.startup", "lifespan.shutdown"]


@trio.lowlevel.enable_ki_protection
def interrupt() -> None:
    """Ctrl-C, while none of the program's own code runs."""
    signal.raise_signal(signal.SIGINT)


async def test_it_ends_after_so_many_requests(contexts: Contexts) -> None:
    config = config_of(contexts, max_requests=1, graceful_timeout=10 * LIMIT)
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(serve, application, config)
        async with client_of(contexts) as client:
            for _ in range(2):
                await client.get(url.replace("127.0.0.1", "localhost"))


async def test_one_that_does_not_start(contexts: Contexts) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await serve(unwilling, config_of(contexts))  # type: ignore[arg-type]
    assert caught.value.subgroup(LifespanFailureError) is not None


def test_without_hypercorn_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypercorn.trio.lifespan", None)
    monkeypatch.delitem(sys.modules, "ringtls.hypercorn")
    text = r"^ringtls.hypercorn needs hypercorn: pip install 'ringtls\[asgi\]'$"
    with pytest.raises(ModuleNotFoundError, match=text):
        importlib.import_module("ringtls.hypercorn")
