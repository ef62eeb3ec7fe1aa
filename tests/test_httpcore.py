"""ringtls.httpcore: httpx against servers that others wrote, and against scripted ones."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trio

from ringtls import open_tcp_stream, serve_tcp, serve_tls_over_tcp
from ringtls.httpcore import RingBackend, transport

from .conftest import Contexts, contexts_of
from .support import foreign_servers
from .support.peer import End, Peer
from .support.scripted import playing
from .support.streams import reset
from .support.waiting import LIMIT, cut_off, until

#: Requests with pauses around the server's keep-alive time.
REQUESTS = int(os.environ.get("RINGTLS_POOL_REQUESTS", "20"))

#: Seconds after which uvicorn ends an idle connection.
KEEP_ALIVE = 0.05

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT_ANSWER = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

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
        async with client.stream("GET", f"{hypercorn}/for-ever") as response:
            async for _ in response.aiter_raw():
                scope.cancel()

    async with connecting(contexts, http2=version == "2") as client:
        with trio.CancelScope() as scope:
            await download()
        assert scope.cancelled_caught
        assert (await client.get(hypercorn)).text == version
        assert len(pooled(client)) == 1


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
        request(peer)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + PIECE)
        assert end(peer).is_clean

    with playing(contexts, send_for_ever) as port:
        async with (
            connecting(contexts) as client,
            client.stream("GET", f"https://localhost:{port}") as response,
        ):
            yield response


def request(peer: Peer) -> bytes:
    """Receive a request without a body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += peer.receive(1)
    return head


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
        request(peer)
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
    request(peer)
    peer.send(ANSWER)
    assert is_idle.wait(LIMIT)
    end(peer)


def answer_until_the_end(peer: Peer) -> None:
    request(peer)
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


def answer_once_then(peer: Peer, end: Callable[[Peer], None]) -> None:
    """Take the second request, and end."""
    request(peer)
    peer.send(ANSWER)
    request(peer)
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
        request(peer)
        end(peer)

    with playing(contexts, take_and_end) as port:
        async with connecting(contexts) as client:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.get(f"https://localhost:{port}")


async def test_nor_is_one_whose_answer_has_begun(contexts: Contexts) -> None:
    def send_half(peer: Peer) -> None:
        peer.send(ANSWER[:-1])
        end_by_close_notify(peer)

    with playing(contexts, partial(answer_once_then, end=send_half)) as port:
        async with connecting(contexts) as client:
            await client.get(f"https://localhost:{port}")
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"https://localhost:{port}")


async def test_no_request_fails_around_the_keep_alive_time(
    contexts: Contexts, uvicorn: str
) -> None:
    async with connecting(contexts) as client:
        for _ in range(REQUESTS):
            assert (await client.get(uvicorn)).text == "1.1"
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
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with connecting(contexts) as client:
        with pytest.raises(httpx.ConnectError, match="connect to"):
            await client.get(f"https://127.0.0.1:{port}")
    async with connecting(contexts, uds="/nowhere") as client:
        with pytest.raises(httpx.ConnectError, match="No such file"):
            await client.get("https://localhost")


async def test_a_certificate_that_nobody_knows(contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with (
            connecting(contexts, verify=ssl.create_default_context()) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.to_thread.run_sync, refused, sock, contexts)
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://localhost:{sock.getsockname()[1]}")


def refused(listener: socket.socket, contexts: Contexts) -> None:
    peer = Peer(listener.accept()[0], contexts, server_side=True)
    with peer.sock, pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
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


@pytest.mark.parametrize("name", ["httpcore", "httpx"])
def test_without_its_packages_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "ringtls.httpcore")
    text = rf"^ringtls.httpcore needs {name}: pip install 'ringtls\[httpx\]'$"
    with pytest.raises(ModuleNotFoundError, match=text) as caught:
        importlib.import_module("ringtls.httpcore")
    assert caught.value.name == name
