"""``ringtls serve``: the real command with real clients, and the parts of it in this process."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import math
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from ringtls import SocketStream, TlsStream
from ringtls._cli.certificates import make_certificate
from ringtls._cli.serve import files
from ringtls._cli.serve.connection import FileService
from ringtls._cli.serve.files import Found, Page, Policy, Representation
from ringtls._cli.serve.opening import Directory, OpenFile
from ringtls._cli.serve.paths import BadTargetError, path_of, quoted, segments_of
from ringtls._cli.serve.responses import UnsatisfiableRangeError, parse_date, parse_range
from ringtls._cli.server import StartError, Wait, connections, handling
from ringtls._cli.server.connections import Connection, Connections, Cut, Limits
from ringtls._cli.server.credentials import Credentials, Files
from ringtls._cli.server.figures import Figures
from ringtls._cli.server.handling import Handler, begin_connection
from ringtls._cli.server.listening import Address, Inherited, open_sockets, parse_bind
from ringtls._cli.server.metrics import Metrics
from ringtls._cli.server.peers import taken_in
from ringtls._cli.server.timeouts import OF_REQUESTS
from ringtls._transports.base import HIGH_WATER

from .conftest import Contexts, contexts_of
from .support.hostile import TABLE, Hostile, answers
from .support.server import (
    MIB,
    PATIENCE,
    SMALL,
    TEXT,
    Server,
    Start,
    fails,
    head,
    read_to_end,
    starting,
    wait_until_refused,
)
from .support.streams import reset, set_buffers, socket_streams, tcp_pair
from .support.waiting import until, wait_until


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to be served, with things beside it that must not be."""
    base = tmp_path_factory.mktemp("site")
    (base / "secret").write_text("secret")
    (base / "www-other").mkdir()
    (base / "www-other" / "file").write_text("secret")
    root = base / "www"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "indexed").mkdir()
    (root / "indexed" / "index.html").write_text("<p>index")
    (root / "text.txt").write_bytes(TEXT)
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(SMALL)
    (root / "archive.tar.gz").write_bytes(b"x")
    (root / "sub" / "<b>&\"'.html").write_text("odd")
    (root / "sub" / os.fsdecode(b"\xff")).write_text("not UTF-8")
    (root / "inside").symlink_to("text.txt")
    (root / "outside").symlink_to(base / "secret")
    (root / "outside-directory").symlink_to(base)
    (root / "absolute").symlink_to(root / "text.txt")
    (root / "loop").symlink_to("loop")
    (root / ".hidden").write_text("secret")
    (root / ".well-known").mkdir()
    (root / ".well-known" / "public").write_bytes(TEXT)
    (root / ".well-known" / ".hidden").write_text("secret")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture(scope="module")
