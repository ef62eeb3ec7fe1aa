"""``ringtls asgi``: frameworks, what it adds to hypercorn's protocols, and how connections end."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import h2.errors
import h2.events
import httpx
import pytest
from h2.settings import SettingCodes
from wsproto.events import CloseConnection

from ringtls._cli import main
from ringtls._cli.certificates import make_certificate
from ringtls.httpcore import transport

from .conftest import Contexts, contexts_of
from .support.application import CANCELLED, MUCH, PIECE
from .support.http_peers import Http2Peer, Http2WebSocket, WebSocketPeer, client_of, read_head
from .support.peer import Peer
from .support.server import Server, fails, read_metrics
from .support.streams import reset
from .support.waiting import wait_until

ROOT = Path(__file__).parent.parent

Start = Callable[..., Server]


@pytest.fixture
def start(contexts: Contexts, tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def start(application: str, *arguments: str, contexts: Contexts = contexts) -> Server:
        subcommand = ["asgi", f"tests.{application}"]
        log = tmp_path / f"stderr-{len(servers)}"
        made = Server(contexts, ROOT, log, *arguments, subcommand=subcommand, cwd=ROOT)
        servers.append(made)
        return made

    yield start
    for server in servers:
        server.end()


APPLICATION = "support.application:application"


def peer_of(server: Server, contexts: Contexts, *, alpn: str = "http/1.1") -> Peer:
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    own.client.set_alpn_protocols([alpn])
    peer = Peer(server.tcp(), own, server_side=False)
    peer.handshake()
    return peer


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


# Frameworks


@pytest.mark.long
@pytest.mark.parametrize("framework", ["starlette", "fastapi", "quart"])
async def test_frameworks(contexts: Contexts, start: Start, framework: str) -> None:
    server = start(f"applications.of_{framework}:app")
    url = f"https://localhost:{server.port}"
    for http2 in (False, True):
        async with client_of(contexts, http2=http2) as client:
            response = await client.get(url)
            assert (response.text, response.http_version) == (
                "hello",
                "HTTP/2" if http2 else "HTTP/1.1",
            )
            assert (await client.post(f"{url}/echo", content=PIECE)).content == PIECE
    websocket = WebSocketPeer(peer_of(server, contexts), "/talk")
    assert websocket.say("over").data == "over"
    websocket.peer.send(websocket.protocol.send(CloseConnection(code=1000)))
    assert websocket.receive().code == 1000
    assert websocket.peer.end().is_clean
    assert server.stop() == 0
    assert "rror" not in server.log()


# How connections end, as a raw peer sees it


def test_the_end_after_an_answer(contexts: Contexts, start: Start) -> None:
    peer = peer_of(start(APPLICATION), contexts)
    peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    end = peer.end()
    assert end.is_clean
    assert end.data.endswith(b"1.1")


def test_the_end_of_an_idle_connection(contexts: Contexts, start: Start) -> None:
    peer = peer_of(start(APPLICATION, "--idle-timeout", "0"), contexts)
    peer.send(GET)
    end = peer.end()
    assert end.is_clean
    assert end.data.endswith(b"1.1")


def test_the_end_after_a_bad_request(contexts: Contexts, start: Start) -> None:
    peer = peer_of(start(APPLICATION), contexts)
    peer.send(b"this is not HTTP\r\n\r\n")
    end = peer.end()
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (
            GET.replace(
                b"\r\n\r\n", b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            400,
        ),
        (GET.replace(b"1.1\r\n", b"1.0\r\nTransfer-Encoding: chunked\r\n"), 400),
        (GET.replace(b"1.1", b"2.0"), 505),
    ],
)
def test_what_could_be_understood_otherwise(
    contexts: Contexts, start: Start, request_: bytes, status: int
) -> None:
    """What follows is no request."""
    peer = peer_of(start(APPLICATION), contexts)
    peer.send(request_ + b"0\r\n\r\n" + GET)
    end = peer.end()
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 %d " % status)
    assert end.data.count(b"HTTP/1.1 ") == 1


def test_a_connection_that_says_http2_and_no_more(contexts: Contexts, start: Start) -> None:
    peer = peer_of(start(APPLICATION, "--idle-timeout", "0"), contexts)
    Http2Peer(peer).flush()
    assert peer.end().is_clean


def test_the_end_of_a_server_amid_an_answer(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION, "--graceful-timeout", "0")
    peer = peer_of(server, contexts)
    peer.send(GET.replace(b"/", b"/for-ever", 1))
    read_head(peer)
    server.process.send_signal(signal.SIGTERM)
    assert peer.end().is_clean
    assert server.wait() == 0


def test_a_request_that_is_under_way_is_answered(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION)
    peer = peer_of(server, contexts)
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
    peer.send(head + b"Expect: 100-continue\r\n\r\n")
    assert read_head(peer).startswith(b"HTTP/1.1 100 ")
    peer.send(b"ha")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("finishing")
    peer.send(b"lf")
    end = peer.end()
    assert end.is_clean
    assert b"ha" in end.data
    assert b"lf" in end.data
    assert server.wait() == 0


def test_a_slow_head(contexts: Contexts, start: Start) -> None:
    peer = peer_of(start(APPLICATION, "--head-timeout", "0.1"), contexts)
    peer.send(GET[:10])
    end = peer.end()
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 408 ")


def half_a_body(peer: Peer) -> None:
    head = GET.replace(b"GET /", b"POST /when-told").removesuffix(b"\r\n")
    peer.send(head + b"Content-Length: 10\r\n\r\nhalf")
    assert peer.end().is_clean


def half_a_body_over_http2(peer: Peer) -> None:
    http2 = Http2Peer(peer)
    http2.request(1, "/when-told", ends=False, method="POST")
    http2.send(1, b"half")
    http2.end()


def no_room_over_http2(peer: Peer) -> None:
    http2 = Http2Peer(peer)
    http2.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    http2.request(1, "/")
    http2.end()


def test_a_client_that_takes_in_nothing_and_asks_for_more(contexts: Contexts, start: Start) -> None:
    """It is given up all the same, whatever it asks for meanwhile."""
    server = start(APPLICATION, "--send-timeout", "0.4")
    peer = peer_of(server, contexts, alpn="h2")
    http2 = Http2Peer(peer)
    http2.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: MUCH})
    http2.http2.increment_flow_control_window(MUCH)
    http2.request(1, "/for-ever")
    turns = count(2)

    def is_given_up() -> bool:
        turn = next(turns)
        if turn % 10 == 3 and turn < 1000:  # not more than may be at once
            with suppress(OSError):
                http2.request(turn, "/")
        return "takes in nothing, given up after 0.4 s" in server.log()

    wait_until(is_given_up)
    peer.sock.close()


@pytest.mark.parametrize(
    ("do", "alpn"),
    [(half_a_body, "http/1.1"), (half_a_body_over_http2, "h2"), (no_room_over_http2, "h2")],
)
def test_a_client_that_does_not_go_on_with_its_requests(
    contexts: Contexts, start: Start, do: Callable[[Peer], None], alpn: str
) -> None:
    """It is given up. Where it is the application that takes long, it has its time."""
    server = start(APPLICATION, "--send-timeout", "0.2")
    patient = peer_of(server, contexts)
    patient.send(GET.replace(b"/", b"/wait", 1))
    do(peer_of(server, contexts, alpn=alpn))
    server.wait_for_log("does not go on with its requests, given up after 0.2 s")
    patient.sock.close()
    assert server.stop() == 0
    assert server.log().count("given up") == 1


def test_http2_says_goaway(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION)
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    assert peer.get(1) == b"2"
    server.process.send_signal(signal.SIGTERM)
    (goaway,) = (e for e in peer.end() if isinstance(e, h2.events.ConnectionTerminated))
    assert (goaway.error_code, goaway.last_stream_id) == (0, 1)
    assert server.wait() == 0


def test_a_websocket_is_told_to_go_away(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION, "--graceful-timeout", "0")
    websocket = WebSocketPeer(peer_of(server, contexts), "/talk")
    assert websocket.say("hello").data == "hello"
    server.process.send_signal(signal.SIGTERM)
    end = websocket.peer.end()
    assert end.is_clean
    websocket.protocol.receive_data(end.data)
    (event,) = websocket.protocol.events()
    assert isinstance(event, CloseConnection)
    assert event.code == 1001
    assert server.wait() == 0


# WebSockets over HTTP/2


def test_websockets_over_http2(contexts: Contexts, start: Start) -> None:
    """One ends by the client, one by the application; a request is not disturbed."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    first, second = Http2WebSocket(peer, 1), Http2WebSocket(peer, 3)
    for websocket in (first, second):
        assert websocket.say("hello") == "hello"
    first.send(CloseConnection(code=1000))
    assert first.receive().code == 1000
    first.receive_end()
    assert second.say("over") == "over"
    event = second.receive()
    assert event.code == 3000
    second.send(event.response())
    second.receive_end()
    assert peer.get(5) == b"2"
    server.process.send_signal(signal.SIGTERM)
    peer.end()
    assert server.wait() == 0
    assert "rror" not in server.log()


