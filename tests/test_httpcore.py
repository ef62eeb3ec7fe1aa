"""ringtls.httpcore: httpx against servers that others wrote, and against scripted ones."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import select
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from ringtls import open_tcp_stream, serve_tcp, serve_tls_over_tcp
from ringtls.httpcore import RingBackend, transport
from ringtls.httpcore._requests import requests_of

from .conftest import Contexts, contexts_of
from .support import foreign_servers
from .support.http_peers import read_head
from .support.peer import End, Peer
from .support.scripted import playing, replaying
from .support.streams import refusing_port, reset
from .support.waiting import LIMIT, cut_off, until

#: Requests with pauses around the server's keep-alive time.
REQUESTS = int(os.environ.get("RINGTLS_POOL_REQUESTS", "20"))

#: Seconds after which a server ends an idle connection.
KEEP_ALIVE = 0.05

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
TIMEOUT_ANSWER = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

#: How HTTP/2 begins; and frames of it: one that says nothing, a request, its answer, a reset.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_FRAME = bytes(9)
GET_FRAME = bytes.fromhex("000001 01 05 00000003 82")
ANSWER_FRAME = bytes.fromhex("000001 01 05 00000003 88")
RESET_FRAME = bytes.fromhex("000004 03 00 00000003 00000000")

#: More than the buffers of a connection take in.
PIECES, PIECE = 64, bytes(65536)


def connecting(contexts: Contexts, **arguments: Any) -> httpx.AsyncClient:
    verify = contexts_of(contexts.ca, contexts.certificate, contexts.key).client
    limits = httpx.Limits(keepalive_expiry=None)  # so that only what the server does ends one
    arguments = {"verify": verify, "limits": limits, **arguments}
    return httpx.AsyncClient(transport=transport(**arguments), timeout=LIMIT)


def pooled(client: httpx.AsyncClient) -> Any:
    """The connections of its pool."""
    made = client._transport
    assert isinstance(made, httpx.AsyncHTTPTransport)
    assert isinstance(made._pool, httpcore.AsyncConnectionPool)
    return made._pool.connections


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "log"


@pytest.fixture(scope="module")
def uvicorn(contexts: Contexts, logs: Path) -> Iterator[str]:
    with foreign_servers.uvicorn(contexts, logs, timeout_keep_alive=KEEP_ALIVE) as port:
        yield f"https://localhost:{port}"


@pytest.fixture(scope="module")
def hypercorn(contexts: Contexts, logs: Path) -> Iterator[str]:
    with foreign_servers.hypercorn(contexts, logs) as port:
        yield f"https://localhost:{port}"


@pytest.fixture(params=["1.1", "2"])
def version(request: pytest.FixtureRequest) -> str:
    """Of HTTP."""
    chosen: str = request.param
    return chosen


# Both versions of HTTP


async def test_requests_share_a_connection(
    contexts: Contexts, hypercorn: str, version: str
) -> None:
    async with connecting(contexts, http2=version == "2") as client:
        for _ in range(3):
            assert (await client.get(hypercorn)).text == version
        assert len(pooled(client)) == 1


async def test_many_at_once(contexts: Contexts, hypercorn: str, version: str) -> None:
    async def request() -> None:
        assert (await client.post(f"{hypercorn}/echo", content=PIECE)).content == PIECE

    async with connecting(contexts, http2=version == "2") as client, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(request)


async def test_bodies_in_pieces(contexts: Contexts, hypercorn: str, version: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield PIECE

    received = 0
    async with (
        connecting(contexts, http2=version == "2") as client,
        client.stream("POST", f"{hypercorn}/echo", content=pieces()) as response,
    ):
        async for data in response.aiter_raw():
            received += len(data)
    assert received == PIECES * len(PIECE)


async def test_a_cancelled_download(contexts: Contexts, hypercorn: str, version: str) -> None:
    """The next request goes on the same connection if the version of HTTP allows that."""

    async def download() -> None:
        async with client.stream("GET", f"{hypercorn}/much") as response:
            async for _ in response.aiter_raw():
                scope.cancel()

    async with connecting(contexts, http2=version == "2") as client:
        with trio.CancelScope() as scope:
            await download()
        assert scope.cancelled_caught
        assert (await client.get(hypercorn)).text == version
        assert len(pooled(client)) == 1


async def test_a_request_that_is_cancelled_behind_the_handshake(
    contexts: Contexts, hypercorn: str, version: str
) -> None:
    """Its place in the pool is free again."""

    async def cancel(name: str, info: Any) -> None:
        if name == "connection.start_tls.complete":
            scope.cancel()

    limits = httpx.Limits(max_connections=1)
    async with connecting(contexts, http2=version == "2", limits=limits) as client:
        client.timeout = httpx.Timeout(LIMIT, pool=0)
        with trio.CancelScope() as scope:
            await client.get(hypercorn, extensions={"trace": cancel})
        assert scope.cancelled_caught
        assert (await client.get(hypercorn)).text == version


async def test_over_a_unix_socket(contexts: Contexts, logs: Path) -> None:
    path = str(logs.with_name("socket"))
    with foreign_servers.uvicorn(contexts, logs, path=path):
        async with connecting(contexts, uds=path) as client:
            assert (await client.get("https://localhost")).text == "1.1"


async def test_plain(contexts: Contexts, logs: Path) -> None:
    with foreign_servers.uvicorn(contexts, logs, plain=True) as port:
        async with connecting(contexts) as client:
            for _ in range(2):
                response = await client.get(f"http://localhost:{port}")
                assert response.text == "1.1"
            (connection,) = pooled(client)
            assert not connection.has_expired()
            stream = response.extensions["network_stream"]
            assert stream.get_extra_info("ssl_object") is None


# How the connection ends


@asynccontextmanager
async def downloading(
    contexts: Contexts, end: Callable[[Peer], End]
) -> AsyncIterator[httpx.Response]:
    """A response that has begun to come, and how the server sees it end."""

    def send_for_ever(peer: Peer) -> None:
        read_head(peer)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + PIECE)
        assert end(peer).is_clean

    with playing(contexts, send_for_ever) as port:
        async with (
            connecting(contexts) as client,
            client.stream("GET", f"https://localhost:{port}") as response,
        ):
            yield response


async def test_a_cancelled_download_ends_with_close_notify(contexts: Contexts) -> None:
    with trio.CancelScope() as scope:
        async with downloading(contexts, Peer.end) as response:
            async for _ in response.aiter_raw():
                scope.cancel()
    assert scope.cancelled_caught


async def test_a_download_that_is_left_ends_with_close_notify(contexts: Contexts) -> None:
    async with downloading(contexts, Peer.end) as response:
        assert response.is_success


async def test_a_client_that_is_left_ends_with_close_notify(contexts: Contexts) -> None:
    ends = []

    def answer(peer: Peer) -> None:
        read_head(peer)
        peer.send(ANSWER)
        ends.append(peer.end())

    with playing(contexts, answer) as port:
        async with connecting(contexts) as client:
            assert (await client.get(f"https://localhost:{port}")).text == "ok"
    assert ends[0].is_clean


# What a pool must see


def end_by_close_notify(peer: Peer) -> None:
    peer.send_close_notify()
    peer.sock.shutdown(socket.SHUT_WR)
    peer.end()


def end_by_a_late_answer(peer: Peer) -> None:
    peer.send(TIMEOUT_ANSWER)
    end_by_close_notify(peer)


def end_by_fin(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)
    peer.end()


def end_by_reset(peer: Peer) -> None:
    reset(peer.sock)


ENDS = [end_by_close_notify, end_by_a_late_answer, end_by_fin, end_by_reset]


def answer_and_end(peer: Peer, end: Callable[[Peer], None], is_idle: threading.Event) -> None:
    read_head(peer)
    peer.send(ANSWER)
    assert is_idle.wait(LIMIT)
    end(peer)


def answer_until_the_end(peer: Peer) -> None:
    read_head(peer)
    peer.send(ANSWER)
    peer.end()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("is_proxied", [False, True], ids=["direct", "proxied"])
async def test_a_connection_that_ended_idle_is_not_used(
    contexts: Contexts, end: Callable[[Peer], None], is_proxied: bool
) -> None:
    is_idle = threading.Event()
    first = partial(answer_and_end, end=end, is_idle=is_idle)
    async with AsyncExitStack() as stack:
        port = stack.enter_context(playing(contexts, first, answer_until_the_end))
        proxy = None
        if is_proxied:
            url = await stack.enter_async_context(proxying(contexts, "https", []))
            proxy = httpx.Proxy(url, ssl_context=contexts.client)
        client = await stack.enter_async_context(connecting(contexts, proxy=proxy))
        await client.get(f"https://localhost:{port}")
        (connection,) = pooled(client)
        assert not connection.has_expired()
        is_idle.set()
        await until(connection.has_expired)
        # Not a request that could be sent twice.
        assert (await client.post(f"https://localhost:{port}")).text == "ok"


@pytest.mark.parametrize("end", ENDS)
async def test_a_request_does_not_begin_where_the_end_has_come(
    contexts: Contexts, end: Callable[[Peer], None]
) -> None:
    """Even if the pool has not seen it. What is no request, as on an upgraded connection, does."""
    is_idle = threading.Event()
    with playing(contexts, partial(answer_and_end, end=end, is_idle=is_idle)) as port:
        async with connecting(contexts) as client:
            response = await client.get(f"https://localhost:{port}")
            stream = response.extensions["network_stream"]
            is_idle.set()
            await until(lambda: stream.get_extra_info("is_readable"))
            with pytest.raises(httpcore.ConnectionNotAvailable):
                await stream.write(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def test_what_is_upgraded_is_no_request(contexts: Contexts) -> None:
    headers = {"Connection": "upgrade", "Upgrade": "greetings"}

    def switch(peer: Peer) -> None:
        read_head(peer)
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\nwelcome")
        assert peer.receive(2) == b"hi"
        peer.end()

    with playing(contexts, switch) as port:
        async with (
            connecting(contexts) as client,
            client.stream("GET", f"https://localhost:{port}", headers=headers) as response,
        ):
            stream = response.extensions["network_stream"]
            assert await stream.read(2) == b"we"
            assert await stream.read(5) == b"lcome"
            await stream.write(b"h")
            await stream.write(b"i")


ASKING = {
    "CONNECT": ({"Host": "far:80"}, b"HTTP/1.1 200 OK\r\n\r\n"),
    "GET": (
        {"Connection": "upgrade", "upgrade": "greetings"},
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
    ),
}


@pytest.mark.parametrize("method", ASKING)
async def test_nor_is_one_of_the_users_own(contexts: Contexts, method: str) -> None:
    """It goes out where something lies unread, and the end of the tunnel is an end."""
    headers, answer = ASKING[method]
    is_begun = threading.Event()

    def switch(peer: Peer) -> None:
        read_head(peer)
        peer.send(answer)
        assert is_begun.wait(LIMIT)
        peer.send(b"welcome")
        assert read_head(peer) == REQUEST
        end_by_close_notify(peer)

    with playing(contexts, switch) as port:
        async with (
            connecting(contexts) as client,
            client.stream(method, f"https://localhost:{port}", headers=headers) as response,
        ):
            is_begun.set()
            stream = response.extensions["network_stream"]
            await until(lambda: stream.get_extra_info("is_readable"))
            await stream.write(REQUEST)
            assert await stream.read(7) == b"welcome"
            assert await stream.read(7) == b""


def answer_once_then(peer: Peer, end: Callable[[Peer], None]) -> None:
    """Take the second request, and end."""
    read_head(peer)
    peer.send(ANSWER)
    read_head(peer)
    end(peer)


ENDS_AMID = [end_by_close_notify, end_by_fin, end_by_reset]


@pytest.mark.parametrize("end", ENDS_AMID)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_request_that_met_the_end_is_sent_again(
    contexts: Contexts, end: Callable[[Peer], None], method: str
) -> None:
    with playing(contexts, partial(answer_once_then, end=end), answer_until_the_end) as port:
        async with connecting(contexts) as client:
            await client.get(f"https://localhost:{port}")
            assert (await client.request(method, f"https://localhost:{port}")).is_success


@pytest.mark.parametrize("end", ENDS_AMID)
@pytest.mark.parametrize(("method", "content"), [("POST", None), ("DELETE", None), ("GET", b"x")])
async def test_others_are_not_sent_again(
    contexts: Contexts, end: Callable[[Peer], None], method: str, content: bytes | None
) -> None:
    with playing(contexts, partial(answer_once_then, end=end)) as port:
        async with connecting(contexts) as client:
            await client.get(f"https://localhost:{port}")
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.request(method, f"https://localhost:{port}", content=content)


@pytest.mark.parametrize("end", ENDS_AMID)
async def test_nor_is_the_first_of_a_connection(
    contexts: Contexts, end: Callable[[Peer], None]
) -> None:
    def take_and_end(peer: Peer) -> None:
        read_head(peer)
        end(peer)

    with playing(contexts, take_and_end) as port:
        async with connecting(contexts) as client:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.get(f"https://localhost:{port}")


#: How SOCKS begins, and its answer: RFC 1928, section 3.
SOCKS, SOCKS_ANSWER = b"\5\1\0", b"\5\0"


def begin_with_socks(sock: socket.socket, contexts: Contexts) -> Peer:
    assert sock.recv(len(SOCKS)) == SOCKS
    sock.sendall(SOCKS_ANSWER)
    return Peer(sock, contexts, server_side=True)


def receive_plainly(peer: Peer, count: int) -> None:
    while count:
        count -= len(peer.sock.recv(count))


async def through_socks(port: int) -> httpcore.AsyncNetworkStream:
    stream = await RingBackend().connect_tcp("127.0.0.1", port)
    await stream.write(SOCKS)
    assert await stream.read(len(SOCKS_ANSWER)) == SOCKS_ANSWER
    return stream


async def test_nor_is_the_first_after_socks(contexts: Contexts) -> None:
    def take_and_end(peer: Peer) -> None:
        receive_plainly(peer, len(REQUEST))
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.sock.recv(1) == b""

    with playing(contexts, take_and_end, begin=begin_with_socks) as port:
        stream = await through_socks(port)
        await stream.write(REQUEST)
        assert await stream.read(1) == b""
        await stream.aclose()


async def test_http2_after_socks_is_known(contexts: Contexts) -> None:
    """With prior knowledge: a request does not begin where the end has come."""

    def answer_and_end(peer: Peer) -> None:
        receive_plainly(peer, len(PREFACE + GET_FRAME))
        peer.sock.sendall(ANSWER_FRAME)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.sock.recv(1) == b""

    with playing(contexts, answer_and_end, begin=begin_with_socks) as port:
        stream = await through_socks(port)
        await stream.write(PREFACE)
        await stream.write(GET_FRAME)
        assert await stream.read(len(ANSWER_FRAME)) == ANSWER_FRAME
        await until(lambda: stream.get_extra_info("is_readable"))
        with pytest.raises(httpcore.ConnectionNotAvailable):
            await stream.write(GET_FRAME)


async def test_nor_is_one_whose_answer_has_begun(contexts: Contexts) -> None:
    def send_half(peer: Peer) -> None:
        peer.send(ANSWER[:-1])
        end_by_close_notify(peer)

    with playing(contexts, partial(answer_once_then, end=send_half)) as port:
        async with connecting(contexts) as client:
            await client.get(f"https://localhost:{port}")
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"https://localhost:{port}")


# The same for HTTP/2


class Http2Server:
    """The server's side of a connection, over a raw peer."""

    def __init__(self, peer: Peer, at_once: int = 100) -> None:
        self.peer = peer
        self._http2 = H2Connection(H2Configuration(client_side=False))
        self._http2.local_settings = Settings(
            client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: at_once}
        )
        self._http2.initiate_connection()
        self._open: set[int] = set()
        self._whole: set[int] = set()

    def receive(self, count: int, of: type[Event] = StreamEnded) -> None:
        """Receive so many requests, whole."""
        while count:
            for event in self._http2.receive_data(self.peer.receive(1)):
                if isinstance(event, RequestReceived):
                    self._open.add(event.stream_id)
                elif isinstance(event, StreamEnded):
                    self._whole.add(event.stream_id)
                count -= isinstance(event, of)
        self.flush()

    def answer(self) -> None:
        self.prepare_answers()
        self.flush()

    def answer_in_one_piece(self) -> None:
        self.prepare_answers()
        self.peer.send(self._http2.data_to_send())

    def prepare_answers(self, *, resets: bool = True) -> None:
        """The latest first. What is not whole is reset, as nginx does it."""
        for stream in sorted(self._open, reverse=True):
            self._http2.send_headers(stream, [(":status", "200")])
            self._http2.send_data(stream, b"ok", end_stream=True)
            if resets and stream not in self._whole:
                self._http2.reset_stream(stream, ErrorCodes.NO_ERROR)
        self._open.clear()

    def answer_next(self) -> None:
        self.receive(1)
        self.answer()

    def begin_to_answer(self) -> None:
        for stream in self._open:
            self._http2.send_headers(stream, [(":status", "200")])
        self.flush()

    def ping(self) -> None:
        self._http2.ping(b"anybody?")
        self.flush()

    def prepare_ping(self) -> None:
        """It goes out with what is sent next."""
        self._http2.ping(b"anybody?")
        self.peer.ssl.write(self._http2.data_to_send())

    def say_goaway(self) -> None:
        self._http2.close_connection()
        self.flush()

    def flush(self) -> None:
        """In pieces: a frame may come so."""
        for byte in self._http2.data_to_send():
            self.peer.send(bytes([byte]))


