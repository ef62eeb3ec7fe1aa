"""What a TLS stream says of its connection, the names that are verified, and what is refused."""

from __future__ import annotations

import copy
import io
import ipaddress
import pickle
import socket
import ssl
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import pytest
import trio
from cryptography import x509

from ringtls import (
    SocketListener,
    TlsListener,
    TlsStream,
    blocking,
)
from ringtls._cli import certificates
from ringtls._cli.certificates import make_certificate
from ringtls._streams.hostnames import reference_name

from .conftest import Contexts, contexts_of
from .support.peer import Peer
from .support.streams import handshaken, socket_streams, tcp_pair, tls_over


async def test_what_ssl_knows(versioned_contexts: Contexts) -> None:
    client, server = tls_over(*await socket_streams(), versioned_contexts)
    async with client, server:
        early: Callable[[], object]
        for early in (client.shared_ciphers, client.compression):
            with pytest.raises(trio.NeedHandshakeError):
                early()
        assert client.pending() == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        assert client.compression() is None
        shared = server.shared_ciphers()
        assert shared is not None
        assert client.cipher() in shared
        assert isinstance(client.ssl_object, ssl.SSLObject)
        assert client.ssl_object.version() == client.version()


@pytest.mark.parametrize(
    "name", ["read", "write", "do_handshake", "unwrap", "verify_client_post_handshake"]
)
async def test_the_ssl_object_does_no_io(contexts: Contexts, name: str) -> None:
    """What it put out would go to another connection: the BIOs are shared by all of the thread."""
    first, second = await handshaken(contexts)
    async with first, second:
        with pytest.raises(io.UnsupportedOperation, match="by the stream itself"):
            getattr(first.ssl_object, name)(b"?")
        await second.send_all(b"mine")
        assert await first.receive_some() == b"mine"


async def test_the_ssl_object_changes_what_it_may(contexts: Contexts) -> None:
    """The context, as an SNI callback does, and the request of a certificate: neither is I/O."""
    client, server = tls_over(*await socket_streams(), contexts)
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.ssl_object.context = other
    assert server.context is other
    server.close_unclean()
    client.close_unclean()


async def test_pending_counts_what_is_decrypted(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server:
        await client.send_all(b"0123456789")
        assert await server.receive_some(1) == b"0"
        assert server.pending() == 9
        await server.send_eof()  # which reads and keeps what has come
        assert server.pending() == 9
        assert await server.receive_some(4) == b"1234"
        assert server.pending() == 5
        assert await server.receive_some() == b"56789"
        assert server.pending() == 0


async def test_pending_counts_what_was_put_back(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server:
        await client.send_all(b"0123456789")
        with pytest.raises(trio.BrokenResourceError, match="needs its end"):
            await server.unwrap()
        assert server.pending() == 10


async def test_another_context_presents_its_certificate(contexts: Contexts, tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    other = contexts_of(made.ca, made.certificate, made.key)
    client, server = await socket_streams()
    acceptor = TlsStream(server, contexts.server, server_side=True)
    acceptor.context = other.server
    assert acceptor.context is other.server
    connector = TlsStream(client, other.client, server_hostname="localhost")
    async with connector, acceptor, trio.open_nursery() as nursery:
        nursery.start_soon(acceptor.do_handshake)
        await connector.do_handshake()


async def test_a_clients_certificate_after_the_handshake(contexts: Contexts) -> None:
    only = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    only.server.verify_mode = ssl.CERT_REQUIRED
    only.server.load_verify_locations(contexts.ca)
    only.server.post_handshake_auth = True
    only.client.post_handshake_auth = True
    only.client.load_cert_chain(contexts.certificate, contexts.key)
    client, server = tls_over(*await socket_streams(), only)
    with pytest.raises(trio.NeedHandshakeError):
        server.verify_client_post_handshake()
    async with client, server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        with pytest.raises(ssl.SSLError):
            client.verify_client_post_handshake()
        assert server.getpeercert() is None
        server.verify_client_post_handshake()
        await server.send_all(b"who are you?")
        assert await client.receive_some() == b"who are you?"
        await client.send_all(b"me")
        assert await server.receive_some() == b"me"
        assert ("DNS", "localhost") in server.getpeercert()["subjectAltName"]


# Names


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("localhost.", "localhost"),
        (b"localhost.", "localhost"),
        ("fa\u00df.de.", "xn--fa-hia.de"),
        ("fa\u00df.de\u3002", "xn--fa-hia.de"),
        ("::1", "::1"),
        ("fe80::1%lo", "fe80::1"),
        ("fe80::1%25.5", "fe80::1"),
        ("fe80::1%eth0.", "fe80::1"),
        ("100%.example", "100%.example"),
    ],
)
def test_the_name_that_a_certificate_must_have(host: str | bytes, name: str) -> None:
    assert reference_name(host) == name


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """Contexts for a server that is localhost and fe80::1."""
    with pytest.MonkeyPatch.context() as patch:
        address = x509.IPAddress(ipaddress.ip_address("fe80::1"))
        patch.setattr(certificates, "_subject_names", lambda: [x509.DNSName("localhost"), address])
        made = make_certificate(tmp_path_factory.mktemp("named"))
    return contexts_of(made.ca, made.certificate, made.key)


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("localhost.", True),
        ("fe80::1%lo", True),
        ("other.", False),
        ("fe80::2%lo", False),
        ("fe80::1%lo.example", True),
        ("localhost%lo", False),
    ],
)
async def test_it_is_verified(named: Contexts, host: str, fits: bool) -> None:
    client, server = await socket_streams()
    connector = TlsStream(client, named.client, server_hostname=host)
    acceptor = TlsStream(server, named.server, server_side=True)

    async def accept() -> None:
        with nullcontext() if fits else pytest.raises(trio.BrokenResourceError, match="TLS failed"):
            await acceptor.do_handshake()
            await acceptor.receive_some()

    async with acceptor, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        async with connector:
            with (
                nullcontext()
                if fits
                else pytest.raises(trio.BrokenResourceError, match="CERTIFICATE_VERIFY_FAILED")
            ):
                await connector.do_handshake()