def test_websockets_over_http2_are_told_to_go_away(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION, "--graceful-timeout", "0")
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    websockets = {stream: Http2WebSocket(peer, stream) for stream in (1, 3)}
    for websocket in websockets.values():
        assert websocket.say("hello") == "hello"
    server.process.send_signal(signal.SIGTERM)
    events = peer.end()
    assert isinstance(events[-1], h2.events.ConnectionTerminated)
    for stream, websocket in websockets.items():
        data, ended = (e for e in events if getattr(e, "stream_id", None) == stream)
        assert isinstance(data, h2.events.DataReceived)
        websocket.take(data)
        assert websocket.receive().code == 1001
        assert isinstance(ended, h2.events.StreamEnded)
    assert server.wait() == 0


HANDSHAKE = (
    b"GET /talk HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    "request_",
    [HANDSHAKE.replace(b": 13", b": 12"), HANDSHAKE.replace(b"GET /talk", b"GET /wait") + b"early"],
)
def test_a_websocket_that_is_refused_ends_its_connection(
    contexts: Contexts, start: Start, request_: bytes
) -> None:
    """It is of another version, or what follows comes before it is accepted."""
    server = start(APPLICATION)
    peer = peer_of(server, contexts)
    peer.send(request_)
    end = peer.end()
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 400 ")
    assert end.data.count(b"HTTP/1.1 ") == 1
    assert server.stop() == 0
    assert "rror" not in server.log()