def shared(
    contexts: Contexts, site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """For tests that leave the server as it was."""
    server = Server(contexts, site, tmp_path_factory.mktemp("log") / "stderr")
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.end()


@pytest.fixture
def start(contexts: Contexts, site: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(contexts, site, tmp_path) as start:
        yield start


# Pure functions


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=2-4", 10, (2, 5)),
        ("BYTES=2-4", 10, (2, 5)),
        ("bytes= 2-4 ", 10, (2, 5)),
        ("bytes=2-", 10, (2, 10)),
        ("bytes=2-99", 10, (2, 10)),
        ("bytes=9-", 10, (9, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("", 10, None),
        ("bytes=", 10, None),
        ("bytes=-", 10, None),
        ("bytes=4-2", 10, None),
        ("bytes=99-2", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=+1-2", 10, None),
        ("bytes=1 - 2", 10, None),
        ("lines=1-2", 10, None),
        ("bytes=\N{ARABIC-INDIC DIGIT ONE}-", 10, None),
        ("bytes=" + "1" * 5000 + "-", 10, None),
        ("bytes=0-0", 0, None),
        ("bytes=-1", 0, None),
    ],
)
def test_parse_range(value: str, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(value, size) == expected


@pytest.mark.parametrize("value", ["bytes=10-", "bytes=10-20", "bytes=-0", f"bytes={10**18}-"])
def test_parse_range_unsatisfiable(value: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(value, 10)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", "1994-11-06 08:49:37"),
        ("Sunday, 06-Nov-94 08:49:37 GMT", "1994-11-06 08:49:37"),
        ("Sun Nov  6 08:49:37 1994", "1994-11-06 08:49:37"),
        ("Sun Nov 16 08:49:37 1994", "1994-11-16 08:49:37"),
        ("Friday, 27-Nov-26 12:00:00 GMT", "2026-11-27 12:00:00"),
        ("Friday, 27-Nov-76 12:00:00 GMT", "2076-11-27 12:00:00"),
        ("Saturday, 27-Nov-76 12:00:01 GMT", "1976-11-27 12:00:01"),
        ("Friday, 31-Dec-99 23:59:59 GMT", "1999-12-31 23:59:59"),
        ("Tuesday, 29-Feb-00 00:00:00 GMT", "2000-02-29 00:00:00"),
        ("Sunday, 29-Feb-26 00:00:00 GMT", None),
        ("Sunday, 06-Nov-1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("Sun Nov  6 08:49:37 94", None),
        ("", None),
    ],
)
def test_parse_date(value: str, expected: str | None) -> None:
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    time = parse_date(value, now)
    assert expected == (None if time is None else f"{datetime.fromtimestamp(time, UTC):%F %T}")


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        (b"/", [""]),
        (b"/a", ["a"]),
        (b"/a/", ["a", ""]),
        (b"/a%20b/%C3%A9", ["a b", "é"]),
        (b"/%ff", [os.fsdecode(b"\xff")]),
        (b"/...", ["..."]),
        (b"/%5Ca", ["\\a"]),
    ],
)
def test_segments_of(path: bytes, segments: list[str]) -> None:
    assert segments_of(path) == segments
    assert segments_of(quoted(segments).encode()) == segments


TRAVERSAL = [
    "/..",
    "/../secret",
    "/sub/../text.txt",
    "/sub/../../secret",
    "/./text.txt",
    "/%2e%2e/secret",
    "/%2E./secret",
    "/..%2fsecret",
    "/sub%2fdeep",
    "/%2fetc%2fpasswd",
    "//etc/passwd",
    "/sub//deep/",
]


@pytest.mark.parametrize("path", TRAVERSAL)
def test_segments_of_finds_nothing(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        segments_of(path.encode())


@pytest.mark.parametrize("path", [b"/%", b"/%2", b"/%zz", b"/text.txt%00", b"/text.txt%00.html"])
def test_bad_escapes(path: bytes) -> None:
    with pytest.raises(BadTargetError):
        segments_of(path)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a?b?c", b"/a", b"?b?c"),
        (b"HTTP://host:1/a/b", b"/a/b", b""),
        (b"https://host", b"/", b""),
        (b"https://host?q", b"/", b"?q"),
    ],
)
def test_path_of(target: bytes, path: bytes, query: bytes) -> None:
    assert path_of(target) == (path, query)


@pytest.mark.parametrize(
    "target", [b"", b"*", b"text.txt", b"ftp://host/", b"http://", b"http:/a", b"/a#b"]
)
def test_path_of_refuses(target: bytes) -> None:
    with pytest.raises(BadTargetError):
        path_of(target)


@pytest.mark.parametrize(
    "name",
    ["outside", "outside-directory", "outside-directory/secret", "no", "absolute", "loop", "fifo"],
)
def test_nothing_else_is_opened(site: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        Directory(site).open(name.split("/"))


def test_no_sibling_is_opened(site: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Directory(site).open(["..", "www-other", "file"])


def test_open(site: Path) -> None:
    directory = Directory(site)
    file = directory.open(["inside"])
    assert file.identity == directory.open(["text.txt"]).identity
    assert os.pread(file.descriptor, 100, 0) == TEXT
    assert directory.open([""]).is_directory
    with pytest.raises(FileNotFoundError):
        directory.open(["text.txt", ""])


def test_an_exchanged_symlink_leads_nowhere_else(tmp_path: Path) -> None:
    """The race of a check and an opening: there is no moment for it."""
    root = tmp_path / "www"
    (root / "good").mkdir(parents=True)
    (root / "good" / "file").write_text("good")
    (tmp_path / "file").write_text("secret")
    (root / "link").symlink_to("good")
    (root / "bad").symlink_to("..")
    directory = Directory(root)
    ended = threading.Event()

    def exchange() -> None:
        for _ in range(5_000):
            exchange_names(root / "link", root / "bad")
        ended.set()

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = Counter[bytes]()
    while not ended.is_set():
        try:
            file = directory.open(["link", "file"])
        except FileNotFoundError:
            seen[b""] += 1
        else:
            seen[os.pread(file.descriptor, 100, 0)] += 1
    thread.join()
    assert seen.keys() == {b"", b"good"}, seen


def exchange_names(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    assert renameat2(-100, bytes(one), -100, bytes(other), 2) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8443", Address("localhost", 8443)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_parse_bind(text: str, address: Address) -> None:
    assert parse_bind(text) == address
    assert str(address) == text


def test_parse_inherited() -> None:
    assert parse_bind("fd://3") == Inherited(3)
    assert str(Inherited(3)) == "fd://3"


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost", ":1", "[]:1", "localhost:", "h:65536", "h:-1", "h:x", "::1:8443", "h:²"),
        *("fd://", "fd://x", "fd://-1", "fd://3:1", "fd://²", "fd://9999999999"),
    ],
)
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_bind(text)


# Requests


def test_get(shared: Server) -> None:
    response, body = shared.get("/text.txt")
    assert (response.status, response.reason, body) == (200, "OK", TEXT)
    assert response.headers["Content-Type"] == "text/plain"
    assert response.headers["Content-Length"] == "10"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Server"] == "ringtls"
    for name in ("Date", "Last-Modified"):
        assert time.strptime(response.headers[name], "%a, %d %b %Y %H:%M:%S GMT")


def test_get_of_several_pieces(shared: Server) -> None:
    assert shared.get("/small")[1] == SMALL


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/inside", TEXT),
        ("/text.txt?query=1", TEXT),
        ("/%74ext.txt", TEXT),
        ("https://localhost/text.txt", TEXT),
        ("/empty", b""),
        ("/indexed/", b"<p>index"),
        ("/sub/%ff", b"not UTF-8"),
    ],
)
def test_targets(shared: Server, target: str, body: bytes) -> None:
    response, received = shared.get(target)
    assert (response.status, received) == (200, body)


def test_compressed_files_are_served_as_they_are(shared: Server) -> None:
    headers = shared.get("/archive.tar.gz")[0].headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Encoding"] is None


@pytest.mark.parametrize("target", ["/text.txt", "/small", "/no", "/sub/", "/sub"])
def test_head_is_get_without_a_body(shared: Server, target: str) -> None:
    got, _ = shared.get(target)
    headed, body = shared.request("HEAD", target)
    assert body == b""
    assert headed.status == got.status
    del got.headers["Date"], headed.headers["Date"]
    assert headed.headers.items() == got.headers.items()