@pytest.mark.parametrize("host", ["localhost.", "fe80::1%lo"])
def test_what_is_connected_to_is_the_whole_name(
    named: Contexts, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tcp_pair()
    asked: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float | None) -> socket.socket:
        asked.append(address)
        return ours

    monkeypatch.setattr(socket, "create_connection", connect)
    peer = Peer(theirs, named, server_side=True)
    thread = Thread(target=peer.handshake)
    thread.start()
    with blocking.open_tls_over_tcp_stream(host, 443, ssl_context=named.client) as stream:
        stream.do_handshake()
    thread.join()
    theirs.close()
    assert asked == [(host, 443)]


# What can't be had twice


async def test_no_copies(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = SocketListener(sock)
        accept = listener.start_accept()
        for owner in (
            client,
            client.transport_stream,
            listener,
            TlsListener(listener, contexts.server),
            accept,
        ):
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match=f"copy or pickle a {type(owner).__name__}"):
                    make(owner)
        accept.cancel()
        del owner
        await listener.aclose()
    async with client, server:
        await client.send_all(b"whole")
        assert await server.receive_some() == b"whole"


def test_no_copies_of_blocking_streams(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with theirs, blocking.SocketStream(ours) as stream:
        with pytest.raises(TypeError, match="copy or pickle a SocketStream"):
            copy.copy(stream)
        tls = blocking.TlsStream(stream, contexts.server, server_side=True)
        with tls, pytest.raises(TypeError, match="copy or pickle a TlsStream"):
            copy.copy(tls)


# Options of sockets


async def test_an_option_without_a_value() -> None:
    left, right = await socket_streams()
    async with left, right:
        left.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        assert left.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        # An empty value: what the kernel makes of it shows that it got the length.
        with pytest.raises(OSError, match="Invalid argument"):
            left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 0)
        with pytest.raises(OSError, match="Bad address"):
            left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4)
        with pytest.raises(TypeError):
            left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, 4)
        with pytest.raises(TypeError):
            left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None)


async def test_the_ssl_object_is_that_of_the_sni_callback(contexts: Contexts) -> None:
    asked_for: dict[ssl.SSLObject, str | None] = {}

    def note(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        asked_for[connection] = name

    own = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    own.server.sni_callback = note
    client, server = await handshaken(own)
    async with client, server:
        assert asked_for[server.ssl_object] == "localhost"
        assert server.ssl_object == server.ssl_object != client.ssl_object