def test_a_websocket_over_http2_that_is_refused_is_over(contexts: Contexts, start: Start) -> None:
    """The connection is idle afterwards, and ends."""
    peer = Http2Peer(peer_of(start(APPLICATION, "--idle-timeout", "0"), contexts, alpn="h2"))
    pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":path": "/talk"}
    headers = {**pseudo, ":authority": "localhost", "sec-websocket-version": "12"}
    peer.http2.send_headers(1, list(headers.items()))
    peer.flush()
    assert (b":status", b"400") in peer.receive(h2.events.ResponseReceived, 1).headers
    peer.end()


# Streams of HTTP/2


def test_the_rest_of_a_request_that_was_answered(contexts: Contexts, start: Start) -> None:
    """It is thrown away; other streams of the connection go on."""
    peer = Http2Peer(peer_of(start(APPLICATION), contexts, alpn="h2"))
    peer.request(1, "/early", ends=False, method="POST")
    assert peer.receive(h2.events.DataReceived, 1).data == b"early"
    peer.receive(h2.events.StreamEnded, 1)
    peer.send(1, PIECE)
    peer.send(1, b"", ends=True)
    assert peer.get(3) == b"2"
    peer.peer.sock.close()


def test_an_answer_that_is_left_unfinished(contexts: Contexts, start: Start) -> None:
    """Its client does not wait for the rest."""
    peer = Http2Peer(peer_of(start(APPLICATION), contexts, alpn="h2"))
    peer.request(1, "/half")
    reset = peer.receive(h2.events.StreamReset, 1)
    assert reset.error_code is h2.errors.ErrorCodes.INTERNAL_ERROR
    assert peer.get(3) == b"2"
    peer.peer.sock.close()