@pytest.mark.parametrize(
    ("value", "status", "content_range", "body"),
    [
        ("bytes=2-4", 206, "bytes 2-4/10", b"234"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=-2", 206, "bytes 8-9/10", b"89"),
        (
            "bytes=10-",
            416,
            "bytes */10",
            f"416 {HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE.phrase}\n".encode(),
        ),
        ("bytes=0-1,4-5", 200, None, TEXT),
        ("nonsense", 200, None, TEXT),
    ],
)
def test_range(
    shared: Server, value: str, status: int, content_range: str | None, body: bytes
) -> None:
    response, received = shared.get("/text.txt", Range=value)
    assert (response.status, received) == (status, body)
    assert response.headers["Content-Range"] == content_range


def test_range_of_several_pieces(shared: Server) -> None:
    assert shared.get("/small", Range=f"bytes=1000-{2 * MIB}")[1] == SMALL[1000 : 2 * MIB + 1]


def test_range_is_only_for_get(shared: Server) -> None:
    response, _ = shared.request("HEAD", "/text.txt", Range="bytes=2-4")
    assert (response.status, response.headers["Content-Length"]) == (200, "10")


def test_if_range(shared: Server) -> None:
    headers = shared.get("/text.txt")[0].headers
    etag = headers["ETag"]
    assert shared.get("/text.txt", Range="bytes=1-2", If_Range=etag)[1] == b"12"
    for unsure in ('"other"', f"W/{etag}", headers["Last-Modified"]):
        assert shared.get("/text.txt", Range="bytes=1-2", If_Range=unsure)[1] == TEXT


def test_not_modified(shared: Server) -> None:
    headers = shared.get("/text.txt")[0].headers
    etag, modified = headers["ETag"], headers["Last-Modified"]
    ours = parsedate_to_datetime(modified)
    old = "Thu, 01 Jan 1970 00:00:00 GMT"
    for conditions, status in [
        ({"If_None_Match": etag}, 304),
        ({"If_None_Match": f'"other", W/{etag}'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_Modified_Since": modified}, 304),
        ({"If_Modified_Since": old}, 200),
        ({"If_Modified_Since": ours.strftime("%A, %d-%b-%y %H:%M:%S GMT")}, 304),
        ({"If_Modified_Since": ours.strftime("%a %b %e %H:%M:%S %Y")}, 304),
        ({"If_Modified_Since": "nonsense"}, 200),
        ({"If_None_Match": '"other"', "If_Modified_Since": modified}, 200),
        ({"If_None_Match": etag, "If_Modified_Since": old}, 304),
    ]:
        response, body = shared.get("/text.txt", **conditions)
        assert (response.status, body) == (status, TEXT if status == 200 else b""), conditions
        assert response.headers["ETag"] == etag


@pytest.mark.parametrize(
    "target",
    [
        *TRAVERSAL,
        *("/no", "/text.txt/", "/text.txt/x", "/loop", "/fifo", "/" + "x" * 300),
        *("/.hidden", "/.well-known/.hidden", "/absolute"),
        *("/outside", "/outside-directory/", "/outside-directory/secret"),
    ],
)
def test_not_found(shared: Server, target: str) -> None:
    response, body = shared.get(target)
    assert (response.status, body) == (404, b"404 Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "BREW"])
def test_other_methods(shared: Server, method: str) -> None:
    response, _ = shared.request(method, "/text.txt")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_directories(shared: Server) -> None:
    response, _ = shared.get("/sub?a=b")
    assert (response.status, response.headers["Location"]) == (301, "/sub/?a=b")
    response, listing = shared.get("/sub/")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b'<a href="/sub/deep/">deep/</a>' in listing
    assert b'<a href="/sub/%3Cb%3E%26%22%27.html">&lt;b&gt;&amp;&quot;&#x27;.html</a>' in listing
    assert b'<a href="/sub/%FF">' in listing
    assert b'<a href="/loop">loop</a>' in shared.get("/")[1]


def test_redirect_stays_on_this_server(start: Start, tmp_path: Path) -> None:
    (tmp_path / "\\evil.example").mkdir()
    server = start(directory=tmp_path)
    assert server.get("/\\evil.example")[0].headers["Location"] == "/%5Cevil.example/"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0)
    assert start(directory=tmp_path).get("/file")[0].status == 403


def test_keep_alive(shared: Server) -> None:
    with shared.client() as client:
        sock = client.sock
        for target, body in [("/text.txt", TEXT), ("/small", SMALL), ("/text.txt", TEXT)]:
            client.request("GET", target)
            assert client.getresponse().read() == body
            assert client.sock is sock


def test_pipelining(shared: Server) -> None:
    with shared.tls() as sock:
        sock.sendall(head("/text.txt") + head("/no") + head("/text.txt", "Connection: close"))
        answer = read_to_end(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]
    assert answer.count(TEXT) == 2


@pytest.mark.parametrize(
    "request_head", [head("/text.txt", "Connection: close"), b"GET /text.txt HTTP/1.0\r\n\r\n"]
)
def test_last_response_says_so(shared: Server, request_head: bytes) -> None:
    with shared.tls() as sock:
        sock.sendall(request_head)
        answer = read_to_end(sock)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(TEXT)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (head("/", "A: " + "x" * 100_000), 431),
        (head("/text.txt") + b"nonsense\r\n\r\n", 400),
    ],
)
def test_bad_requests(shared: Server, data: bytes, status: int) -> None:
    with shared.tls() as sock:
        sock.sendall(data)
        answer = read_to_end(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer)[-1] == b"%d" % status
    assert shared.works()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HEAD /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"\r\nHEAD / HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n", 400),
        (b"HEAD / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"HEAD /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"HEAD /" + b"x" * 20_000, 414),
    ],
)
def test_a_head_that_is_refused_has_no_body(shared: Server, data: bytes, status: int) -> None:
    """RFC 9110, section 9.3.2."""
    with shared.tls() as sock:
        sock.sendall(data)
        answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}])
def test_request_bodies_are_not_read(shared: Server, headers: dict[str, str]) -> None:
    with shared.client() as client:
        client.request("POST", "/text.txt", body=bytes(300_000), headers=headers)
        response = client.getresponse()
        assert response.status == 405
        assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("hostile", TABLE, ids=lambda hostile: hostile.name)
def test_hostile(shared: Server, hostile: Hostile) -> None:
    with shared.tls() as sock:
        assert answers(sock, hostile.data) == hostile.ours


def test_hostile_is_no_less_strict_than_nginx() -> None:
    """What nginx refuses is refused, or names nothing, or is the end of the connection."""
    lax = [
        hostile.name
        for hostile in TABLE
        if hostile.nginx.startswith(("4", "5")) and hostile.ours in ("200 200", "206 200")
    ]
    assert lax == ["range that overflows"]  # RFC 9110, section 14.1.2: it means the end


