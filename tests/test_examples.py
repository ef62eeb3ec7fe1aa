"""The examples, written once, in both faces against real servers (D6)."""

from __future__ import annotations

import runpy
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio

import ringtls
from examples import connect_proxy, h11_client, smtp_client, starttls
from ringtls import SocketStream, TlsStream, blocking

from .conftest import Contexts
from .support.mail import MailServer
from .support.peer import Peer
from .support.scripted import playing
from .support.waiting import LIMIT

Run = Callable[..., Any]


def in_trio(function: Callable[..., Any], contexts: Contexts, *args: Any) -> Any:
    open_stream = partial(ringtls.open_tls_over_tcp_stream, ssl_context=contexts.client)
    return trio.run(function, open_stream, *args)


def in_a_thread(function: Callable[..., Any], contexts: Contexts, *args: Any) -> Any:
    open_stream = partial(blocking.open_tls_over_tcp_stream, ssl_context=contexts.client)
    return blocking.call(function, open_stream, *args)


@pytest.fixture(params=[in_trio, in_a_thread])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


class Handler(BaseHTTPRequestHandler):
    """Answers with the target, in chunks if that is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200 if self.path != "/missing" else 404)
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for byte in body:
                self.wfile.write(b"1\r\n%c\r\n" % byte)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def http_server(context: ssl.SSLContext) -> Iterator[int]:
    """The stdlib's, over TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_d6_an_http_client(contexts: Contexts, run: Run) -> None:
    targets = ("/", "/chunks", "/missing")
    with http_server(contexts.server) as port:
        responses = run(h11_client.get, contexts, "localhost", port, *targets)
    assert responses == [(200, b"/"), (200, b"/chunks"), (404, b"/missing")]


@pytest.fixture(scope="module")
def mail(contexts: Contexts) -> Iterator[MailServer]:
    with MailServer.running(contexts) as server:
        yield server


def test_d6_a_mail_client(contexts: Contexts, mail: MailServer, run: Run) -> None:
    message = b"Subject: hello\r\n\r\n.a dot\r\n"
    people = "me@example.org", ["you@example.org", "her@example.org"]
    run(smtp_client.send, contexts, "localhost", mail.port, *people, message)
    assert mail.seen() == [
        f"accepted {message!r}",
        "EHLO localhost",
        "MAIL FROM:<me@example.org>",
        "RCPT TO:<you@example.org>",
        "RCPT TO:<her@example.org>",
        "DATA",
        "Subject: hello",
        "",
        "..a dot",
        ".",
        "QUIT",
        "END",
    ]


def test_d6_a_server_that_refuses(contexts: Contexts, mail: MailServer, run: Run) -> None:
    """The exception comes out, and the server hears QUIT all the same."""
    with pytest.raises(smtp_client.RefusedError, match="Syntax"):
        run(smtp_client.send, contexts, "localhost", mail.port, "no address>", [], b"")
    assert mail.seen() == ["EHLO localhost", "MAIL FROM:<no address>>", "QUIT", "END"]


async def test_starttls(contexts: Contexts) -> None:
    with MailServer.running(contexts, begin="starttls") as mail:
        offered = await starttls.offers("localhost", mail.port, contexts.client)
        assert offered[0] == "localhost"
        assert "STARTTLS" not in offered
        hello = "EHLO localhost"
        assert mail.seen() == [hello, "STARTTLS", hello, "QUIT", "END"]


async def test_what_comes_after_starttls_is_not_taken_for_tls(contexts: Contexts) -> None:
    def begin(sock: socket.socket, contexts: Contexts) -> Peer:
        replies = b"220 localhost\r\n", b"250 localhost\r\n", b"220 go on\r\n250 AUTH PLAIN\r\n"
        for reply in replies:
            sock.sendall(reply)
            sock.recv(100)
        return Peer(sock, contexts, server_side=True)

    with (
        playing(contexts, lambda peer: None, begin=begin) as port,
        pytest.raises(starttls.RefusedError, match="after the reply"),
    ):
        await starttls.offers("localhost", port, contexts.client)


async def test_a_connect_proxy_whose_client_has_gone(contexts: Contexts) -> None:
    """What it has opened is closed, not lost: the pytest plugin looks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        ours, theirs = socket.socketpair()
        peer = Peer(theirs, contexts, server_side=False)
        async with TlsStream(SocketStream(ours), contexts.server, server_side=True) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, peer.handshake)
                await client.do_handshake()
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            peer.send(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            theirs.shutdown(socket.SHUT_RD)  # what is sent there now fails
            await connect_proxy.handle(client)
        theirs.close()
        backend, _ = await trio.to_thread.run_sync(listener.accept)
        with backend:
            backend.settimeout(LIMIT)
            assert await trio.to_thread.run_sync(backend.recv, 1) == b""


PROGRAMS = [
    path
    for path in sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
    if "__main__" in path.read_text()
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_without_arguments(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(program)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: {program.name}")