def test_an_answer_is_whole_although_the_server_ends(contexts: Contexts, start: Start) -> None:
    """A request that comes meanwhile can be sent elsewhere."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    peer.request(1, "/when-told", ends=False)
    peer.receive(h2.events.ResponseReceived, 1)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("finishing")
    peer.request(3, "/")
    reset = peer.receive(h2.events.StreamReset, 3)
    assert reset.error_code is h2.errors.ErrorCodes.REFUSED_STREAM
    peer.send(1, b"", ends=True)
    events = peer.end()
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    assert isinstance(events[-1], h2.events.ConnectionTerminated)
    assert events[-1].last_stream_id == 1
    assert server.wait() == 0


def test_a_client_that_says_goaway(contexts: Contexts, start: Start) -> None:
    """What is on its way is answered."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    peer.request(1, "/when-told", ends=False)
    peer.receive(h2.events.ResponseReceived, 1)
    peer.http2.close_connection()
    peer.send(1, b"", ends=True)
    events = peer.end()
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    assert server.stop() == 0


def test_an_idle_client_that_says_goaway(contexts: Contexts, start: Start) -> None:
    peer = Http2Peer(peer_of(start(APPLICATION, "--idle-timeout", "600"), contexts, alpn="h2"))
    assert peer.get(1) == b"2"
    peer.receive(h2.events.StreamEnded, 1)
    peer.http2.close_connection()
    peer.flush()
    peer.end()


