"""``ringtls proxy``: the real command, between real clients and scripted backends."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ringtls import SocketStream, _connecting
from ringtls._cli import main
from ringtls._cli.certificates import client_context, make_certificate
from ringtls._cli.demo.peer import _hides_reset as hides_reset
from ringtls._cli.proxy import backends, connection
from ringtls._cli.proxy.connection import Options, ProxyService, _connect, _connect_now
from ringtls._cli.server.listening import Address
from ringtls._drivers.trio import TrioDriver
from ringtls._engine.descriptors import is_gone

from .conftest import Contexts, contexts_of
from .support.authority import Authority
from .support.processes import in_child
from .support.proxy import Backend, Proxy, StartProxy, starting_proxies
from .support.server import PATIENCE, fails, read_metrics, wait_until_refused
from .support.streams import open_fds, refusing_port, reset
from .support.waiting import wait_until


@pytest.fixture
def start(contexts: Contexts, tmp_path: Path) -> Iterator[StartProxy]:
    with starting_proxies(contexts, tmp_path) as start:
        yield start


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture
def down() -> Iterator[str]:
    """The name of a backend that is not there."""
    with refusing_port() as port:
        yield f"127.0.0.1:{port}"


def exchange(client: socket.socket, theirs: socket.socket) -> None:
    """Say something in each direction."""
    client.sendall(b"question")
    assert theirs.recv(100) == b"question"
    theirs.sendall(b"answer")
    assert client.recv(100) == b"answer"


def works(proxy: Proxy, backend: Backend) -> bool:
    with proxy.tls() as client, backend.accept() as theirs:
        exchange(client, theirs)
    return True


def is_reset(sock: socket.socket) -> bool:
    """True if it ends by RST; False if by anything else."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except ssl.SSLEOFError as error:
        return isinstance(sock, ssl.SSLSocket) and hides_reset(error, sock)
    return False


def lines(proxy: Proxy) -> list[str]:
    """The log's, without those that tell of the proxy's own end."""
    return [line for line in proxy.log().splitlines() if "SIGTERM" not in line]


# Where connections go


def test_there_and_back(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name)
    assert works(proxy, backend)
    assert proxy.stop() == 0
    assert lines(proxy) == []


def test_a_local_socket(start: StartProxy, tmp_path: Path) -> None:
    with Backend(tmp_path / "backend") as backend:
        assert works(start("--backend", backend.name), backend)


def test_r3_a_local_socket_can_not_be_reset(start: StartProxy, tmp_path: Path) -> None:
    """Only the access log knows that the upload was truncated."""
    with Backend(tmp_path / "backend") as backend:
        proxy = start("--backend", backend.name, "--access-log", "--log-format", "json")
        with proxy.tls() as client, backend.accept() as theirs:
            client.sendall(b"half an upload")
            with socket.socket(fileno=client.detach()) as tcp:
                tcp.shutdown(socket.SHUT_WR)
                assert read(theirs, 14) == b"half an upload"
                assert theirs.recv(1) == b""
    assert json.loads(proxy.stdout.readline())["client_end"] == "truncated"
    assert proxy.stop() == 0


def test_a_name(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name.replace("127.0.0.1", "localhost"))
    for _ in range(2):
        assert works(proxy, backend)