def test_curl(start: Start, contexts: Contexts) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    server = start()
    url = f"https://localhost:{server.port}"
    curl = ["curl", "-sS", "--path-as-is", "--cacert", str(contexts.ca)]
    run = subprocess.run([*curl, f"{url}/text.txt", f"{url}/small"], capture_output=True)
    assert run.stdout == TEXT + SMALL
    run = subprocess.run([*curl, "-f", f"{url}/../secret"], capture_output=True)
    assert run.returncode == 22, run.stderr
    assert b"404" in run.stderr


def test_openssl_sees_a_clean_end(shared: Server, contexts: Contexts) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{shared.port}", "-ign_eof"]
    command += ["-CAfile", str(contexts.ca), "-verify_return_error", "-brief"]
    run = subprocess.run(
        command, input=head("/text.txt", "Connection: close"), capture_output=True, timeout=PATIENCE
    )
    assert run.stdout.endswith(TEXT)
    assert (run.returncode, b"unexpected eof" in run.stderr) == (0, False), run.stderr


def test_development_certificate(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ringtls", "serve", "-d", str(site), "--bind", "127.0.0.1:0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "a cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            words = shlex.split(process.stdout.readline())
            assert words[:3] == ["Try:", "curl", "--cacert"]
            context = ssl.create_default_context(cafile=words[3])
            port = int(words[4].removeprefix("https://localhost:").removesuffix("/"))
            with (
                socket.create_connection(("127.0.0.1", port), PATIENCE) as tcp,
                context.wrap_socket(tcp, server_hostname="localhost") as sock,
            ):
                assert sock.version() == "TLSv1.3"
        finally:
            process.kill()


def test_access_log(start: Start) -> None:
    server = start("--access-log")
    server.get("/text.txt?q", User_Agent='a "b" \\ \xe9')
    server.get("/no")
    assert server.stop() == 0
    first, second = server.stdout.read().splitlines()
    pattern = r"127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] (.*)"
    match = re.fullmatch(pattern, first)
    assert match
    assert match[1] == r'"GET /text.txt?q HTTP/1.1" 200 10 "-" "a \x22b\x22 \x5c \xe9"'
    assert '"GET /no HTTP/1.1" 404 14 "-"' in second


def test_what_is_refused_is_in_the_access_log(start: Start) -> None:
    logged = {
        head("/%zz", "User-Agent: me"): '"GET /%zz HTTP/1.1" 400 16 "-" "me"',
        b"HEAD / HTTP/1.1\r\nReferer: you\r\n\r\n": '"HEAD / HTTP/1.1" 400 0 "you" "-"',
        head("/", "A : b"): '"GET / HTTP/1.1" 400 16 "-" "-"',
        b'\r\n\x16\x03 "\x1b[31m\n" 200\r\n\r\n': r'"\x16\x03 \x22\x1b[31m" 400 16 "-" "-"',
        b"BREW /pot HTTP/1.1\r\n\r\n": '"BREW /pot HTTP/1.1" 405 23 "-" "-"',
        head("/", "A: " + "x" * 20_000): '"GET / HTTP/1.1" 431 36 "-" "-"',
        b"\r\n" * 10_000: '"-" 414 25 "-" "-"',
    }
    assert lines_of_access(start("--access-log"), logged) == list(logged.values())


def test_what_is_slow_is_in_the_access_log(start: Start) -> None:
    logged = {
        b"GET /slow HTTP/1.1\r\nHost:": '"GET /slow HTTP/1.1" 408 20 "-" "-"',
        b"\r\nGET": '"GET" 408 20 "-" "-"',
    }
    server = start("--access-log", "--head-timeout", "0.1")
    assert lines_of_access(server, logged) == list(logged.values())


def lines_of_access(server: Server, requests: Iterable[bytes]) -> list[str]:
    """The lines of these requests, without clients and times."""
    for data in requests:
        with server.tls() as sock:
            sock.sendall(data)
            read_to_end(sock)
    assert server.stop() == 0
    return [line.partition("] ")[2] for line in server.stdout.read().splitlines()]


def test_large_file_in_little_memory(start: Start, tmp_path: Path) -> None:
    block = os.urandom(MIB)
    expected, received = hashlib.sha256(), hashlib.sha256()
    with (tmp_path / "large").open("wb") as file:
        for number in range(64):
            piece = number.to_bytes(8, "big") + block[8:]
            file.write(piece)
            expected.update(piece)
    server = start(directory=tmp_path)
    with server.client() as client:
        client.request("GET", "/large")
        response = client.getresponse()
        while piece := response.read(MIB):
            received.update(piece)
    assert received.digest() == expected.digest()
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert match
    assert int(match[1]) < 150 * 1024


# Options


def test_what_is_served_by_option(start: Start, site: Path) -> None:
    server = start("--no-listing", "--hidden", "--cache-control", "max-age=60")
    assert server.get("/sub/")[0].status == 404
    response, body = server.get("/.hidden")
    assert (response.status, body) == (200, b"secret")
    assert response.headers["Cache-Control"] == "max-age=60"
    assert server.get("/indexed/")[1] == b"<p>index"
    listing = start().get("/")[1]
    assert b"text.txt" in listing
    assert b"hidden" not in listing
    assert start().get("/.well-known/public")[1] == TEXT


def test_single_page_application(start: Start, site: Path) -> None:
    server = start("--spa", directory=site / "indexed")
    for target in ("/", "/no", "/no/such/path/", "/index.html"):
        response, body = server.get(target)
        assert (response.status, body) == (200, b"<p>index")
    for target in ("/.hidden", "/%zz"):
        assert server.get(target)[0].status in (400, 404)


def test_precompressed(start: Start, tmp_path: Path) -> None:
    for name, content in [("a.css", b"plain"), ("a.css.gz", b"gzip"), ("a.css.br", b"brotli")]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b").write_bytes(b"alone")
    server = start("--precompressed", directory=tmp_path)
    etags = set()
    for accepted, coding, content in [
        ("", None, b"plain"),
        ("gzip, deflate, br", "br", b"brotli"),
        ("GZIP", "gzip", b"gzip"),
        ("br;q=0, gzip;q=0.1", "gzip", b"gzip"),
        ("br;q=0.000", None, b"plain"),
    ]:
        response, body = server.get("/a.css", Accept_Encoding=accepted)
        assert (response.headers["Content-Encoding"], body) == (coding, content)
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.headers["Content-Type"] == "text/css"
        etags.add(response.headers["ETag"])
    assert len(etags) == 3
    assert server.get("/b", Accept_Encoding="br")[0].headers["Vary"] is None
    assert start(directory=tmp_path).get("/a.css", Accept_Encoding="br")[1] == b"plain"


def represent(path: Path) -> Representation:
    return Representation(OpenFile(os.open(path, os.O_RDONLY)), "text/plain", "", "")


def describe(path: Path, modified: int) -> Representation:
    """Of a time that not every file system can have."""
    path.write_bytes(TEXT)
    file = OpenFile(os.open(path, os.O_RDONLY))
    file.status = SimpleNamespace(  # type: ignore[assignment]
        st_mtime=modified, st_mtime_ns=modified * 10**9, st_size=len(TEXT)
    )
    return Representation(file, "text/plain", "", "")


def test_a_time_that_no_header_can_say(tmp_path: Path) -> None:
    representation = describe(tmp_path / "file", -(10**11))
    assert b"Last-Modified" not in representation.fields
    assert representation.etag.encode() in representation.fields


@pytest.mark.parametrize("modified", [2**33, 10**12], ids=["2242", "a year of five digits"])
def test_a_time_to_come(tmp_path: Path, modified: int) -> None:
    """It is not told before it is there (RFC 9110, section 8.8.2.1)."""
    before = int(time.time())
    representation = describe(tmp_path / "file", modified)
    assert before <= representation.modified <= time.time()
    told = formatdate(representation.modified, usegmt=True)
    assert f"Last-Modified: {told}\r\n".encode() in representation.fields


def test_preconditions(shared: Server) -> None:
    headers = shared.get("/text.txt")[0].headers
    for conditions, status in [
        ({"If_Match": headers["ETag"]}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Unmodified_Since": headers["Last-Modified"]}, 200),
        ({"If_Unmodified_Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 412),
    ]:
        assert shared.get("/text.txt", **conditions)[0].status == status, conditions


def test_keep_alive_of_http_1_0(shared: Server) -> None:
    request = b"GET /text.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with shared.tls() as sock:
        sock.sendall(request + b"GET /text.txt HTTP/1.0\r\n\r\n")
        answer = read_to_end(sock)
    assert answer.count(TEXT) == 2
    assert answer.count(b"\r\nConnection: keep-alive\r\n") == 1


def test_close_counts_before_keep_alive_in_http_1_0(shared: Server) -> None:
    request = b"GET /text.txt HTTP/1.0\r\nConnection: Close , keep-alive\r\n\r\n"
    with shared.tls() as sock:
        sock.sendall(2 * request)
        answer = read_to_end(sock)
    assert answer.count(TEXT) == answer.count(b"\r\nConnection: close\r\n") == 1


def test_a_head_in_single_bytes(shared: Server) -> None:
    with shared.tls() as sock:
        for byte in b"\r\n" + head("/text.txt") + head("/no", "Connection: close"):
            sock.sendall(bytes([byte]))
        answer = read_to_end(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404"]


def test_a_coding_that_changed_a_moment_ago_may_change_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the tick of the clock that its times are from."""
    monkeypatch.setattr(files, "CHECK_INTERVAL", 10.0**6)
    path = tmp_path / "file"
    path.write_bytes(TEXT)
    coded = represent(path)
    os.utime(path, (0, 0))
    plain = represent(path)
    assert Found(plain, {"gzip": coded}).identity != Found(plain, {"gzip": coded}).identity
    assert Found(plain, {"gzip": plain}).identity == Found(plain, {"gzip": plain}).identity


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_changed_file_is_noticed(start: Start, tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * size)
    server = start(directory=tmp_path)
    with server.client() as client:

        def content() -> bytes:
            client.request("GET", "/file")
            return client.getresponse().read()

        assert content() == b"a" * size
        file.write_bytes(b"b" * size)
        wait_until(lambda: content() == b"b" * size)
        (tmp_path / "new").write_bytes(b"c" * (size + 1))
        (tmp_path / "new").replace(file)
        wait_until(lambda: content() == b"c" * (size + 1))
        file.unlink()
        wait_until(lambda: content() == b"404 Not Found\n")


class CountedDirectory(Directory):
    """Counts what is opened; only when released."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.opened = 0
        self.may_open = threading.Event()

    def open(self, segments: list[str]) -> OpenFile:
        self.may_open.wait()
        self.opened += 1
        return super().open(segments)


async def found_by_many(directory: CountedDirectory) -> list[Found | Page | None]:
    """What each of ten finds at /file, all of whom ask before anything is opened."""
    cache = files.FileCache(directory, Policy())
    found: list[Found | Page | None] = []

    async def find() -> None:
        try:
            found.append(await cache.find(b"/file"))
        except FileNotFoundError:
            found.append(None)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(find)
        await trio.testing.wait_all_tasks_blocked()
        directory.may_open.set()
    return found


async def test_a_file_that_many_ask_for_is_looked_up_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    directory = CountedDirectory(tmp_path)
    found = await found_by_many(directory)
    assert len(found) == 10
    assert None not in found
    assert directory.opened == 1


async def test_what_many_ask_for_in_vain_is_missing_for_all(tmp_path: Path) -> None:
    assert await found_by_many(CountedDirectory(tmp_path)) == [None] * 10


def files_open_in(directory: Path) -> int:
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this list
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(path.startswith(f"{directory}/") for path in paths)


async def test_files_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ENTRIES", 3)
    monkeypatch.setattr(files, "MEMORY_LIMIT", 1000)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x" * 100)
    (tmp_path / "large").write_bytes(b"x" * 600)
    cache = files.FileCache(Directory(tmp_path), Policy())
    for number in range(5):
        await cache.find(f"/{number}".encode())
    assert cache.get(b"/1") is None
    assert cache.get(b"/2") is not None
    assert files_open_in(tmp_path) == 3
    await cache.find(b"/large")  # is more than there may be by itself
    assert cache.get(b"/4") is None
    assert files_open_in(tmp_path) <= 1  # a thread keeps its result


# The drain


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_ends_idle_connections(start: Start, number: signal.Signals) -> None:
    server = start("--graceful-timeout", "3600")
    with server.tls() as used, server.tls() as fresh, server.tcp() as not_even_tls:
        used.sendall(head("/text.txt") + b"\r\n")
        assert used.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        server.process.send_signal(number)
        assert read_to_end(used) in (b"", TEXT)
        assert read_to_end(fresh) == b""
        assert not_even_tls.recv(1) == b""
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_downloads(start: Start, number: signal.Signals) -> None:
    server = start("--graceful-timeout", "3600")
    with server.tls(receive_buffer=65536) as sock:
        sock.sendall(head("/small"))
        answer = sock.recv(1000)
        server.process.send_signal(number)
        wait_until_refused(server)
        answer += read_to_end(sock)
    assert answer.endswith(SMALL)
    assert server.wait() == 0


def test_request_that_has_begun_is_answered_during_the_drain(start: Start) -> None:
    server = start("--graceful-timeout", "3600")
    with server.tls() as sock, server.tls() as other:
        request = head("/text.txt")
        sock.sendall(request[:20])
        other.sendall(head("/text.txt"))
        assert other.recv(1)  # so the first part of the other request has been read, too
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        sock.sendall(request[20:])
        answer = read_to_end(sock)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(TEXT)
    assert server.wait() == 0


@pytest.mark.parametrize("second_signal", [False, True])
def test_drain_has_an_end(start: Start, second_signal: bool) -> None:
    server = start("--graceful-timeout", "3600" if second_signal else "0.1")
    with server.tls(receive_buffer=4096) as sock:
        sock.sendall(head("/small"))
        assert sock.recv(1)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        if second_signal:
            server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "1 connection is cut short" in server.log()


def test_cut_download_ends_with_close_notify(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 * MIB)
    server = start("--graceful-timeout", "0.1", directory=tmp_path)
    with server.tls(receive_buffer=65536) as sock:
        sock.sendall(head("/large"))
        answer = sock.recv(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("cut short")
        answer += read_to_end(sock)
    assert len(answer) < 64 * MIB
    assert server.wait() == 0


# Bad peers


def plain_http(server: Server) -> None:
    with server.tcp() as sock:
        sock.sendall(head("/"))
        sock.recv(65536)
    server.wait_for_log("handshake failed: plain HTTP sent to the TLS port")


def garbage(server: Server) -> None:
    with server.tcp() as sock:
        sock.sendall(bytes(range(256)))
        sock.recv(65536)
    server.wait_for_log("handshake failed: TLS failed: ")


def no_handshake(server: Server) -> None:
    with server.tcp() as sock:
        sock.sendall(b"\x16\x03\x01")
    server.wait_for_log("handshake failed: ")


def garbage_after_the_handshake(server: Server) -> None:
    with server.tls() as sock, socket.socket(fileno=os.dup(sock.fileno())) as tcp:
        tcp.sendall(bytes(range(256)))
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            sock.recv(1)
    server.wait_for_log(": TLS failed: ")


def reset_during_a_download(server: Server) -> None:
    sock = server.tls(receive_buffer=4096)
    sock.sendall(head("/small"))
    assert sock.recv(1)
    reset(sock)
    server.wait_for_log("the connection broke: ")


def end_within_a_request(server: Server) -> None:
    with server.tls() as sock:
        sock.sendall(b"GET / HT")
    server.wait_for_log("ended within a request")


@pytest.mark.parametrize(
    "misbehave",
    [
        plain_http,
        garbage,
        no_handshake,
        garbage_after_the_handshake,
        reset_during_a_download,
        end_within_a_request,
    ],
)
def test_bad_peer_is_logged_in_one_line(start: Start, misbehave: Callable[[Server], None]) -> None:
    server = start()
    misbehave(server)
    assert server.works()
    assert server.log().count("\n") == 1
    assert server.stop() == 0


# Starting


def test_port_in_use(contexts: Contexts) -> None:
    files = ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = fails("--bind", address, *files)
    assert said.startswith(f"ringtls: can't listen on {address}: Address already in use; ")


@pytest.mark.parametrize(
    ("host", "reason"),
    [("203.0.113.1", "Cannot assign requested address"), ("x" * 64, "this can't be the name")],
)
def test_address_that_can_not_be_had(host: str, reason: str) -> None:
    with ExitStack() as stack, pytest.raises(StartError, match=f"listen on {host}:0: {reason}"):
        open_sockets([Address(host, 0)], {}, 1, stack)


def test_wrong_key(contexts: Contexts, tmp_path: Path) -> None:
    other = make_certificate(tmp_path)
    said = fails("--certfile", str(contexts.certificate), "--keyfile", str(other.key))
    assert said == f"ringtls: the key in {other.key} is not that of {contexts.certificate}\n"


def test_missing_files(contexts: Contexts, tmp_path: Path) -> None:
    no = tmp_path / "no"
    reason = "No such file or directory"
    assert fails("--certfile", str(no)) == f"ringtls: can't read {no}: {reason}\n"
    said = fails("--certfile", str(contexts.certificate), "--keyfile", str(no))
    assert said == f"ringtls: can't read {no}: {reason}\n"
    assert fails("-d", str(no)) == f"ringtls: can't serve the directory {no}: {reason}\n"


def test_no_key(contexts: Contexts) -> None:
    assert "no certificate with its key" in fails("--certfile", str(contexts.certificate))
    assert fails("--keyfile", str(contexts.key)) == "ringtls: --keyfile needs --certfile\n"


def test_certificate_and_key_in_one_file(contexts: Contexts, site: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(contexts.certificate.read_bytes() + contexts.key.read_bytes())
    one = Contexts(contexts.server, contexts.client, contexts.ca, both, both)
    server = Server(one, site, tmp_path / "stderr")
    try:
        assert server.works()
    finally:
        server.end()


# In this process


class ServerSide:
    """A connection of this process: the server's side."""

    def __init__(
        self, server: SocketStream, contexts: Contexts, root: Path, timeouts: dict[str, float]
    ) -> None:
        usual = {wait: timeout.seconds for wait, timeout in OF_REQUESTS.items()}
        given = {Wait[name]: value for name, value in timeouts.items()}
        self.connections = Connections(Limits({**usual, **given}))
        self._server = server
        service = FileService(root, Policy())
        metrics = Metrics()
        figures = Figures(metrics, [])
        service.add_metrics(metrics)
        service.prepare()
        metrics.share(1)
        files = Files([(contexts.certificate, contexts.key)])
        credentials = Credentials(files.read(), service.alpn)
        self._handler = Handler(service, credentials, self.connections, figures)
        self.ended = trio.Event()

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.connections.sweep)
            begin_connection(self._handler, self._server, nursery)
            await self.connections._waiting_for_room.park()  # it has ended
            nursery.cancel_scope.cancel()
        self.ended.set()


class Served(ServerSide):
    """The client's side, too."""

    def __init__(
        self,
        client: TlsStream,
        server: SocketStream,
        contexts: Contexts,
        root: Path,
        timeouts: dict[str, float],
    ) -> None:
        super().__init__(server, contexts, root, timeouts)
        self.client = client

    async def receive_to_end(self) -> bytes:
        """All until close_notify; a mere end of the connection raises TruncationError."""
        return b"".join([data async for data in self.client])


async def served(
    contexts: Contexts,
    root: Path,
    nursery: trio.Nursery,
    buffer_size: int | None = None,
    **timeouts: float,
) -> Served:
    below, server = await socket_streams(buffer_size)
    client = TlsStream(below, contexts.client, server_hostname="localhost")
    both = Served(client, server, contexts, root, timeouts)
    nursery.start_soon(both.serve)
    return both


@asynccontextmanager
async def slow_reader(
    ends: tuple[socket.socket, socket.socket], contexts: Contexts, root: Path, **timeouts: float
) -> AsyncIterator[tuple[trio.abc.Stream, Connection]]:
    """A client that receives nothing by itself, and its connection to a server with small buffers.
    At the end the client resets it."""
    set_buffers(16384, *ends)
    end, server = ends
    transport = trio.SocketStream(trio.socket.from_stdlib_socket(end))
    client = trio.SSLStream(transport, contexts.client, server_hostname="localhost")
    side = ServerSide(SocketStream(server), contexts, root, timeouts)
    async with transport, trio.open_nursery() as nursery:
        nursery.start_soon(side.serve)
        await client.do_handshake()
        [connection] = side.connections._open
        yield client, connection
        await transport.aclose()


@pytest.fixture
def server_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="ringtls.server")
    return caplog


@pytest.fixture(autouse=True)
def frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_INTERVAL", 0.01)


async def test_handshake_timeout(
    contexts: Contexts, site: Path, server_log: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery, HANDSHAKE=0.05)
            both.client.transport_stream.socket.send(b"\x16")
            both.client.transport_stream.socket.send(b"\x03")
            await both.ended.wait()
        both.client.close_unclean()
    assert [record.levelname for record in server_log.records] == ["WARNING"]
    assert "handshake not complete after 0.05 s" in server_log.text


async def test_who_takes_in_nothing_of_its_handshake_is_not_waited_for(tmp_path: Path) -> None:
    names = [f"{number}.example" for number in range(6000)]  # more than the kernel takes
    made = make_certificate(tmp_path, names)
    contexts = contexts_of(made.ca, made.certificate, made.key)
    outgoing = ssl.MemoryBIO()
    tls = contexts.client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="1.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, tmp_path, nursery, 1024, HANDSHAKE=0.05, ROOM=math.inf)
            both.client.transport_stream.socket.send(outgoing.read())
            await both.ended.wait()
        both.client.close_unclean()


@pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair])
@pytest.mark.parametrize("leaves", [True, False])
async def test_silent_peer_is_no_warning(
    contexts: Contexts,
    site: Path,
    server_log: pytest.LogCaptureFixture,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    leaves: bool,
) -> None:
    peer, server = pair()
    limits = {"HANDSHAKE": PATIENCE if leaves else 0.05}
    side = ServerSide(SocketStream(server), contexts, site, limits)
    with peer, trio.fail_after(PATIENCE):
        if leaves:
            peer.shutdown(socket.SHUT_WR)
        await side.serve()
    assert [record.levelname for record in server_log.records] == ["DEBUG"]


async def test_request_timeout(
    contexts: Contexts, site: Path, server_log: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery, REQUEST=0.2)
            async with both.client:
                await both.client.send_all(b"GET / HT")
                assert (await both.receive_to_end()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert "request not complete after 0.2 s" in server_log.text


async def test_who_takes_in_nothing_is_not_waited_for_with_the_last_words(
    contexts: Contexts, tmp_path: Path
) -> None:
    """All that may be unsent is: the answer to a request that does not come has to wait."""
    (tmp_path / "file").write_bytes(bytes(files.SMALL))
    limits = {"REQUEST": 0.05, "ROOM": 0.05}
    async with slow_reader(tcp_pair(), contexts, tmp_path, **limits) as (client, connection):
        while connection.stream._transport.unsent < HIGH_WATER:
            connection.waits_for = Wait.NOTHING
            await client.send_all(head("/file"))
            await until(lambda: connection.waits_for is Wait.NEXT_REQUEST)
        await client.send_all(b"GET / HT")
        await until(lambda: connection.stream._closing.started)
    assert connection.cut is Cut.TIMEOUT


while_idle = pytest.mark.parametrize(
    ("name", "data"), [("FIRST_REQUEST", b""), ("NEXT_REQUEST", head("/no"))]
)


@while_idle
async def test_idle_timeout(contexts: Contexts, site: Path, name: str, data: bytes) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery, None, **{name: 0.2})
            async with both.client:
                await both.client.do_handshake()
                await both.client.send_all(data)
                answer = await both.receive_to_end()
    assert answer.count(b"HTTP/1.1 ") == (1 if data else 0)


@while_idle
async def test_who_sends_empty_lines_alone_is_idle(
    contexts: Contexts,
    site: Path,
    server_log: pytest.LogCaptureFixture,
    name: str,
    data: bytes,
) -> None:
    """No matter how many, and how often (RFC 9112, section 2.2)."""

    async def send_empty_lines() -> None:
        await both.client.send_all(data)
        while True:
            await both.client.send_all(b"\r\n")
            await trio.sleep(0.05)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery, None, **{name: 0.2})
            async with both.client:
                await both.client.do_handshake()
                nursery.start_soon(send_empty_lines)
                answer = await both.receive_to_end()
                nursery.cancel_scope.cancel()
    assert answer.count(b"HTTP/1.1 ") == (1 if data else 0)
    assert "request" not in server_log.text


async def test_send_timeout(
    contexts: Contexts,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(handling, "DRAIN_CLOSE_TIMEOUT", 0.1)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery, buffer_size=16384, ROOM=0.2)
            async with both.client:
                await both.client.send_all(head("/small"))
                await both.client.receive_some(1)
                both.connections.drain()
                await both.ended.wait()
    assert "takes in nothing, given up after 0.2 s" in server_log.text


async def receive_until_it_counts(client: trio.abc.ReceiveStream, connection: Connection) -> None:
    """Receive until the server's kernel knows that more was taken in."""
    seen = taken_in(connection.stream)
    while taken_in(connection.stream) == seen:
        assert await client.receive_some(1024)


@pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair])
async def test_who_takes_in_something_is_not_cut(
    contexts: Contexts, site: Path, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """However slow it is. The time is that of the calls here: the sweep never comes to it."""
    async with slow_reader(pair(), contexts, site, ROOM=1e6) as (client, connection):
        await client.send_all(head("/small"))
        await client.receive_some(1)
        now = time.monotonic()
        for _ in range(4):
            now += 2e6
            connection.expire(now)
            assert connection.cut is None
            await receive_until_it_counts(client, connection)
        while connection.cut is None:  # what is on its way still counts
            now += 2e6
            connection.expire(now)
            await trio.testing.wait_all_tasks_blocked()
    assert connection.cut is Cut.TIMEOUT


async def test_who_takes_in_something_is_not_ended_either(
    contexts: Contexts, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """When all was accepted, and its connection is to end."""
    (tmp_path / "file").write_bytes(os.urandom(120_000))  # the stream accepts it at once
    async with slow_reader(tcp_pair(), contexts, tmp_path, ROOM=1.0) as (client, connection):
        await client.send_all(head("/file", "Connection: close"))
        await client.receive_some(1)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            await receive_until_it_counts(client, connection)
            mock_clock.jump(1.5)
            await trio.testing.wait_all_tasks_blocked()
            assert not connection.stream._closing.started
        while not connection.stream._closing.started:  # what is on its way still counts
            mock_clock.jump(1.5)
            await trio.testing.wait_all_tasks_blocked()


async def test_drain_waits_for_what_is_accepted_but_not_taken_in(
    contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handling, "DRAIN_CLOSE_TIMEOUT", 0.1)
    content = os.urandom(120_000)  # more than the kernel takes, but the stream accepts it
    (tmp_path / "file").write_bytes(content)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, tmp_path, nursery, buffer_size=16384)
            async with both.client:
                await both.client.send_all(head("/file"))
                answer = bytes(await both.client.receive_some(1))
                both.connections.drain()
                await trio.sleep(0.5)  # longer than the end of the stream may take
                answer += await both.receive_to_end()
    assert answer.endswith(content)


async def test_file_that_becomes_shorter(
    contexts: Contexts, tmp_path: Path, server_log: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * MIB))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, tmp_path, nursery, buffer_size=16384)
            async with both.client:
                await both.client.send_all(head("/file"))
                answer = bytes(await both.client.receive_some(1))
                os.truncate(file, 0)
                answer += await both.receive_to_end()
    assert b"\r\nContent-Length: 4194304\r\n" in answer
    assert len(answer) < 4 * MIB
    assert "a file was shorter than its size when it was sent" in server_log.text