def test_connect(contexts: Contexts, start: Start) -> None:
    """Its client must not take an answer of the application's for a tunnel."""
    server = start(APPLICATION)
    peer = peer_of(server, contexts)
    peer.send(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n")
    end = peer.end()
    assert end.is_clean
    assert end.data.startswith(b"HTTP/1.1 501 ")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "rror" not in server.log()


@pytest.mark.parametrize("pseudo", [{}, {":protocol": "other", ":scheme": "https", ":path": "/"}])
def test_connect_over_http2(contexts: Contexts, start: Start, pseudo: dict[str, str]) -> None:
    """It is refused, and the other requests go on."""
    server = start(APPLICATION)
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    headers = {":method": "CONNECT", ":authority": "localhost:1", **pseudo}
    peer.http2.send_headers(1, list(headers.items()))
    peer.flush()
    assert (b":status", b"501") in peer.receive(h2.events.ResponseReceived, 1).headers
    peer.receive(h2.events.StreamReset, 1)
    assert peer.get(3) == b"2"
    server.process.send_signal(signal.SIGTERM)
    peer.end()
    assert server.wait() == 0
    assert "rror" not in server.log()


def test_a_malformed_path_over_http2(contexts: Contexts, start: Start) -> None:
    """It is an error of its stream, and the others go on."""
    server = start(APPLICATION)
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    peer.request(1, "/when-told", ends=False)
    peer.request(3, "/\xff")
    error = peer.receive(h2.events.StreamReset, 3).error_code
    assert error is h2.errors.ErrorCodes.PROTOCOL_ERROR
    peer.send(1, b"", ends=True)
    assert peer.receive(h2.events.DataReceived, 1).data == b"told"
    peer.peer.sock.close()
    assert server.stop() == 0
    assert "rror" not in server.log()


def test_priorities_of_streams_that_never_come(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION)
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    for stream in range(1, 5000, 2):
        peer.http2.prioritize(stream, depends_on=stream + 2)
    peer.flush()
    assert peer.get(1) == b"2"
    peer.peer.sock.close()
    assert server.stop() == 0
    assert "rror" not in server.log()


def test_a_request_that_is_reset_keeps_no_connection(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = Http2Peer(peer_of(server, contexts, alpn="h2"))
    peer.request(1, "/wait")
    assert peer.get(3) == b"2"
    peer.http2.reset_stream(1)
    peer.flush()
    server.process.send_signal(signal.SIGTERM)
    peer.end()
    assert server.wait() == 0


# Applications


async def test_an_application_that_cancels_its_sends(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION)
    for http2 in (False, True):
        async with client_of(contexts, http2=http2) as client:
            response = await client.get(f"https://localhost:{server.port}/cancelled")
            assert response.content.replace(PIECE, b"") == b"end"


async def test_an_application_that_does_not_take_a_body(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION, "--graceful-timeout", "600")
    body = PIECE * CANCELLED
    peer = peer_of(server, contexts)
    head = b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (
        2 * len(body)
    )
    peer.send(head + body)
    end = peer.end()
    assert end.is_clean
    assert end.data.endswith(b"early")
    assert server.stop() == 0


def test_an_application_that_sends_for_ever(contexts: Contexts, start: Start) -> None:
    """It ends when its client is gone: else the server would wait for it."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = peer_of(server, contexts)
    peer.send(GET.replace(b"/", b"/for-ever", 1))
    read_head(peer)
    reset(peer.sock)
    assert server.stop() == 0
    assert "Error" not in server.log()


@pytest.mark.parametrize("path", [b"/for-ever", b"/wait"])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_a_client_that_goes_with_another_request_on_its_way(
    contexts: Contexts, start: Start, path: bytes, end: Callable[[socket.socket], None]
) -> None:
    """Its application hears of that although the other request is still to be served."""
    server = start(APPLICATION, "--graceful-timeout", "600", "--send-timeout", "600")
    peer = peer_of(server, contexts)
    peer.send(2 * GET.replace(b"/", path, 1))
    if path == b"/for-ever":
        read_head(peer)
    end(peer.sock)
    assert server.request("GET", "/")[1] == b"1.1"
    assert server.stop() == 0
    assert "Error" not in server.log()


def test_an_answer_to_head_that_has_no_end(contexts: Contexts, start: Start) -> None:
    """Nothing of it is sent, and the others go on."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    peer = peer_of(server, contexts)
    peer.send(GET.replace(b"GET /", b"HEAD /for-ever", 1))
    read_head(peer)
    assert server.request("GET", "/")[1] == b"1.1"
    reset(peer.sock)
    assert server.stop() == 0


@pytest.mark.parametrize("path", ["/tell", "/listen"])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_websockets_that_do_not_look_for_an_end(
    contexts: Contexts, start: Start, path: str, end: Callable[[socket.socket], None]
) -> None:
    """Their applications end when their client is gone, without an error, and disturb nobody."""
    server = start(APPLICATION, "--graceful-timeout", "600")
    websocket = WebSocketPeer(peer_of(server, contexts), path)
    end(websocket.peer.sock)
    assert server.request("GET", "/")[1] == b"1.1"
    assert server.stop() == 0
    assert "Error" not in server.log()


async def test_an_application_that_fails(contexts: Contexts, start: Start) -> None:
    server = start(APPLICATION)
    async with client_of(contexts) as client:
        assert (await client.get(f"https://localhost:{server.port}/fail")).status_code == 500
        assert (await client.get(f"https://localhost:{server.port}")).text == "1.1"
    assert "this application has a fault" in server.log()


def test_one_without_a_lifespan(start: Start) -> None:
    assert start("support.application:silent").stop() == 0


def said(*arguments: str) -> str:
    """What the command says when it can't start: one line."""
    return fails(*arguments, command_name="asgi", cwd=ROOT).removeprefix("ringtls: ").strip()


@pytest.mark.parametrize(
    ("application", "text"),
    [
        ("nothing:app", "there is no module 'nothing' here"),
        ("nothing.below:app", "there is no module 'nothing.below' here"),
        ("tests.support.application:nothing", "there is no 'nothing' in .*"),
        ("tests.support.application:unwilling", "the application failed: .*not today.*"),
    ],
)
def test_one_that_is_not_there(application: str, text: str) -> None:
    assert re.fullmatch(text, said(application))


def test_what_is_no_application(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["asgi", "main"])
    assert "'main' is not MODULE:NAME" in capsys.readouterr().err


class NoHypercorn:
    """A finder of modules, where hypercorn is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "hypercorn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_hypercorn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "hypercorn" or name == "ringtls._cli.asgi.service":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoHypercorn(), *sys.meta_path])
    assert main(["asgi", "main:app"]) == 1
    text = "asgi needs hypercorn, which is not installed: pip install 'ringtls[asgi]'"
    assert capsys.readouterr().err == f"ringtls: {text}\n"


def test_workers_say_it_too() -> None:
    assert "not today" in said("tests.support.application:unwilling", "--workers", "2")


# WSGI


@pytest.mark.parametrize("http2", [False, True])
async def test_a_wsgi_application(contexts: Contexts, start: Start, http2: bool) -> None:
    server = start("applications.of_flask:app")
    url = f"https://localhost:{server.port}"
    async with client_of(contexts, http2=http2) as client:
        assert (await client.get(url)).text == "hello"
        assert (await client.post(f"{url}/echo", content=PIECE)).content == PIECE
        assert (await client.get(f"{url}/fail")).status_code == 500
    assert server.stop() == 0


def end_by_close_notify(peer: Peer) -> None:
    peer.send_close_notify()
    peer.end()


@pytest.mark.parametrize("end", [end_by_close_notify, Peer.vanish])
@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
async def test_a_wsgi_application_is_not_given_half_a_request(
    contexts: Contexts, start: Start, end: Callable[[Peer], None], framing: bytes
) -> None:
    server = start("applications.of_flask:app", "--graceful-timeout", "600")
    peer = peer_of(server, contexts)
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    peer.send(head + framing + b"\r\n\r\n")
    read_head(peer)
    peer.send(b"5\r\n12345\r\n" if b"chunked" in framing else b"12345")
    end(peer)
    async with client_of(contexts) as client:
        await client.post(f"https://localhost:{server.port}/echo", content=b"all")
    assert server.stop() == 0
    assert server.stdout.read() == "3 bytes\n"


# SIGHUP


@pytest.mark.parametrize("mode", [(), ("--workers", "2")])
async def test_sighup_loads_the_certificate(
    contexts: Contexts, start: Start, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    """For connections to come. What is being served goes on, in the same application."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    shutil.copy(contexts.certificate, certificate)
    shutil.copy(contexts.key, key)
    server = start(APPLICATION, *mode, contexts=contexts_of(contexts.ca, certificate, key))
    workers = server.workers()
    before = peer_of(server, contexts)
    before.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
    (tmp_path / "new").mkdir()
    new = make_certificate(tmp_path / "new")
    shutil.copy(new.certificate, certificate)
    shutil.copy(new.key, key)
    server.process.send_signal(signal.SIGHUP)
    loaded = "the certificates were loaded anew\n"
    wait_until(lambda: server.log().count(loaded) == len(workers) + 1)
    after = peer_of(server, contexts_of(new.ca, new.certificate, new.key))
    after.send(GET)
    assert read_head(after).startswith(b"HTTP/1.1 200 ")
    before.send(b"lf")
    assert read_head(before).startswith(b"HTTP/1.1 200 ")
    assert server.workers() == workers
    server.process.send_signal(signal.SIGTERM)
    assert after.end().is_clean
    assert before.end().is_clean
    assert server.wait() == 0


# What is known of clients


async def test_the_tls_extension(contexts: Contexts, start: Start) -> None:
    server = start(
        APPLICATION, "--client-ca", str(contexts.ca), "--client-cert", "optional", "--access-log"
    )
    url = f"https://localhost:{server.port}/tls"
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    async with httpx.AsyncClient(transport=transport(verify=own.client)) as client:
        tls = (await client.get(url)).json()
        assert tls["client_cert_chain"] == []
        assert tls["client_cert_name"] is None
    own.client.load_cert_chain(contexts.certificate, contexts.key)
    own.client.maximum_version = ssl.TLSVersion.TLSv1_2
    own.client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    async with httpx.AsyncClient(transport=transport(verify=own.client)) as client:
        tls = (await client.get(url)).json()
    assert tls == {
        "server_cert": None,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der_of(contexts.certificate))],
        "client_cert_name": "CN=ringtls development",
        "client_cert_error": None,
        "tls_version": 0x0303,
        "cipher_suite": 0xC02B,
    }
    assert server.stop() == 0
    lines = server.stdout.read().splitlines()
    assert [line.split(" - ")[1].split(" [")[0] for line in lines] == [
        "-",
        "CN=ringtls development",
    ]
    assert '"GET /tls HTTP/1.1" 200 - "-" "python-httpx/' in lines[0]


def der_of(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


async def test_metrics_and_workers(contexts: Contexts, start: Start, tmp_path: Path) -> None:
    place = tmp_path / "metrics"
    server = start(APPLICATION, "--workers", "2", "--metrics", f"unix:{place}")
    async with client_of(contexts) as client:
        await client.get(f"https://localhost:{server.port}")
        await client.get(f"https://localhost:{server.port}/fail")

    def counts_both() -> bool:
        metrics = read_metrics(place)
        return all(
            f'ringtls_requests_total{{status="{status}"}} 1.0' in metrics for status in (200, 500)
        )

    wait_until(counts_both)  # a request is counted when its answer is out
    assert server.stop() == 0