def end_by_goaway(server: Http2Server) -> None:
    """Of the connection, by the client."""
    server.say_goaway()
    assert server.peer.end().is_clean


def end_by_goaway_and_close_notify(server: Http2Server) -> None:
    server.say_goaway()
    end_by_close_notify(server.peer)


def end_by_ping_and_close_notify(server: Http2Server) -> None:
    """Both in one piece: after the PING alone the connection is as good as before."""
    server.prepare_ping()
    end_by_close_notify(server.peer)


#: To GOAWAY httpcore itself sees.
HTTP2_ENDS: list[Callable[[Http2Server], None]] = [
    end_by_goaway,
    end_by_goaway_and_close_notify,
    end_by_ping_and_close_notify,
    *(lambda server, end=end: end(server.peer) for end in ENDS_AMID),
]
HTTP2_END_NAMES = ["goaway", "goaway and close_notify", "ping and close_notify"]
HTTP2_END_NAMES += ["close_notify", "fin", "reset"]


@pytest.fixture
def http2_contexts(contexts: Contexts) -> Contexts:
    made = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    made.server.set_alpn_protocols(["h2", "http/1.1"])
    return made


def http2_answer_until_the_end(peer: Peer) -> None:
    server = Http2Server(peer)
    server.answer_next()
    peer.end()