def ask(proxy: Proxy, name: str | None, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(proxy.tcp(), server_hostname=name)


@pytest.fixture
def any_name(contexts: Contexts) -> ssl.SSLContext:
    """A client that asks for any name, and verifies nothing."""
    context = client_context(contexts.ca)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_routes(start: StartProxy, any_name: ssl.SSLContext) -> None:
    with Backend() as one, Backend() as wild, Backend() as other:
        routes = ("--route", f"one.example={one.name}", "--route", f"*.example={wild.name}")
        proxy = start(*routes, "--backend", other.name)
        for name, backend in {
            "one.example": one,
            "ONE.example": one,
            "two.example": wild,
            "a.two.example": other,
            "example": other,
            None: other,
        }.items():
            with ask(proxy, name, any_name) as client, backend.accept() as theirs:
                exchange(client, theirs)


@pytest.mark.parametrize(
    ("name", "alert"), [("other.example", "UNRECOGNIZED_NAME"), (None, "MISSING_EXTENSION")]
)
def test_a_name_that_leads_nowhere(
    start: StartProxy, backend: Backend, any_name: ssl.SSLContext, name: str | None, alert: str
) -> None:
    proxy = start("--route", f"one.example={backend.name}")
    with pytest.raises(ssl.SSLError) as caught:
        ask(proxy, name, any_name)
    assert alert in str(caught.value.reason)
    with ask(proxy, "one.example", any_name) as client, backend.accept() as theirs:
        exchange(client, theirs)
    assert proxy.stop() == 0
    [line] = lines(proxy)
    assert line.endswith(f"handshake failed: nothing is served for the name {name or ''!r}")


def test_garbage_for_tls(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name)
    with proxy.tcp() as garbage:
        garbage.sendall(b"\x80" * 100)
        assert garbage.recv(100)[7:] == b""
    assert works(proxy, backend)
    assert proxy.stop() == 0
    [line] = lines(proxy)
    assert "handshake failed" in line


def test_the_least_used_backend_is_first(start: StartProxy) -> None:
    with Backend() as first, Backend() as second, ExitStack() as stack:
        proxy = start("--backend", first.name, "--backend", second.name)
        for backend in (first, second, first, second):
            client = stack.enter_context(proxy.tls())
            exchange(client, stack.enter_context(backend.accept()))


def test_a_backend_that_is_down_is_passed_over(
    start: StartProxy, backend: Backend, down: str
) -> None:
    proxy = start("--backend", down, "--backend", backend.name)
    for _ in range(3):
        assert works(proxy, backend)
    assert proxy.stop() == 0
    [line] = lines(proxy)  # and is not tried again so soon
    assert line.endswith(f"passed over {down}: Connection refused")


def test_no_backend_is_there(start: StartProxy) -> None:
    with Backend() as first, Backend() as second:
        pass
    proxy = start("--backend", first.name, "--backend", second.name)
    with proxy.tls() as client:
        assert is_reset(client)
    assert proxy.stop() == 0
    [line] = lines(proxy)
    refused = "Connection refused"
    assert line.endswith(f"no backend: {first.name}: {refused}; {second.name}: {refused}")


@contextmanager
def backend_that_is_full(path: Path) -> Iterator[Backend]:
    """One that never accepts, and with which others wait already."""
    with Backend(path) as full, ExitStack() as stack:
        full.listener.listen(0)
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                sock.connect(str(path))
            except BlockingIOError:
                break
        yield full


def test_a_backend_that_never_accepts(
    start: StartProxy, backend: Backend, any_name: ssl.SSLContext, tmp_path: Path
) -> None:
    with backend_that_is_full(tmp_path / "full") as full:
        routes = ("--route", f"localhost={full.name}", "--backend", backend.name)
        proxy = start(*routes, "--connect-timeout", "0.1")
        with proxy.tls() as client:
            assert is_reset(client)
        with ask(proxy, "other.example", any_name) as client, backend.accept() as theirs:
            exchange(client, theirs)
        assert proxy.stop() == 0
        [line] = lines(proxy)
        assert line.endswith(f"no backend: {full.name}: no answer within 0.1 s")


def test_r5_a_drain_while_a_backend_is_connected_to(
    start: StartProxy, down: str, tmp_path: Path
) -> None:
    """The client can't take it for an end."""
    with backend_that_is_full(tmp_path / "full") as full:
        backends = ("--backend", down, "--backend", full.name)
        metrics = ("--metrics", f"unix:{tmp_path / 'metrics'}")
        proxy = start(*backends, *metrics, "--connect-timeout", "3600")
        with proxy.tls() as client:
            failed = f'ringtls_backend_failures_total{{backend="{down}"}} 1.0'
            wait_until(lambda: failed in read_metrics(tmp_path / "metrics"))  # on to the other
            for _ in range(2):
                proxy.process.send_signal(signal.SIGTERM)
            assert is_reset(client)
        assert proxy.wait() == 0


class Resolver(trio.abc.HostnameResolver):
    """Knows several addresses of every name, and counts who asks."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.asked = 0

    async def getaddrinfo(  # type: ignore[override]
        self, host: object, port: int, *_: object, **__: object
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        self.asked += 1
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in self._addresses]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def connect(target: backends.Backend) -> SocketStream:
    address, stream = await _connecting.connect_to_any(await target.targets())
    target.prefer(address)
    return stream


async def test_the_addresses_of_a_name(backend: Backend) -> None:
    """The next if the first refuses; they are asked for again if all do."""
    resolver = Resolver("127.0.0.2", "127.0.0.1")
    trio.socket.set_custom_hostname_resolver(resolver)
    target = backends.Backend(Address("a.name", backend.listener.getsockname()[1]))
    assert target.connect_now() is None
    for _ in range(2):
        async with await connect(target) as stream:
            assert stream.socket.getpeername() == backend.listener.getsockname()
        backend.accept().close()
    assert resolver.asked == 1
    backend.listener.close()
    with pytest.raises(ConnectionRefusedError):
        await connect(target)
    target.note_failure()
    with pytest.raises(ConnectionRefusedError):
        await connect(target)
    assert resolver.asked == 2


@contextmanager
def address_that_swallows(host: str, port: int) -> Iterator[None]:
    """One that answers no SYN: as many wait to be accepted there as may."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((host, port))
        yield


async def test_an_address_that_swallows_connections_hides_no_other(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it comes after the one that answered, for the next client."""
    port = backend.listener.getsockname()[1]
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.2", "127.0.0.1"))
    monkeypatch.setattr(backends, "RESOLUTION_AGE", math.inf)
    target = backends.Backend(Address("a.name", port))
    with address_that_swallows("127.0.0.2", port):
        for delay in (0, math.inf):
            monkeypatch.setattr(_connecting, "HAPPY_EYEBALLS_DELAY", delay)
            async with await connect(target) as stream:
                assert stream.socket.getpeername() == ("127.0.0.1", port)
            backend.accept().close()


@pytest.mark.parametrize(
    ("host", "families"),
    [("::1", [socket.AF_INET6]), ("fe80::1%lo", None), ("a.name", None)],
)
def test_what_needs_no_resolver(host: str, families: list[socket.AddressFamily] | None) -> None:
    targets = backends._targets_without_resolving(Address(host, 1))
    assert families == (None if targets is None else [family for family, _ in targets])


class Crowd:
    """Holds all descriptors that there may be, and gives one back at a time."""

    def __init__(self, fd: int) -> None:
        self.taken: list[int] = []
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_fds() + 16, hard))
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            while True:
                self.taken.append(os.dup(fd))

    async def make_room(self) -> None:
        os.close(self.taken.pop())


def test_a_shortage_of_descriptors_is_waited_out(backend: Backend) -> None:
    """Who connects to a backend has others give way, and tries again."""
    target = backends.Backend(Address(*backend.listener.getsockname()))

    async def main() -> None:
        TrioDriver.current().ring  # noqa: B018  it needs some itself
        crowd = Crowd(backend.listener.fileno())
        many = len(crowd.taken)
        assert _connect_now(target) is None
        _, stream = await _connect(crowd, await target.targets())  # type: ignore[arg-type]
        assert len(crowd.taken) == many - 1
        stream.close_unclean()

    in_child(lambda: trio.run(main))


def test_idle_connections_give_way_when_descriptors_run_short(
    start: StartProxy, backend: Backend
) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    proxy = start("--backend", backend.name, "--max-connections", "1000", preexec_fn=limit)
    with ExitStack() as stack:
        for _ in range(3 * 64):
            stack.enter_context(proxy.tcp())
        for _ in range(10):
            assert works(proxy, backend)
    assert proxy.stop() == 0


# Where from


def test_clients_at_a_local_socket(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    path = tmp_path / "clients"
    options = ("--proxy-protocol", "v1", "--access-log", "--bind", f"unix:{path}")
    proxy = start("--backend", backend.name, *options)
    assert proxy.stdout.readline() == f"Running on unix:{path} (CTRL + C to quit)\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        with proxy.wrap(sock) as client, backend.accept() as theirs:
            assert read(theirs, 15) == b"PROXY UNKNOWN\r\n"
            exchange(client, theirs)
    assert proxy.stdout.readline().startswith("unix: [")
    assert proxy.stop() == 0
    assert not path.exists()


def test_a_socket_that_is_inherited(start: StartProxy, backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number, port = listening.fileno(), listening.getsockname()[1]
        proxy = start("--backend", backend.name, bind=f"fd://{number}", pass_fds=[number])
    assert proxy.port == port
    assert works(proxy, backend)
    assert proxy.stop() == 0


# SIGHUP


def test_a_new_certificate_while_connections_run(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    files = tmp_path / "certificate", tmp_path / "key"
    for source, path in zip((contexts.certificate, contexts.key), files, strict=True):
        shutil.copy(source, path)
    named = ("--certfile", str(files[0]), "--keyfile", str(files[1]))
    proxy = start("--backend", backend.name, *named, certificates=False)
    with proxy.tls() as client, backend.accept() as theirs:
        exchange(client, theirs)
        new = make_certificate(tmp_path)
        for source, path in zip((new.certificate, new.key), files, strict=True):
            shutil.copy(source, path)
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for_log("SIGHUP: the certificates were loaded anew")
        with ask(proxy, "localhost", client_context(new.ca)) as newcomer:
            with backend.accept() as others:
                exchange(newcomer, others)
            assert newcomer.recv(1) == b""
        exchange(client, theirs)
        theirs.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.stop() == 0


def test_new_authorities_of_the_backends(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    authorities = Path(shutil.copy(make_certificate(tmp_path).ca, tmp_path / "ca"))
    name = ("--backend-ca", str(authorities), "--backend-name", "localhost")
    proxy = start("--backend", backend.name, "--backend-tls", *name)
    with proxy.tls() as client:
        with pytest.raises(OSError), served(backend, contexts):  # noqa: PT011 an alert, or RST
            pass
        assert is_reset(client)
    shutil.copy(contexts.ca, authorities)
    proxy.process.send_signal(signal.SIGHUP)
    proxy.wait_for_log("SIGHUP: the certificates were loaded anew")
    with proxy.tls() as client, served(backend, contexts) as theirs:
        exchange(client, theirs)
        authorities.write_text("nonsense")
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for_log("stay as they were: no certificate in the file of --backend-ca")
        exchange(client, theirs)
    with proxy.tls() as client, served(backend, contexts) as theirs:
        exchange(client, theirs)
    assert proxy.stop() == 0


# TLS towards the backend


@contextmanager
def served(backend: Backend, contexts: Contexts) -> Iterator[ssl.SSLSocket]:
    """A connection that a backend has accepted, with TLS."""
    with contexts.server.wrap_socket(backend.accept(), server_side=True) as theirs:
        yield theirs


def test_backend_tls(start: StartProxy, backend: Backend, contexts: Contexts) -> None:
    name = ("--backend-ca", str(contexts.ca), "--backend-name", "localhost")
    proxy = start("--backend", backend.name, "--backend-tls", *name)
    with proxy.tls() as client, served(backend, contexts) as theirs:
        exchange(client, theirs)
    assert proxy.stop() == 0


def test_the_backends_certificate_is_verified(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path)
    proxy = start("--backend", backend.name, "--backend-tls", "--backend-ca", str(other.ca))
    with proxy.tls() as client:
        with pytest.raises(OSError), served(backend, contexts):  # noqa: PT011 an alert, or RST
            pass
        assert is_reset(client)
    assert proxy.stop() == 0
    [line] = lines(proxy)
    assert "CERTIFICATE_VERIFY_FAILED" in line


#: Each name has the first address, and then the other; each connection asks for them.
TWO_ADDRESSES = """
import trio
from ringtls import _connecting
from ringtls._cli.proxy import backends
async def getaddrinfo(host, port, **_):
    return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]
trio.socket.getaddrinfo = getaddrinfo
backends.RESOLUTION_AGE = 0
backends.FAILURE_PAUSE = 3600
_connecting.HAPPY_EYEBALLS_DELAY = 3600
"""


@pytest.mark.parametrize("is_silent", [True, False])
def test_an_address_without_a_handshake_hides_no_other(
    start: StartProxy, backend: Backend, contexts: Contexts, is_silent: bool
) -> None:
    """Whether it says nothing, or ends. Later clients do not meet it any more."""
    port = backend.listener.getsockname()[1]
    options = ["--backend-tls", "--backend-ca", str(contexts.ca), "--backend-name", "localhost"]
    options += ["--connect-timeout", "4" if is_silent else "3600"]
    with Backend(address=("127.0.0.2", port)) as other:
        proxy = start("--backend", f"a.name:{port}", *options, patch=TWO_ADDRESSES)
        with proxy.tls() as client, other.accept() as stuck:
            if not is_silent:
                stuck.close()
            with served(backend, contexts) as theirs:
                exchange(client, theirs)
        with proxy.tls() as client, served(backend, contexts) as theirs:
            exchange(client, theirs)
        assert proxy.stop() == 0
        [line] = lines(proxy)
    assert f": passed over a.name:{port} at 127.0.0.2: " in line
    assert ("no answer within" in line) == is_silent


async def test_a_busy_address_has_time_for_its_handshake(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """However many there are: a second. One that says nothing has no more."""
    handshakes = {"127.0.0.1": math.inf, **{f"127.0.0.{each}": 0.9 for each in range(2, 9)}}
    trio.socket.set_custom_hostname_resolver(Resolver(*handshakes))

    async def connect_to_first(_: object, targets: list[Any]) -> tuple[Any, str]:
        (_, (host, _)), *_ = targets
        return targets[0], host

    async def shake_hands(_: object, __: object, ___: object, host: str) -> str:
        await trio.sleep(handshakes[host])
        return host

    monkeypatch.setattr(connection, "_connect", connect_to_first)
    monkeypatch.setattr(ProxyService, "_prepare", shake_hands)
    options = Options(
        is_tls=True,
        encryption=None,
        alpn=(),
        accepts_header=False,
        sends_header=None,
        connect_timeout=5.0,
    )
    service = ProxyService(options, backends.Routes(()))
    target = backends.Backend(Address("a.name", 443))
    failures: list[str] = []
    began = trio.current_time()
    client: Any = None
    opened: object = await service._open(client, target, failures)
    assert opened == "127.0.0.2"
    assert failures == ["a.name:443 at 127.0.0.1: no answer within 1 s"]
    assert trio.current_time() - began == pytest.approx(1.9)


def test_no_address_makes_a_handshake(start: StartProxy, backend: Backend) -> None:
    port = backend.listener.getsockname()[1]
    with Backend(address=("127.0.0.2", port)) as other:
        proxy = start("--backend", f"a.name:{port}", "--backend-tls", patch=TWO_ADDRESSES)
        with proxy.tls() as client:
            other.accept().close()
            backend.accept().close()
            assert is_reset(client)
        assert proxy.stop() == 0
        [line] = lines(proxy)
    assert re.search(rf"no backend: a\.name:{port} at 127\.0\.0\.2: .*; a\.name:{port}: ", line)


@pytest.mark.parametrize("right", [True, False])
def test_the_backends_name_is_verified(
    start: StartProxy, backend: Backend, contexts: Contexts, right: bool
) -> None:
    """By default the host of --backend is the name."""
    options = ["--backend-tls", "--backend-ca", str(contexts.ca)]
    if not right:
        options += ["--backend-name", "other.example"]
    proxy = start("--backend", backend.name.replace("127.0.0.1", "localhost"), *options)
    with proxy.tls() as client:
        if right:
            with served(backend, contexts) as theirs:
                exchange(client, theirs)
        else:
            with pytest.raises(OSError), served(backend, contexts):  # noqa: PT011 an alert, or RST
                pass
            assert is_reset(client)
    assert proxy.stop() == 0
    assert ["CERTIFICATE_VERIFY_FAILED" in line for line in lines(proxy)] == [True] * (not right)


def test_what_the_client_agreed_to_is_offered_to_the_backend(
    start: StartProxy, backend: Backend, contexts: Contexts
) -> None:
    name = ("--backend-ca", str(contexts.ca), "--backend-name", "localhost")
    proxy = start("--backend", backend.name, "--backend-tls", *name, "--alpn", "h2,http/1.1")
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    own.server.set_alpn_protocols(["http/1.1", "h2"])
    own.client.set_alpn_protocols(["h2", "http/1.1"])
    with (
        closing(own.client.wrap_socket(proxy.tcp(), server_hostname="localhost")) as client,
        served(backend, own) as theirs,
    ):
        exchange(client, theirs)
        assert client.selected_alpn_protocol() == theirs.selected_alpn_protocol() == "h2"


def test_originate(start: StartProxy, backend: Backend, contexts: Contexts) -> None:
    name = ("--backend-ca", str(contexts.ca), "--backend-name", "localhost")
    options = ("--backend", backend.name, *name, "--alpn", "h2")
    proxy = start("--originate", *options, certificates=False)
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    own.server.set_alpn_protocols(["http/1.1", "h2"])
    with proxy.tcp() as client, served(backend, own) as theirs:
        exchange(client, theirs)
        assert theirs.selected_alpn_protocol() == "h2"
    with proxy.tcp() as client:
        with backend.accept() as theirs:
            reset(theirs)
        assert is_reset(client)
    assert proxy.stop() == 0


# The PROXY protocol


def test_version_1_towards_the_backend(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--proxy-protocol", "v1")
    with proxy.tls() as client, backend.accept() as theirs:
        client.sendall(b"question")
        port = client.getsockname()[1]
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {proxy.port}\r\n".encode()
        assert read(theirs, len(line) + 8) == line + b"question"


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, data
        data += piece
    return data


def test_version_2_towards_the_backend(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    """The client has a certificate, and asks for a protocol and a name."""
    options = ("--proxy-protocol", "v2", "--alpn", "h2", "--client-ca", str(contexts.ca))
    proxy = start("--backend", backend.name, *options)
    own = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    own.client.load_cert_chain(contexts.certificate, contexts.key)
    own.client.set_alpn_protocols(["h2"])
    with (
        closing(own.client.wrap_socket(proxy.tcp(), server_hostname="localhost")) as client,
        backend.accept() as theirs,
    ):
        client.sendall(b"question")
        head = read(theirs, 16)
        assert head[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
        command, kind, size = struct.unpack("!BBH", head[12:])
        assert (command, kind) == (0x21, 0x11)
        rest = read(theirs, size)
        ports = struct.pack("!HH", client.getsockname()[1], proxy.port)
        assert rest[:12] == 2 * socket.inet_aton("127.0.0.1") + ports
        assert b"\x01\x00\x02h2" in rest
        assert b"\x02\x00\x09localhost" in rest
        assert b"\x07\x00\x00\x00\x00" in rest  # a certificate that was verified
        assert b"\x21\x00\x07TLSv1.3" in rest
        assert read(theirs, 8) == b"question"


LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n"


def hello(contexts: Contexts) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A handshake that has begun."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = contexts.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return tls, incoming, outgoing


def shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            data = sock.recv(65536)
            assert data
            incoming.write(data)
        else:
            sock.sendall(outgoing.read())
            return


def test_what_follows_a_header_is_not_lost(
    start: StartProxy, backend: Backend, contexts: Contexts
) -> None:
    """The header comes in one piece with the handshake's first message."""
    proxy = start("--backend", backend.name, "--accept-proxy-protocol", "--proxy-protocol", "v1")
    with proxy.tcp() as sock:
        tls, incoming, outgoing = hello(contexts)
        sock.sendall(LINE + outgoing.read())
        shake_hands(sock, tls, incoming, outgoing)
        with backend.accept() as theirs:
            assert read(theirs, len(LINE)) == LINE  # who it is from is passed on
            tls.write(b"question")
            sock.sendall(outgoing.read())
            assert read(theirs, 8) == b"question"


def test_a_header_byte_by_byte(start: StartProxy, backend: Backend, contexts: Contexts) -> None:
    proxy = start("--backend", backend.name, "--accept-proxy-protocol", "--access-log")
    with proxy.tcp() as sock:
        for byte in LINE:
            sock.sendall(bytes((byte,)))
        tls, incoming, outgoing = hello(contexts)
        sock.sendall(outgoing.read())
        shake_hands(sock, tls, incoming, outgoing)
        backend.accept().close()
    assert proxy.stdout.readline().startswith("192.0.2.1:1111 ")


V2 = b"\r\n\r\n\x00\r\nQUIT\n"

#: What comes in place of a header.
HOSTILE = {
    "TLS": b"\x16\x03\x01\x00\x05hello",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "a line that never ends": b"PROXY TCP4 " + b"1" * 200,
    "a line that lies": b"PROXY TCP4 999.0.2.1 192.0.2.2 1111 443\r\n",
    "too long": V2 + b"\x21\x11\xff\xff",
    "too short for its addresses": V2 + b"\x21\x11\x00\x01x",
    "a TLV that is longer than all": V2 + b"\x21\x11\x00\x0f" + bytes(12) + b"\x01\xff\xff",
}


def has_lines(proxy: Proxy, number: int) -> bool:
    return len(lines(proxy)) == number


def test_hostile_headers(start: StartProxy, backend: Backend, contexts: Contexts) -> None:
    proxy = start("--backend", backend.name, "--accept-proxy-protocol")
    for number, data in enumerate(HOSTILE.values(), 1):
        with proxy.tcp() as sock:
            sock.sendall(data)
            assert is_reset(sock), data
        wait_until(partial(has_lines, proxy, number))
        assert "no PROXY header: " in lines(proxy)[-1]
    with proxy.tcp() as sock:
        sock.sendall(LINE)
        with proxy.wrap(sock) as client, backend.accept() as theirs:
            exchange(client, theirs)
    assert proxy.stop() == 0
    assert len(lines(proxy)) == len(HOSTILE)


@pytest.mark.parametrize("part", [LINE[:20], V2, V2 + b"\x21\x11\x00\x0c\x01"])
def test_a_header_that_never_ends(start: StartProxy, backend: Backend, part: bytes) -> None:
    options = ("--accept-proxy-protocol", "--handshake-timeout", "0.1")
    proxy = start("--backend", backend.name, *options)
    with proxy.tcp() as sock:
        sock.sendall(part)
        assert is_reset(sock)
    assert proxy.stop() == 0
    [line] = lines(proxy)
    assert line.endswith("handshake not complete after 0.1 s")


def test_a_header_that_never_ends_keeps_nobody_waiting(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--accept-proxy-protocol")
    with proxy.tcp() as endless, proxy.tcp() as sock:
        endless.sendall(V2)
        sock.sendall(LINE)
        with proxy.wrap(sock) as client, backend.accept() as theirs:
            exchange(client, theirs)


@pytest.mark.parametrize("said", [b"", V2 + b"\x20\x00\x00\x00"], ids=["nothing", "LOCAL"])
def test_a_health_check_is_no_line_in_the_log(
    start: StartProxy, backend: Backend, said: bytes
) -> None:
    proxy = start("--backend", backend.name, "--accept-proxy-protocol")
    with proxy.tcp() as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert proxy.stop() == 0
    assert lines(proxy) == []


def begin_handshake(sock: socket.socket, context: ssl.SSLContext) -> None:
    """Do half of it: the server has answered, and waits for the rest."""
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.sendall(outgoing.read())
    sock.recv(1)


def test_who_waits_for_its_handshake_gives_way(
    start: StartProxy, backend: Backend, contexts: Contexts
) -> None:
    """To others beyond the limit. What is being relayed goes on."""
    options = ("--max-connections", "2", "--handshake-timeout", "3600")
    proxy = start("--backend", backend.name, *options)
    with ExitStack() as stack:

        def connected() -> tuple[socket.socket, socket.socket]:
            return stack.enter_context(proxy.tls()), stack.enter_context(backend.accept())

        pairs = [connected()]
        with proxy.tcp() as slow:
            begin_handshake(slow, contexts.client)
            pairs.append(connected())
            assert is_reset(slow)
        pairs.append(connected())
        for client, theirs in pairs:
            exchange(client, theirs)
    assert proxy.stop() == 0


# Those that are turned away


def test_who_takes_in_nothing_of_its_handshake_is_reset(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    """Else it would keep its place for ever, or could complete its handshake and read an end."""
    long = make_certificate(tmp_path, [f"{number}.example" for number in range(1000)])
    files = ("--certfile", str(long.certificate), "--keyfile", str(long.key))
    options = ("--handshake-timeout", "0.1", "--max-connections", "2")
    proxy = start("--backend", backend.name, *files, *options, certificates=False)
    with ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(proxy.tcp(receive_buffer=1))
            _, _, outgoing = hello(contexts)
            sock.sendall(outgoing.read())
            assert select.select([sock], [], [], PATIENCE)[0]
            wait_until(partial(is_gone, sock.fileno()))
            assert is_reset(sock)
        context = client_context(long.ca)
        with context.wrap_socket(proxy.tcp(), server_hostname="1.example") as client:
            exchange(client, stack.enter_context(backend.accept()))
    assert proxy.stop() == 0
    assert proxy.log().count("handshake not complete after 0.1 s") == 2


def test_a_drain_resets_who_waits_for_its_handshake(
    start: StartProxy, backend: Backend, contexts: Contexts
) -> None:
    proxy = start("--backend", backend.name)
    with proxy.tcp() as sock:
        begin_handshake(sock, contexts.client)
        assert proxy.stop() == 0
        assert is_reset(sock)


def test_who_is_not_allowed_is_reset(
    start: StartProxy, backend: Backend, contexts: Contexts, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path)
    _, mallory = authority.sign("mallory")
    options = ("--client-ca", str(authority.path), "--client-allow", "admin")
    proxy = start("--backend", backend.name, *options)
    context = ssl.create_default_context(cafile=str(contexts.ca))
    context.load_cert_chain(mallory)
    with context.wrap_socket(
        proxy.tcp(), server_hostname="localhost", suppress_ragged_eofs=False
    ) as client:
        assert is_reset(client)
    proxy.wait_for_log("not allowed: O=example,CN=mallory")


# Ends


def test_r5_idle_connections_are_reset(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--idle-timeout", "0.1")
    with proxy.tls() as client, backend.accept() as theirs:
        assert is_reset(client)
        assert is_reset(theirs)
    assert proxy.stop() == 0


def test_r5_what_a_drain_cuts_short_is_reset(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name)
    with proxy.tls() as client, backend.accept() as theirs:
        exchange(client, theirs)
        proxy.process.send_signal(signal.SIGTERM)
        wait_until_refused(proxy)
        exchange(client, theirs)  # goes on
        proxy.process.send_signal(signal.SIGTERM)
        assert is_reset(client)
        assert is_reset(theirs)
    assert proxy.wait() == 0


def test_r3_a_worker_that_is_killed_ends_nothing(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--workers", "1")
    with proxy.tls() as client, backend.accept() as theirs:
        exchange(client, theirs)
        [worker] = proxy.workers()
        os.kill(worker, signal.SIGKILL)
        assert is_reset(theirs)
        with pytest.raises(OSError):  # noqa: PT011 no close_notify, or RST
            client.recv(1)
    assert works(proxy, backend)
    assert proxy.stop() == 0


# Watching it


def test_the_access_log(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--access-log", "--log-format", "json")
    with proxy.tls() as client:
        with backend.accept() as theirs:
            exchange(client, theirs)
            peer = "{}:{}".format(*client.getsockname())
            reset(theirs)
        assert is_reset(client)
    line = json.loads(proxy.stdout.readline())
    assert line["peer"] == peer
    assert line["server_name"] == "localhost"
    assert line["version"] == "TLSv1.3"
    assert line["cipher"].startswith("TLS_")
    assert line["backend"] == backend.name
    assert (line["received"], line["sent"]) == (8, 6)
    assert line["seconds"] >= 0
    assert (line["client_end"], line["backend_end"]) == ("undelivered", "reset: ECONNRESET")
    assert proxy.stop() == 0


def test_a_name_can_t_end_its_field_in_the_access_log(start: StartProxy, backend: Backend) -> None:
    proxy = start("--backend", backend.name, "--access-log")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with trusting.wrap_socket(proxy.tcp(), server_hostname='a" - "'), backend.accept():
        pass
    assert '"a\\x22 - \\x22" TLSv1.3 ' in proxy.stdout.readline()
    assert proxy.stop() == 0


def test_metrics(start: StartProxy, backend: Backend, down: str, tmp_path: Path) -> None:
    places = ("--backend", down, "--backend", backend.name)
    proxy = start(*places, "--metrics", "127.0.0.1:0")
    url = re.search(r"http://\S+", proxy.stdout.readline())
    assert url is not None

    def figures() -> str:
        with urllib.request.urlopen(url[0], timeout=PATIENCE) as response:
            text: str = response.read().decode()
            return text

    assert works(proxy, backend)
    wait_until(lambda: 'ringtls_relay_ends_total{end="' in figures())
    assert f'ringtls_backend_failures_total{{backend="{down}"}} 1.0' in figures()
    assert 'ringtls_relay_bytes_total{of="client"} 8.0' in figures()
    assert proxy.stop() == 0


def test_metrics_of_a_path_that_is_not_utf_8(start: StartProxy, tmp_path: Path) -> None:
    place, down = tmp_path / "metrics", os.fsencode(tmp_path) + b"/\xff"
    proxy = start("--backend", f"unix:{os.fsdecode(down)}", "--metrics", f"unix:{place}")
    with proxy.tls() as client:
        assert is_reset(client)
    label = f"unix:{tmp_path}/\\\\xff"  # a backslash is escaped there
    wait_until(lambda: f'backend_failures_total{{backend="{label}"}} 1.0' in read_metrics(place))
    assert proxy.stop() == 0


# The command line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "nowhere to go: give --backend HOST:PORT or --route NAME=BACKEND"),
        (("--backend", "a:1", "--backend-name", "b"), "--backend-name needs --backend-tls"),
        (("--backend", "unix:/a", "--backend-tls"), "give --backend-name"),
        (("--backend", "a:1", "--originate", "--route", "b=c:1"), "--route is for TLS"),
        (("--backend", "a:1", "--backend-tls", "--backend-ca", "/no"), "can't read /no"),
    ],
)
def test_what_does_not_fit_together(arguments: tuple[str, ...], reason: str) -> None:
    assert reason in fails(*arguments, command_name="proxy")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--backend", "fd://3"),
        ("--backend", "localhost:0"),
        ("--backend", "a..b:1"),
        ("--route", f"a.example={'b' * 64}.example:1"),
        ("--route", "a.example"),
        ("--route", "=a:1"),
        ("--route", ".=a:1"),
        ("--route", "*=a:1"),
        ("--route", "*.=a:1"),
        ("--route", "b..=a:1"),
        ("--route", "a*b=a:1"),
        ("--route", "\N{SNOWMAN}.example=a:1"),
        ("--backend", "a:1", "--backend-tls", "--backend-name", ""),
        ("--backend", "a:1", "--backend-tls", "--backend-name", "."),
        ("--backend", "a:1", "--backend-tls", "--backend-name", ".b"),
        ("--backend", "a:1", "--backend-tls", "--backend-name", "b." * 128),
        ("--backend", "a:1", "--alpn", ""),
        ("--backend", "a:1", "--proxy-protocol", "v3"),
    ],
)
def test_what_is_not_understood(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["proxy", "--check", *arguments])
    assert "usage: ringtls proxy" in capsys.readouterr().err


def test_check(contexts: Contexts) -> None:
    command = [sys.executable, "-m", "ringtls", "proxy", "--check", "--backend", "a.example:80"]
    command += ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The configuration is good. Certificates for: ")