async def test_small_file_that_becomes_shorter(
    contexts: Contexts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_log: pytest.LogCaptureFixture,
) -> None:
    """Between the look at its size and the read: as files of sysfs(5) always are. The next answer
    must not be taken for the rest of this one (RFC 9112, section 6.3)."""
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    open_file = Directory.open

    def shorten(directory: Directory, segments: list[str]) -> OpenFile:
        opened = open_file(directory, segments)
        os.truncate(file, 5)
        return opened

    monkeypatch.setattr(Directory, "open", shorten)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, tmp_path, nursery)
            async with both.client:
                await both.client.send_all(head("/file") + head("/file"))
                fields, _, body = (await both.receive_to_end()).partition(b"\r\n\r\n")
    assert fields.endswith(b"\r\nContent-Length: 100")
    assert body == bytes(5)
    assert "a file was shorter than its size when it was sent" in server_log.text


async def test_unexpected_error_ends_one_connection(
    contexts: Contexts,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_log: pytest.LogCaptureFixture,
) -> None:
    def broken(directory: Directory, segments: list[str]) -> OpenFile:
        raise ZeroDivisionError

    monkeypatch.setattr(Directory, "open", broken)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery)
            async with both.client:
                await both.client.send_all(head("/"))
                assert await both.receive_to_end() == b""
    assert "ZeroDivisionError" in server_log.text


async def test_error_of_the_machine_is_not_the_clients(
    contexts: Contexts,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_log: pytest.LogCaptureFixture,
) -> None:
    def exhausted(directory: Directory, segments: list[str]) -> OpenFile:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Directory, "open", exhausted)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            both = await served(contexts, site, nursery)
            async with both.client:
                await both.client.send_all(head("/text.txt", "Connection: close"))
                assert (await both.receive_to_end()).startswith(b"HTTP/1.1 500 ")
    assert "can't serve /text.txt: [Errno 24] Too many open files" in server_log.text