@pytest.mark.parametrize("end", HTTP2_ENDS, ids=HTTP2_END_NAMES)
@pytest.mark.parametrize("is_proxied", [False, True], ids=["direct", "proxied"])
async def test_a_connection_of_http2_that_ended_idle_is_not_used(
    http2_contexts: Contexts, end: Callable[[Http2Server], None], is_proxied: bool
) -> None:
    is_idle = threading.Event()

    def first(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        assert is_idle.wait(LIMIT)
        end(server)

    async with AsyncExitStack() as stack:
        port = stack.enter_context(playing(http2_contexts, first, http2_answer_until_the_end))
        proxy = None
        if is_proxied:
            url = await stack.enter_async_context(proxying(http2_contexts, "https", []))
            proxy = httpx.Proxy(url, ssl_context=http2_contexts.client)
        client = await stack.enter_async_context(
            connecting(http2_contexts, proxy=proxy, http2=True)
        )
        response = await client.get(f"https://localhost:{port}")
        assert response.http_version == "HTTP/2"
        info = response.extensions["network_stream"].get_extra_info
        assert not info("is_readable")
        is_idle.set()
        await until(lambda: info("is_readable"))
        # Not a request that could be sent twice.
        assert (await client.post(f"https://localhost:{port}", content=b"x")).text == "ok"
        assert len(pooled(client)) == 1


async def test_what_a_server_says_idle_does_not_end_a_connection_of_http2(
    http2_contexts: Contexts,
) -> None:
    is_idle = threading.Event()

    def script(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        assert is_idle.wait(LIMIT)
        server.ping()
        server.answer_next()
        peer.end()

    with playing(http2_contexts, script) as port:
        async with connecting(http2_contexts, http2=True) as client:
            response = await client.get(f"https://localhost:{port}")
            is_idle.set()
            info = response.extensions["network_stream"].get_extra_info
            await until(lambda: info("is_readable"))
            assert (await client.post(f"https://localhost:{port}")).text == "ok"


async def test_what_waits_in_a_connection_when_goaway_comes_goes_elsewhere(
    http2_contexts: Contexts,
) -> None:
    is_waiting = threading.Event()

    def first(peer: Peer) -> None:
        server = Http2Server(peer, at_once=1)
        server.answer_next()
        server.receive(1)
        assert is_waiting.wait(LIMIT)
        server.say_goaway()
        peer.end()

    async def get() -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url)

    async def post() -> None:
        assert (await client.post(url, content=b"x")).text == "ok"

    with playing(http2_contexts, first, http2_answer_until_the_end) as port:
        url = f"https://localhost:{port}"
        async with (
            connecting(http2_contexts, http2=True) as client,
            trio.open_nursery() as nursery,
        ):
            await client.get(url)
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(post)
            await trio.testing.wait_all_tasks_blocked()
            is_waiting.set()


@pytest.mark.parametrize("http2", [False, True])
async def test_nothing_goes_elsewhere_when_the_client_is_closed(
    contexts: Contexts, http2_contexts: Contexts, http2: bool
) -> None:
    """Neither what is on its way nor, in HTTP/2, what waits in the connection."""

    def first(peer: Peer) -> None:
        if http2:
            server = Http2Server(peer, at_once=1)
            server.answer_next()
        else:
            read_head(peer)
            peer.send(ANSWER)
        assert peer.end().is_clean

    async def request(method: str) -> None:
        with pytest.raises((httpx.ReadError, httpx.LocalProtocolError)):
            await client.request(method, url)

    with playing(http2_contexts if http2 else contexts, first) as port:
        url = f"https://localhost:{port}"
        client = connecting(contexts, http2=http2)
        async with trio.open_nursery() as nursery:
            await client.get(url)
            for method in ("GET", "POST") if http2 else ("GET",):
                nursery.start_soon(request, method)
                await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
        assert not pooled(client)


async def test_what_was_sent_when_goaway_comes_does_not_go_elsewhere(
    http2_contexts: Contexts,
) -> None:
    """Even if the caller is about to handle the error of one that was not sent."""

    def first(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        server.receive(1)
        end_by_goaway(server)

    scripts = iter([first, http2_answer_until_the_end])
    with replaying(http2_contexts, lambda peer: next(scripts)(peer)) as port:
        url = f"https://localhost:{port}"
        async with connecting(http2_contexts, http2=True) as client:
            await client.get(url)
            with pytest.raises(httpx.RemoteProtocolError):
                try:
                    ended = H2Connection()
                    ended.close_connection()
                    ended.send_headers(1, [])
                except ProtocolError:
                    await client.post(url, content=b"x")


@pytest.mark.parametrize("end", [Peer.send_close_notify, end_by_reset])
async def test_an_answer_that_has_come_outlives_the_end(
    http2_contexts: Contexts, end: Callable[[Peer], None]
) -> None:
    """1. An answer has come whole, and its body was not taken yet. 2. The connection ends.

    3. Another request takes another connection. 4. The body is taken.
    """
    has_come = threading.Event()

    def first(peer: Peer) -> None:
        server = Http2Server(peer)
        server.receive(1)
        server.answer_in_one_piece()
        assert has_come.wait(LIMIT)
        end(peer)

    with playing(http2_contexts, first, http2_answer_until_the_end) as port:
        url = f"https://localhost:{port}"
        async with (
            connecting(http2_contexts, http2=True) as client,
            client.stream("GET", url) as response,
        ):
            has_come.set()
            info = response.extensions["network_stream"].get_extra_info
            await until(lambda: info("is_readable"))
            assert (await client.post(url)).text == "ok"
            assert await response.aread() == b"ok"


@pytest.mark.parametrize("answer", [Http2Server.answer, Http2Server.answer_in_one_piece])
async def test_an_answer_ahead_of_its_upload(
    http2_contexts: Contexts, answer: Callable[[Http2Server], None]
) -> None:
    """1. Two requests have come, the first one without its body.

    2. Both are answered, and the first one is reset behind its answer.
    3. The second has its answer. 4. The first sends its body, and has its answer, too.
    """
    is_answered = trio.Event()

    def script(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        server.receive(2, of=RequestReceived)
        answer(server)
        peer.end()

    async def body() -> AsyncIterator[bytes]:
        nursery.start_soon(get)
        await is_answered.wait()
        yield b"x"

    async def get() -> None:
        assert (await client.get(url)).text == "ok"
        is_answered.set()

    with playing(http2_contexts, script) as port:
        url = f"https://localhost:{port}"
        async with (
            connecting(http2_contexts, http2=True) as client,
            trio.open_nursery() as nursery,
        ):
            await client.get(url)
            assert (await client.post(url, content=body())).text == "ok"


def test_a_reset_is_handed_over_alone() -> None:
    """However it comes."""
    data = EMPTY_FRAME + ANSWER_FRAME + RESET_FRAME
    for comes in range(1, len(data)):
        requests = requests_of(PREFACE)
        assert requests is not None
        pieces = [*requests.received(data[:comes]), *requests.received(data[comes:])]
        assert b"".join(pieces) == data
        *_, last = pieces
        assert 0 < len(last) <= len(RESET_FRAME)


async def test_who_looks_does_not_meet_who_reads(http2_contexts: Contexts) -> None:
    """1. The server has said something, and nobody reads.

    2. A request begins, and takes that in.
    3. Amid that another one reads. Which of the two goes on first is up to trio.
    """
    rounds = 20
    is_idle = threading.Event()

    def script(peer: Peer) -> None:
        Http2Server(peer).answer_next()
        assert is_idle.wait(LIMIT)
        for _ in range(rounds):
            peer.send(EMPTY_FRAME)
            received = b""
            while not received.endswith(GET_FRAME):
                received += peer.receive(1)
        peer.end()

    async def read(stream: httpcore.AsyncNetworkStream) -> None:
        assert await stream.read(1000) == EMPTY_FRAME

    with playing(http2_contexts, script) as port:
        context = contexts_of(
            http2_contexts.ca, http2_contexts.certificate, http2_contexts.key
        ).client
        async with httpcore.AsyncConnectionPool(
            ssl_context=context, http2=True, network_backend=RingBackend()
        ) as pool:
            response = await pool.request("GET", f"https://localhost:{port}")
            stream = response.extensions["network_stream"]
            is_idle.set()
            for _ in range(rounds):
                await until(lambda: stream.get_extra_info("is_readable"))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, stream)
                    await stream.write(GET_FRAME)


@pytest.mark.parametrize("end", HTTP2_ENDS[2:], ids=HTTP2_END_NAMES[2:])
@pytest.mark.parametrize("count", [1, 3])
async def test_requests_of_http2_that_met_the_end_are_sent_again(
    http2_contexts: Contexts, end: Callable[[Http2Server], None], count: int
) -> None:
    def first(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        server.receive(count)
        end(server)

    def second(peer: Peer) -> None:
        server = Http2Server(peer)
        for _ in range(count):
            server.answer_next()
        peer.end()

    async def request(client: httpx.AsyncClient, url: str) -> None:
        assert (await client.get(url)).text == "ok"

    with playing(http2_contexts, first, second) as port:
        async with connecting(http2_contexts, http2=True) as client:
            await client.get(f"https://localhost:{port}")
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(request, client, f"https://localhost:{port}")


FAILURES = (httpx.RemoteProtocolError, httpx.ReadError)


@pytest.mark.parametrize("other", [("POST", None), ("GET", b"x"), ("DELETE", None)])
async def test_nothing_of_http2_is_sent_again_next_to_what_may_not_be(
    http2_contexts: Contexts, other: tuple[str, bytes | None]
) -> None:
    def script(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        server.receive(2)
        end_by_close_notify(peer)

    async def request(client: httpx.AsyncClient, method: str, content: bytes | None) -> None:
        with pytest.raises(FAILURES):
            await client.request(method, url, content=content)

    with playing(http2_contexts, script) as port:
        url = f"https://localhost:{port}"
        async with connecting(http2_contexts, http2=True) as client:
            await client.get(url)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request, client, "GET", None)
                nursery.start_soon(request, client, *other)


async def test_nor_is_what_was_answered_ahead_of_its_upload(http2_contexts: Contexts) -> None:
    """1. A POST is answered before it has sent its body; a GET next to it is not.

    2. The connection ends, and the GET is told so. 3. The POST goes on.
    """
    scripts = iter([one_answer_too_few, http2_answer_until_the_end])
    is_told = trio.Event()

    async def get() -> None:
        with suppress(*FAILURES):
            await client.get(url)
        is_told.set()

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            assert not is_told.is_set(), "sent again"
            nursery.start_soon(get)
            await is_told.wait()
            yield b"x"

    with replaying(http2_contexts, lambda peer: next(scripts)(peer)) as port:
        url = f"https://localhost:{port}"
        async with (
            connecting(http2_contexts, http2=True) as client,
            trio.open_nursery() as nursery,
        ):
            await client.get(url)
            assert (await client.post(url, content=Body())).text == "ok"


def one_answer_too_few(peer: Peer) -> None:
    server = Http2Server(peer)
    server.answer_next()
    server.receive(1, of=RequestReceived)
    server.prepare_answers(resets=False)
    server.receive(1)
    end_by_close_notify(peer)


async def test_nor_is_one_of_http2_whose_answer_has_begun(http2_contexts: Contexts) -> None:
    def script(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        server.receive(1)
        server.begin_to_answer()
        end_by_close_notify(peer)

    with playing(http2_contexts, script) as port:
        async with connecting(http2_contexts, http2=True) as client:
            await client.get(f"https://localhost:{port}")
            with pytest.raises(FAILURES):
                await client.get(f"https://localhost:{port}")


async def test_nor_is_the_first_of_a_connection_of_http2(http2_contexts: Contexts) -> None:
    def script(peer: Peer) -> None:
        Http2Server(peer).receive(1)
        end_by_close_notify(peer)

    with playing(http2_contexts, script) as port:
        async with connecting(http2_contexts, http2=True) as client:
            with pytest.raises(FAILURES):
                await client.get(f"https://localhost:{port}")


# In several runs


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("leaves_one", [False, True])
def test_a_client_outlives_a_run(http2_contexts: Contexts, leaves_one: bool) -> None:
    """Also with a request on its way that could not be sent twice."""
    has_come = threading.Event()

    def first(peer: Peer) -> None:
        server = Http2Server(peer)
        server.answer_next()
        if leaves_one:
            server.receive(1)
            has_come.set()
        peer.end()

    async def begin() -> None:
        await client.get(url)
        if leaves_one:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.post, url)
                await until(has_come.is_set)
                nursery.cancel_scope.cancel()

    async def go_on() -> None:
        assert (await client.post(url)).text == "ok"
        await client.aclose()

    with playing(http2_contexts, first, http2_answer_until_the_end) as port:
        url = f"https://localhost:{port}"
        client = connecting(http2_contexts, http2=True)
        trio.run(begin)
        trio.run(go_on)


# Against a server that ends idle connections


async def test_no_request_fails_around_the_keep_alive_time(
    contexts: Contexts, uvicorn: str
) -> None:
    async with connecting(contexts) as client:
        for _ in range(REQUESTS):
            assert (await client.get(uvicorn)).text == "1.1"
            await trio.sleep(random.uniform(0.5, 1.5) * KEEP_ALIVE)


def answer_until_idle(peer: Peer) -> None:
    """HTTP/2, whose end is close_notify alone."""
    server = Http2Server(peer)
    with suppress(EOFError):  # the client may end it first
        server.answer_next()
        while select.select([peer.sock], [], [], KEEP_ALIVE)[0]:
            server.answer_next()
    end_by_close_notify(peer)


async def test_nor_does_one_of_http2(http2_contexts: Contexts) -> None:
    with replaying(http2_contexts, answer_until_idle) as port:
        async with connecting(http2_contexts, http2=True) as client:
            for _ in range(REQUESTS):
                assert (await client.get(f"https://localhost:{port}")).text == "ok"
                await trio.sleep(random.uniform(0.5, 1.5) * KEEP_ALIVE)


# Proxies


async def tunnel(stream: trio.abc.Stream, seen: list[bytes]) -> None:
    """CONNECT."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    seen.append(head.split()[1])
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    async with await open_tcp_stream("localhost", int(head.split()[1].partition(b":")[2])) as far:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, stream, far)
                nursery.start_soon(carry, far, stream)
        except* trio.BrokenResourceError:
            pass  # both end


async def carry(source: trio.abc.ReceiveStream, sink: Any) -> None:
    async for data in source:
        await sink.send_all(data)
    await sink.send_eof()


@asynccontextmanager
async def proxying(contexts: Contexts, scheme: str, seen: list[bytes]) -> AsyncIterator[str]:
    handler = partial(tunnel, seen=seen)
    if scheme == "http":
        serve = partial(serve_tcp, handler, 0, host="127.0.0.1")
    else:
        serve = partial(serve_tls_over_tcp, handler, 0, contexts.server, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(serve)
        yield f"{scheme}://localhost:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_through_a_proxy(
    contexts: Contexts, hypercorn: str, scheme: str, version: str
) -> None:
    """With "https" this is TLS in TLS."""
    seen: list[bytes] = []
    async with proxying(contexts, scheme, seen) as url:
        proxy = httpx.Proxy(url, ssl_context=contexts.client if scheme == "https" else None)
        async with connecting(contexts, http2=version == "2", proxy=proxy) as client:
            for _ in range(2):
                response = await client.post(f"{hypercorn}/echo", content=PIECE)
                assert response.content == PIECE
                assert response.http_version == f"HTTP/{version}"
    assert seen == [hypercorn.removeprefix("https://").encode()]


# Errors


async def test_nobody_listens(contexts: Contexts) -> None:
    async with connecting(contexts) as client:
        with refusing_port() as port, pytest.raises(httpx.ConnectError, match="connect to"):
            await client.get(f"https://127.0.0.1:{port}")
    async with connecting(contexts, uds="/nowhere") as client:
        with pytest.raises(httpx.ConnectError, match="No such file"):
            await client.get("https://localhost")


async def test_a_certificate_that_nobody_knows(contexts: Contexts) -> None:
    async with connecting(contexts, verify=ssl.create_default_context()) as client:
        await get_in_vain(client, contexts)


async def test_a_certificate_for_what_is_no_name(contexts: Contexts) -> None:
    async with connecting(contexts) as client:
        await get_in_vain(client, contexts, sni_hostname="no..name")


async def get_in_vain(client: httpx.AsyncClient, contexts: Contexts, **extensions: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, refused, sock, contexts)
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(
                    f"https://localhost:{sock.getsockname()[1]}", extensions=extensions
                )


def refused(listener: socket.socket, contexts: Contexts) -> None:
    peer = Peer(listener.accept()[0], contexts, server_side=True)
    with peer.sock, pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca|bad.certificate"):
        peer.handshake()


async def test_socket_options(contexts: Contexts, hypercorn: str) -> None:
    keepalive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    async with connecting(contexts, socket_options=[keepalive]) as client:
        response = await client.get(hypercorn)
        sock = response.extensions["network_stream"].get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    async with connecting(contexts, socket_options=[(-1, -1, 1)]) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(hypercorn)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("connect", httpx.ConnectTimeout),
        ("read", httpx.ReadTimeout),
        ("write", httpx.WriteTimeout),
    ],
)
async def test_timeouts(
    contexts: Contexts, hypercorn: str, limit: str, expected: type[httpx.TimeoutException]
) -> None:
    async with connecting(contexts) as client:
        client.timeout = httpx.Timeout(LIMIT, **{limit: 0.0})
        with pytest.raises(expected, match="not done within 0 s"):
            await client.get(hypercorn)


async def test_a_handshake_that_takes_too_long(contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        below = await RingBackend().connect_tcp("127.0.0.1", sock.getsockname()[1])
        with pytest.raises(httpcore.ConnectTimeout):
            await below.start_tls(contexts.client, "localhost", timeout=0)
        assert below.get_extra_info("socket").fileno() < 0


async def test_a_handshake_that_is_cancelled(contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        below = await RingBackend().connect_tcp("127.0.0.1", sock.getsockname()[1])
        await cut_off(below.start_tls, contexts.client, "localhost")
        assert below.get_extra_info("socket").fileno() < 0


async def test_what_is_known_of_a_connection(contexts: Contexts, hypercorn: str) -> None:
    async with connecting(contexts) as client:
        response = await client.get(hypercorn)
        info = response.extensions["network_stream"].get_extra_info
        assert info("ssl_object").version() == "TLSv1.3"
        assert info("server_addr") == ("127.0.0.1", httpx.URL(hypercorn).port)
        assert info("client_addr") == info("socket").getsockname()
        assert not info("is_readable")
        assert info("something else") is None
    assert info("is_readable")


async def test_a_pool_of_httpcore(contexts: Contexts, hypercorn: str) -> None:
    context = contexts_of(contexts.ca, contexts.certificate, contexts.key).client
    async with httpcore.AsyncConnectionPool(
        ssl_context=context, network_backend=RingBackend(), retries=1
    ) as pool:
        assert (await pool.request("GET", hypercorn)).content == b"1.1"
        await RingBackend().sleep(0)


def test_outside_of_trio_one_clear_error(contexts: Contexts) -> None:
    async def main() -> None:
        async with connecting(contexts) as client:
            await client.get("https://localhost:1")

    with pytest.raises(RuntimeError, match="trio"):
        asyncio.run(main())


def test_another_httpx_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an assert it would connect by itself under python -O."""
    made = httpx.AsyncHTTPTransport()
    monkeypatch.setattr(made._pool, "_network_backend", None)
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda: made)
    with pytest.raises(TypeError, match="httpx has a network backend of a kind unknown: None"):
        transport()


@pytest.mark.parametrize("name", ["httpcore", pytest.param("httpx", marks=pytest.mark.long)])
def test_without_its_packages_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "ringtls.httpcore")
    text = rf"^ringtls.httpcore needs {name}: pip install 'ringtls\[httpx\]'$"
    with pytest.raises(ModuleNotFoundError, match=text) as caught:
        importlib.import_module("ringtls.httpcore")
    assert caught.value.name == name
