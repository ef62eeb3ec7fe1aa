"""What trio's users expect of a TLS stream, case by case.

The cases are those of trio's own tests of trio.SSLStream. Where TlsStream differs on purpose,
the test says so. The other end is a blocking socket of the stdlib's ssl module in a thread, the
recording peer of ``peer.py``, or another TlsStream.
"""

from __future__ import annotations

import array
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from trio.testing import assert_checkpoints, wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import (
    CloseOutcome,
    SocketListener,
    SocketStream,
    TlsListener,
    TlsStream,
    TruncationError,
    open_tls_over_tcp_listeners,
    open_tls_over_tcp_stream,
    serve_tls_over_tcp,
)
from ringtls._cli.certificates import make_certificate

from .conftest import Contexts, contexts_of
from .support.authority import pem_with_key
from .support.peer import Peer, meet
from .support.streams import (
    handshaken,
    socket_streams,
    tcp_pair,
    tls_over,
)
from .support.waiting import LIMIT

Stream = TlsStream[Any]
Call = Callable[[Stream], Awaitable[object]]
Step = Callable[[], Awaitable[object]]

#: Each method that waits, but for aclose.
CALLS: dict[str, Call] = {
    "do_handshake": lambda stream: stream.do_handshake(),
    "send_all": lambda stream: stream.send_all(b"x"),
    "wait": lambda stream: stream.wait_send_all_might_not_block(),
    "receive_some": lambda stream: stream.receive_some(),
    "send_eof": lambda stream: stream.send_eof(),
    "unwrap": lambda stream: stream.unwrap(),
}
SENDING = ["send_all", "wait", "send_eof"]

#: All that is known only after the handshake.
FACTS: dict[str, Callable[[Stream], object]] = {
    "version": lambda stream: stream.version(),
    "cipher": lambda stream: stream.cipher(),
    "getpeercert": lambda stream: stream.getpeercert(),
    "selected_alpn_protocol": lambda stream: stream.selected_alpn_protocol(),
    "get_channel_binding": lambda stream: stream.get_channel_binding(),
    "session_reused": lambda stream: stream.session_reused,
}

each_call = pytest.mark.parametrize("name", CALLS)
either_side = pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])


def echo(sock: socket.socket, context: ssl.SSLContext, errors: list[OSError]) -> None:
    """Send back what comes, until close_notify. Any other end is an error."""
    sock.settimeout(LIMIT)
    try:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
            while data := tls.recv(5000):
                tls.sendall(data)
            tls.unwrap()
    except OSError as error:
        errors.append(error)


@asynccontextmanager
async def echo_server(
    context: ssl.SSLContext,
) -> AsyncIterator[tuple[SocketStream, list[OSError]]]:
    """A connection to an echo server in a thread, and what went wrong there."""
    ours, theirs = tcp_pair()
    errors: list[OSError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, echo, theirs, context, errors)
        yield SocketStream(ours), errors


async def at_once(*steps: Step) -> None:
    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(step)


async def exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        assert piece
        data += piece
    return data


async def fill(stream: Stream) -> None:
    """Have more accepted than the kernel and an idle peer take."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(8 << 20))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def refused(
    error: type[trio.BrokenResourceError | trio.ClosedResourceError], step: Step
) -> None:
    with pytest.raises(error):
        await step()


# Connections to the stdlib's TLS sockets


async def test_a_client_of_a_blocking_server(versioned_contexts: Contexts) -> None:
    async with echo_server(versioned_contexts.server) as (transport, errors):
        stream = TlsStream(transport, versioned_contexts.client, server_hostname="localhost")
        async with stream as entered:
            assert entered is stream
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
    assert errors == []
    assert stream.close_outcome is CloseOutcome.CLEAN


async def test_a_server_of_a_blocking_client(versioned_contexts: Contexts) -> None:
    ours, theirs = tcp_pair()

    def talk() -> None:
        theirs.settimeout(LIMIT)
        with versioned_contexts.client.wrap_socket(
            theirs, server_hostname="localhost", suppress_ragged_eofs=False
        ) as tls:
            tls.sendall(b"x")
            assert tls.recv(1) == b"y"
            tls.sendall(b"z")
            tls.unwrap()  # returns when our close_notify has come

    stream = TlsStream(SocketStream(ours), versioned_contexts.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, talk)
        async with stream:
            assert await stream.receive_some(1) == b"x"
            await stream.send_all(b"y")
            assert await stream.receive_some(1) == b"z"
            assert await stream.receive_some(1) == b""


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_server_that_can_not_be_trusted(versioned_contexts: Contexts, wrong: str) -> None:
    context = versioned_contexts.client
    if wrong == "authority":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = (
            versioned_contexts.client.minimum_version
        )
    name = "localhost" if wrong == "authority" else "elsewhere.example"
    async with echo_server(versioned_contexts.server) as (transport, errors):
        stream = TlsStream(transport, context, server_hostname=name)
        async with stream:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.send_all(b"must not be sent")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    assert isinstance(errors[0], ssl.SSLError)
    assert "ALERT" in str(errors[0]).upper()


async def test_random_sizes_in_both_directions_at_once(versioned_contexts: Contexts) -> None:
    rng = random.Random(7)
    data = rng.randbytes(1_500_000)

    async def send() -> None:
        start = 0
        while start < len(data):
            size = rng.choice([0, 1, 100, 16384, 16385, rng.randrange(300_000)])
            await stream.send_all(data[start : start + size])
            start += size

    async def receive() -> None:
        sizes = random.Random(8)
        received = bytearray()
        while len(received) < len(data):
            received += await stream.receive_some(sizes.choice([None, 1, 1000, 70_000]))
        assert received == data

    async with echo_server(versioned_contexts.server) as (transport, errors):
        stream = TlsStream(transport, versioned_contexts.client, server_hostname="localhost")
        async with stream:
            await at_once(send, receive, stream.do_handshake, stream.do_handshake)
    assert errors == []


async def test_async_for_ends_with_the_peers_close_notify(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)

    async def send() -> None:
        async with client:
            for _ in range(20):
                await client.send_all(bytes(1000))

    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert sum([len(data) async for data in server]) == 20_000


async def test_async_for_raises_for_an_end_without_close_notify(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    await in_thread(peer.send, b"cut")
    peer.sock.shutdown(socket.SHUT_WR)
    received = []
    async with stream:
        with pytest.raises(TruncationError):
            async for data in stream:
                received.append(data)
    assert received == [b"cut"]
    assert (await in_thread(peer.end)).is_clean


# What can be asked


async def test_attributes_tell_what_the_stream_was_made_of(contexts: Contexts) -> None:
    ours, other = await socket_streams()
    stream = TlsStream(ours, contexts.client, server_hostname=b"localhost")
    assert stream.transport_stream is ours
    assert stream.context is contexts.client
    assert stream.server_side is False
    assert stream.server_hostname == "localhost"
    assert stream.session is None
    assert stream.close_outcome is None
    assert stream.shutdown_timeout == 5.0
    with pytest.raises(AttributeError):
        stream.no_such_attribute  # type: ignore[attr-defined]  # noqa: B018
    await stream.aclose()
    assert stream.transport_stream is ours
    await other.aclose()


@pytest.mark.parametrize("name", ["server_side", "server_hostname", "close_outcome"])
async def test_attributes_are_read_only(contexts: Contexts, name: str) -> None:
    stream, peer = await meet(contexts, handshake=False)
    with pytest.raises(AttributeError):
        setattr(stream, name, None)
    await stream.aclose()
    peer.sock.close()


@pytest.mark.parametrize("name", FACTS)
@either_side
async def test_before_the_handshake_nothing_is_known(
    contexts: Contexts, name: str, server_side: bool
) -> None:
    stream, peer = await meet(contexts, handshake=False, server_side=server_side)
    with pytest.raises(trio.NeedHandshakeError, match=name):
        FACTS[name](stream)
    peer.sock.close()
    with pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    with pytest.raises(trio.NeedHandshakeError):
        FACTS[name](stream)
    await stream.aclose()


@pytest.mark.parametrize("name", FACTS)
async def test_after_the_end_the_facts_stay_known(versioned_contexts: Contexts, name: str) -> None:
    client, server = await handshaken(versioned_contexts)
    before = FACTS[name](client)
    await at_once(client.aclose, server.aclose)
    assert FACTS[name](client) == before


async def test_alpn_is_none_where_nobody_asks(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        assert client.selected_alpn_protocol() is None
        assert server.selected_alpn_protocol() is None


@pytest.mark.parametrize(
    ("offered", "supported", "selected"),
    [
        (["h2", "http/1.1"], ["http/1.1", "h2"], "http/1.1"),  # the server's order counts
        (["h2"], ["http/1.1"], None),
        (["h2"], [], None),
    ],
)
async def test_alpn_gives_both_ends_the_same(
    versioned_contexts: Contexts, offered: list[str], supported: list[str], selected: str | None
) -> None:
    versioned_contexts.client.set_alpn_protocols(offered)
    if supported:
        versioned_contexts.server.set_alpn_protocols(supported)
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        assert client.selected_alpn_protocol() == selected
        assert server.selected_alpn_protocol() == selected


async def test_channel_binding_is_the_same_at_both_ends(contexts: Contexts) -> None:
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_2)
    client, server = await handshaken(contexts)
    others = await handshaken(contexts)
    async with client, server, others[0], others[1]:
        binding = client.get_channel_binding()
        assert binding
        assert server.get_channel_binding("tls-unique") == binding
        assert others[0].get_channel_binding() != binding
        with pytest.raises(ValueError, match="no-such-type"):
            client.get_channel_binding("no-such-type")


async def test_the_certificate_of_a_server(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        in_der = ssl.PEM_cert_to_DER_cert(versioned_contexts.certificate.read_text())
        assert client.getpeercert(binary_form=True) == in_der
        assert ("DNS", "localhost") in client.getpeercert()["subjectAltName"]
        assert server.getpeercert() is None
        assert server.getpeercert(True) is None


@pytest.fixture(scope="module")
def client_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's certificate that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "some client")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("client") / "client.pem"
    path.write_bytes(pem_with_key(certificate, key))
    return path


async def test_the_certificate_of_a_client(
    versioned_contexts: Contexts, client_certificate: Path
) -> None:
    versioned_contexts.client.load_cert_chain(client_certificate)
    versioned_contexts.server.verify_mode = ssl.CERT_REQUIRED
    versioned_contexts.server.load_verify_locations(client_certificate)
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        assert server.getpeercert()["subject"] == ((("commonName", "some client"),),)
        await client.send_all(b"let in")
        assert await server.receive_some() == b"let in"


async def test_a_client_without_the_certificate_it_needs(versioned_contexts: Contexts) -> None:
    """In TLS 1.3 the client learns of it only when it reads."""
    versioned_contexts.server.verify_mode = ssl.CERT_REQUIRED
    client, server = tls_over(*await socket_streams(), versioned_contexts)

    async def connect() -> None:
        with pytest.raises(trio.BrokenResourceError, match=r"(?i)alert|handshake failure"):
            await client.receive_some()
        await client.aclose()

    async def accept() -> None:
        with pytest.raises(trio.BrokenResourceError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            await server.receive_some()
        await server.aclose()

    await at_once(connect, accept)
    assert server.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    assert client.close_outcome is not CloseOutcome.CLEAN


async def test_no_version_in_common_is_an_error_at_both_ends(contexts: Contexts) -> None:
    old, new = (contexts.of_version(v) for v in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
    client, server = tls_over(*await socket_streams(), replace(old, server=new.server))

    async def fail(stream: Stream, reason: str) -> None:
        with pytest.raises(trio.BrokenResourceError, match=reason) as caught:
            async with stream:
                await stream.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE

    await at_once(
        partial(fail, client, "ALERT_PROTOCOL_VERSION"),
        partial(fail, server, "UNSUPPORTED_PROTOCOL"),
    )


@each_call
async def test_a_failed_handshake_stays_an_error(contexts: Contexts, name: str) -> None:
    stream, peer = await meet(contexts, handshake=False)
    peer.sock.sendall(b"this is not TLS\r\n")
    async with stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await CALLS[name](stream)
            assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    peer.sock.close()


# Sessions and SNI


async def read_session(contexts: Contexts, words: bytes) -> ssl.SSLSession:
    """The session of a connection on which the server says this and ends."""
    client, server = await handshaken(contexts)
    async with server:
        await server.send_all(words)
    async with client:
        assert await client.receive_some() == words
        if words:
            assert await client.receive_some() == b""
        assert client.session_reused is False
        assert client.session is not None
        return client.session


@pytest.mark.parametrize("words", [b"hello", b""], ids=["with data", "with nothing but the end"])
async def test_a_session_is_resumed(versioned_contexts: Contexts, words: bytes) -> None:
    session = await read_session(versioned_contexts, words)
    client, server = tls_over(*await socket_streams(), versioned_contexts)
    client.session = session
    async with client, server:
        await at_once(client.do_handshake, server.do_handshake)
        assert client.session_reused is True
        assert server.session_reused is True
        await client.send_all(b"again")
        assert await server.receive_some() == b"again"


async def test_a_session_must_be_set_before_the_handshake(versioned_contexts: Contexts) -> None:
    session = await read_session(versioned_contexts, b"hello")
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        with pytest.raises(ValueError, match="handshake"):
            client.session = session


async def test_an_sni_callback_may_switch_the_context(
    versioned_contexts: Contexts, tmp_path: Path
) -> None:
    made = make_certificate(tmp_path)
    other = contexts_of(made.ca, made.certificate, made.key).of_version(
        versioned_contexts.server.minimum_version
    )
    names: list[str | None] = []

    def switch(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        names.append(name)
        connection.context = other.server

    versioned_contexts.server.sni_callback = switch
    client, server = await handshaken(replace(versioned_contexts, client=other.client))
    async with client, server:
        assert names == ["localhost"]
        assert server.context is other.server
        in_der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
        assert client.getpeercert(binary_form=True) == in_der


async def test_an_sni_callback_may_refuse(versioned_contexts: Contexts) -> None:
    versioned_contexts.server.sni_callback = lambda *_: (
        ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    )
    client, server = tls_over(*await socket_streams(), versioned_contexts)

    async def fail(stream: Stream, reason: str) -> None:
        with pytest.raises(trio.BrokenResourceError, match=reason):
            async with stream:
                await stream.do_handshake()

    await at_once(
        partial(fail, client, "(?i)unrecognized_name"), partial(fail, server, "CALLBACK_FAILED")
    )


# One task at a time

CONFLICTS = [
    *((first, second) for first in SENDING for second in SENDING if first <= second),
    ("receive_some", "receive_some"),
    *(("unwrap", name) for name in [*SENDING, "receive_some", "unwrap"]),
]


async def called_at_once(stream: Stream, *names: str) -> list[str]:
    """Make calls at once, against a peer that says nothing; which of them were refused?"""
    busy = []

    async def call(name: str) -> None:
        try:
            await CALLS[name](stream)
        except trio.BusyResourceError as error:
            assert "another task" in str(error)
            busy.append(name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(call, name)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return busy


async def still_works(stream: Stream, peer: Peer) -> None:
    """Nothing of what went before was sent, received or is still going on."""
    async with stream:
        await at_once(partial(in_thread, peer.handshake), stream.do_handshake)
        await stream.send_all(b"to the peer")
        assert await in_thread(peer.receive, 11) == b"to the peer"
        await in_thread(peer.send, b"from the peer")
        assert await exactly(stream, 13) == b"from the peer"
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b""


@pytest.mark.parametrize(("first", "second"), CONFLICTS)
async def test_of_two_calls_that_conflict_one_is_refused(
    contexts: Contexts, first: str, second: str
) -> None:
    stream, peer = await meet(contexts, handshake=False)
    assert len(await called_at_once(stream, first, second)) == 1
    await still_works(stream, peer)


@pytest.mark.parametrize("name", SENDING)
async def test_one_task_may_send_while_another_receives(contexts: Contexts, name: str) -> None:
    stream, peer = await meet(contexts, handshake=False)
    assert await called_at_once(stream, name, "receive_some") == []
    await still_works(stream, peer)


@each_call
async def test_a_handshake_conflicts_with_nothing(contexts: Contexts, name: str) -> None:
    stream, peer = await meet(contexts, handshake=False, server_side=False)
    assert await called_at_once(stream, name, "do_handshake", "do_handshake") == []
    await still_works(stream, peer)


@pytest.mark.parametrize("name", ["send_all", "wait", "send_eof", "unwrap"])
async def test_a_sender_that_is_blocked_is_in_the_way(contexts: Contexts, name: str) -> None:
    stream, peer = await meet(contexts, buffer_size=16384)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(4 << 20))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is sending"):
            await CALLS[name](stream)
        nursery.cancel_scope.cancel()
    stream.close_unclean()
    peer.sock.close()


# Checkpoints, and calls that are cancelled before they start


async def test_each_call_is_a_checkpoint(versioned_contexts: Contexts) -> None:
    async with echo_server(versioned_contexts.server) as (transport, errors):
        stream = TlsStream(transport, versioned_contexts.client, server_hostname="localhost")
        for name in ("wait", "do_handshake", "do_handshake", "wait", "wait"):
            with assert_checkpoints():
                await CALLS[name](stream)
        for data in (b"", b"", b"xxx", bytearray(), memoryview(b"y")):
            with assert_checkpoints():
                await stream.send_all(data)
        for _ in range(4):  # most of them are answered with what is there
            with assert_checkpoints():
                assert await stream.receive_some(1) in (b"x", b"y")
        for name in ("send_eof", "send_eof", "receive_some", "receive_some"):
            with assert_checkpoints():
                await CALLS[name](stream)
        with assert_checkpoints():
            unwrapped, _ = await stream.unwrap()
        await unwrapped.aclose()
    assert errors == []


@pytest.mark.parametrize("handshake", [False, True])
async def test_closing_lets_others_run(contexts: Contexts, handshake: bool) -> None:
    """A checkpoint for the scheduler only, unlike trio's: a cancellation is kept for the next."""
    stream, peer = await meet(contexts, handshake=handshake)
    for _ in range(3):
        ran = trio.Event()
        async with trio.open_nursery() as nursery:

            async def run(event: trio.Event) -> None:
                event.set()

            nursery.start_soon(run, ran)
            await stream.aclose()
            await stream.aclose()  # tasks of one tick run in any order
            assert ran.is_set()
    peer.sock.close()


@each_call
@pytest.mark.parametrize("handshake", [False, True])
async def test_a_call_in_a_cancelled_scope_does_nothing(
    contexts: Contexts, name: str, handshake: bool
) -> None:
    """In trio a cancelled send or handshake breaks the stream."""
    stream, peer = await meet(contexts, handshake=handshake)
    if handshake:
        await in_thread(peer.send, b"early ")
        assert await stream.receive_some(1) == b"e"
    with trio.CancelScope() as scope:
        scope.cancel()
        await CALLS[name](stream)
    assert scope.cancelled_caught
    if not handshake:
        await still_works(stream, peer)
        return
    async with stream:
        assert await exactly(stream, 5) == b"arly "
        await stream.send_all(b"y")
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"y"


async def test_a_cancelled_receive_leaves_the_stream_whole(versioned_contexts: Contexts) -> None:
    """In trio too, but here the handshake is part of it."""
    client, server = tls_over(*await socket_streams(), versioned_contexts)
    async with client, server:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.receive_some)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        await at_once(partial(client.send_all, b"x"), server.do_handshake)
        assert await server.receive_some() == b"x"


# What is sent


async def test_what_is_empty_is_no_end(versioned_contexts: Contexts) -> None:
    async with echo_server(versioned_contexts.server) as (transport, errors):
        stream = TlsStream(transport, versioned_contexts.client, server_hostname="localhost")
        async with stream:
            for empty in (b"", bytearray(), memoryview(b"")):
                await stream.send_all(empty)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
    assert errors == []


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"some bytes"),
        memoryview(b"..some bytes.")[2:12],
        memoryview(array.array("I", range(100_000))),
        memoryview(array.array("d", [0.5, 1.5])),
        memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
    ],
    ids=["bytearray", "slice", "unsigned", "double", "three dimensions"],
)
async def test_any_buffer_is_sent_as_its_bytes(
    contexts: Contexts, data: bytearray | memoryview
) -> None:
    client, server = await handshaken(contexts)
    expected = bytes(data)

    async def receive() -> None:
        assert await exactly(server, len(expected)) == expected

    async with client, server:
        await at_once(receive, partial(client.send_all, data))


async def test_a_buffer_is_the_callers_again_when_send_all_returns(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=16384)
    data = bytearray(b"a" * 200_000)
    async with trio.open_nursery() as nursery:

        async def reuse() -> None:
            async with stream:
                await stream.send_all(data)  # much of it is not sent yet
                data[:] = b"b" * len(data)
                data.clear()

        nursery.start_soon(reuse)
        await wait_all_tasks_blocked()
        end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"a" * 200_000


@pytest.mark.parametrize("data", ["text", 5, None, memoryview(b"abcd")[::2]])
async def test_what_is_no_plain_buffer_is_refused(contexts: Contexts, data: Any) -> None:
    stream, peer = await meet(contexts)
    with pytest.raises(TypeError):
        await stream.send_all(data)
    async with stream:
        await stream.send_all(b"good")
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"good"


async def test_what_is_no_plain_buffer_is_refused_before_the_handshake(contexts: Contexts) -> None:
    data: Any = None
    left, right = trio.testing.memory_stream_pair()
    await right.send_eof()
    async with TlsStream(left, contexts.client, server_hostname="localhost") as stream:
        with pytest.raises(TypeError):
            await stream.send_all(data)
    assert await right.receive_some() == b""


# wait_send_all_might_not_block


async def test_wait_does_not_shake_hands(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, handshake=False, server_side=False)
    await stream.wait_send_all_might_not_block()
    await stream.aclose()
    assert await in_thread(peer.sock.recv, 100) == b""
    peer.sock.close()


async def test_wait_returns_when_the_peer_has_read(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=16384)
    await fill(stream)
    done = trio.Event()

    async def wait() -> None:
        await stream.wait_send_all_might_not_block()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        nursery.start_soon(in_thread, peer.end)
        await done.wait()
        await stream.send_all(b"and now there is room")
        await stream.aclose()


async def test_wait_may_be_cancelled_and_called_again(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=16384)
    await fill(stream)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_send_all_might_not_block)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.end)
        await stream.wait_send_all_might_not_block()
        await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN


async def test_a_reset_wakes_who_waits_for_room(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=16384)
    async with trio.open_nursery() as nursery:
        sending = partial(stream.send_all, bytes(8 << 20))
        nursery.start_soon(refused, trio.BrokenResourceError, sending)
        await wait_all_tasks_blocked()
        peer.vanish()
    for name in SENDING:
        with pytest.raises(trio.BrokenResourceError):
            await CALLS[name](stream)
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.PEER_RESET


async def test_a_reset_wakes_who_only_waits(contexts: Contexts) -> None:
    """It may return, if a part went out at last; then sending tells."""
    stream, peer = await meet(contexts, buffer_size=16384)
    await fill(stream)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.wait_send_all_might_not_block()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        peer.vanish()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(bytes(8 << 20))
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("name", ["send_all", "wait"])
async def test_nothing_more_is_sent_after_send_eof(contexts: Contexts, name: str) -> None:
    client, server = await handshaken(contexts)
    async with client, server:
        await client.send_eof()
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await CALLS[name](client)


# The end


@each_call
@pytest.mark.parametrize("handshake", [False, True])
async def test_a_closed_stream_refuses_each_call(
    contexts: Contexts, name: str, handshake: bool
) -> None:
    stream, peer = await meet(contexts, handshake=handshake)
    await stream.aclose()
    for _ in range(2):
        with pytest.raises(trio.ClosedResourceError):
            await CALLS[name](stream)
    await stream.aclose()
    peer.sock.close()


@pytest.mark.parametrize("ours_compatible", [False, True])
@pytest.mark.parametrize("theirs_compatible", [False, True])
async def test_close_notify_is_sent_whatever_https_compatible_says(
    versioned_contexts: Contexts, ours_compatible: bool, theirs_compatible: bool
) -> None:
    """In trio a side that is https_compatible sends none, and a strict peer sees an error."""
    left, right = await socket_streams()
    client = TlsStream(
        left,
        versioned_contexts.client,
        server_hostname="localhost",
        https_compatible=ours_compatible,
    )
    server = TlsStream(
        right, versioned_contexts.server, server_side=True, https_compatible=theirs_compatible
    )
    await at_once(client.do_handshake, server.do_handshake)
    await client.aclose()
    for _ in range(2):
        assert await server.receive_some() == b""
    await server.aclose()
    assert client.close_outcome is server.close_outcome is CloseOutcome.CLEAN


async def test_a_forceful_close_is_graceful_too(versioned_contexts: Contexts) -> None:
    """In trio the peer of trio.aclose_forcefully sees a broken stream."""
    client, server = await handshaken(versioned_contexts)
    await client.send_all(b"last words")
    await trio.aclose_forcefully(client)
    assert await exactly(server, 10) == b"last words"
    assert await server.receive_some() == b""
    await trio.aclose_forcefully(server)
    assert client.close_outcome is server.close_outcome is CloseOutcome.CLEAN


async def test_closing_before_the_handshake_does_not_make_one(contexts: Contexts) -> None:
    """trio's aclose shakes hands first, so its peer reads an end; ours sends FIN only."""
    client, server = tls_over(*await socket_streams(), contexts)
    await client.aclose()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await server.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLEOFError)
    await server.aclose()
    assert client.close_outcome is server.close_outcome is CloseOutcome.BEFORE_HANDSHAKE


async def test_closing_does_not_fail_for_a_server_that_was_never_trusted(
    contexts: Contexts,
) -> None:
    """trio's aclose raises here, because of its handshake; ours never saw the certificate."""
    async with echo_server(contexts.server) as (transport, errors):
        stream = TlsStream(
            transport, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_hostname="localhost"
        )
        await stream.aclose()
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    assert len(errors) == 1


@pytest.mark.parametrize("name", ["do_handshake", "send_all", "receive_some", "send_eof", "unwrap"])
@either_side
async def test_closing_wakes_who_shakes_hands(
    contexts: Contexts, name: str, server_side: bool
) -> None:
    stream, peer = await meet(contexts, handshake=False, server_side=server_side)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, trio.ClosedResourceError, partial(CALLS[name], stream))
        await wait_all_tasks_blocked()
        await stream.aclose()
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    peer.sock.close()


async def test_closing_wakes_who_unwraps(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, trio.ClosedResourceError, stream.unwrap)
        await wait_all_tasks_blocked()
        await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert (await in_thread(peer.end)).is_clean  # and close_notify went out once


@either_side
@pytest.mark.parametrize("read_it", [False, True], ids=["unread", "read"])
async def test_closing_after_the_peer_has(
    versioned_contexts: Contexts, server_side: bool, read_it: bool
) -> None:
    stream, peer = await meet(versioned_contexts, server_side=server_side)
    await in_thread(peer.send_close_notify)
    peer.sock.shutdown(socket.SHUT_WR)
    if read_it:
        assert await stream.receive_some() == b""
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert (await in_thread(peer.end)).is_clean


async def test_closing_after_a_reset_was_seen(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    peer.vanish()
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.PEER_RESET


@pytest.mark.parametrize("unread", [0, 100_000])
async def test_closing_both_ends_at_once(versioned_contexts: Contexts, unread: int) -> None:
    streams = await handshaken(versioned_contexts)
    await at_once(*(partial(stream.send_all, bytes(unread)) for stream in streams))
    await at_once(*(stream.aclose for stream in streams))
    assert [stream.close_outcome for stream in streams] == [CloseOutcome.CLEAN] * 2


async def test_the_peers_end_ends_one_direction_only(versioned_contexts: Contexts) -> None:
    stream, peer = await meet(versioned_contexts)
    await in_thread(peer.send_close_notify)
    async with stream:
        assert await stream.receive_some() == b""
        await stream.wait_send_all_might_not_block()
        await stream.send_all(b"an answer all the same")
        assert await stream.receive_some() == b""
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"an answer all the same"


async def test_the_end_is_read_after_all_data(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    await client.send_all(bytes(50_000))
    await client.aclose()
    async with server:
        assert await exactly(server, 50_000) == bytes(50_000)
        assert await server.receive_some(1) == b""


# unwrap


def end_and_say(peer: Peer, words: bytes) -> None:
    """close_notify and plain text in one segment."""
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    peer.send_close_notify()
    peer.sock.sendall(words)
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


async def plain_text_goes_both_ways(transport: SocketStream, peer: Peer) -> None:
    async with transport:
        await transport.send_all(b"to the peer")
        assert await in_thread(peer.sock.recv, 11, socket.MSG_WAITALL) == b"to the peer"
        peer.sock.sendall(b"from the peer")
        assert await exactly(transport, 13) == b"from the peer"
    peer.sock.close()


def read_close_notify(peer: Peer) -> None:
    while True:
        try:
            assert peer.ssl.read(1) == b""
        except ssl.SSLWantReadError:
            peer._feed()
        except ssl.SSLZeroReturnError:  # what it is if the peer's own is sent
            return
        else:
            return


@either_side
async def test_unwrap_after_the_peer_did(versioned_contexts: Contexts, server_side: bool) -> None:
    stream, peer = await meet(versioned_contexts, server_side=server_side)
    below = stream.transport_stream
    await in_thread(end_and_say, peer, b"trailing")
    assert await stream.receive_some() == b""
    assert stream.transport_stream is below
    transport, trailing = await stream.unwrap()
    assert transport is below
    assert trailing == b"trailing"
    await in_thread(read_close_notify, peer)
    await plain_text_goes_both_ways(transport, peer)


@either_side
async def test_unwrap_before_the_peer_does(versioned_contexts: Contexts, server_side: bool) -> None:
    stream, peer = await meet(versioned_contexts, server_side=server_side)
    answered = trio.Event()

    async def answer() -> None:
        await in_thread(read_close_notify, peer)
        await in_thread(end_and_say, peer, b"trailing")
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        transport, trailing = await stream.unwrap()
        await answered.wait()
    assert trailing == b"trailing"
    await plain_text_goes_both_ways(transport, peer)


@each_call
async def test_an_unwrapped_stream_is_closed_and_its_transport_is_not(
    contexts: Contexts, name: str
) -> None:
    stream, peer = await meet(contexts)
    await in_thread(end_and_say, peer, b"")
    transport, _ = await stream.unwrap()
    with pytest.raises(trio.ClosedResourceError):
        await CALLS[name](stream)
    await stream.aclose()
    stream.close_unclean()
    await in_thread(read_close_notify, peer)
    await plain_text_goes_both_ways(transport, peer)


async def test_a_cancelled_unwrap_goes_on_later(versioned_contexts: Contexts) -> None:
    stream, peer = await meet(versioned_contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.unwrap)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"after our end")
    await in_thread(read_close_notify, peer)
    await in_thread(end_and_say, peer, b"trailing")
    transport, trailing = await stream.unwrap()
    assert trailing == b"trailing"
    await plain_text_goes_both_ways(transport, peer)


async def test_unwrap_needs_the_peers_close_notify(versioned_contexts: Contexts) -> None:
    stream, peer = await meet(versioned_contexts)
    peer.sock.shutdown(socket.SHUT_WR)
    async with stream:
        with pytest.raises(TruncationError):
            await stream.unwrap()
        assert stream.transport_stream is not None
    assert (await in_thread(peer.end)).is_clean


# Transports that fail


async def test_a_transport_that_can_not_send(contexts: Contexts) -> None:
    """The send that meets the error has returned; all later ones raise it."""
    left, right = trio.testing.memory_stream_pair()
    client = TlsStream(left, contexts.client, server_hostname="localhost")
    server = TlsStream(right, contexts.server, server_side=True)
    await at_once(client.do_handshake, server.do_handshake)

    async def fail() -> None:
        raise trio.BrokenResourceError("made up")

    left.send_stream.send_all_hook = fail
    await client.send_all(b"x")
    await wait_all_tasks_blocked()
    for name in SENDING:
        with pytest.raises(trio.BrokenResourceError):
            await CALLS[name](client)
    await client.aclose()
    assert client.close_outcome is CloseOutcome.PEER_RESET
    await server.aclose()


# Listeners, and opening connections


def port_of(listener: TlsListener[Any]) -> int:
    port: int = listener.transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
    return port


async def test_a_listener_hands_its_options_on(contexts: Contexts) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    listener = TlsListener(
        SocketListener(sock), contexts.server, https_compatible=True, shutdown_timeout=1.5
    )
    client = socket.create_connection(sock.getsockname())
    peer = Peer(client, contexts, server_side=False)
    async with listener, await listener.accept() as stream:
        assert stream.server_side
        assert stream.context is contexts.server
        assert stream.shutdown_timeout == 1.5
        await at_once(partial(in_thread, peer.handshake), stream.do_handshake)
        client.shutdown(socket.SHUT_WR)
        assert await stream.receive_some() == b""
    assert (await in_thread(peer.end)).is_clean


async def test_a_closed_listener_leaves_its_streams_alone(contexts: Contexts) -> None:
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    client = await open_tls_over_tcp_stream(
        "localhost", port_of(listener), ssl_context=contexts.client
    )
    server = await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, trio.ClosedResourceError, listener.accept)
        await wait_all_tasks_blocked()
        await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    await listener.aclose()
    async with client, server:
        await at_once(client.do_handshake, server.do_handshake)
        await client.send_all(b"still here")
        assert await exactly(server, 10) == b"still here"


async def test_who_does_not_shake_hands_holds_up_nobody(versioned_contexts: Contexts) -> None:
    async def serve(stream: Stream) -> None:
        with suppress(trio.BrokenResourceError):  # of the one that never shook hands
            await stream.send_all(b"welcome")

    async with trio.open_nursery() as nursery:
        serving = partial(serve_tls_over_tcp, host="127.0.0.1")
        [listener] = await nursery.start(serving, serve, 0, versioned_contexts.server)
        port = port_of(listener)
        with socket.create_connection(("127.0.0.1", port)):
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    client = await open_tls_over_tcp_stream(
                        b"localhost", port, ssl_context=versioned_contexts.client
                    )
                    assert client.server_hostname == "localhost"
                    await stack.enter_async_context(client)
                    assert await exactly(client, 7) == b"welcome"
                    assert await client.receive_some() == b""  # the handler has returned
            nursery.cancel_scope.cancel()


async def test_a_handler_that_raises_ends_its_connection_properly(contexts: Contexts) -> None:
    async def serve(stream: Stream) -> None:
        await stream.receive_some()
        raise KeyError("the handler")

    async def connect(port: int) -> None:
        client = await open_tls_over_tcp_stream("localhost", port, ssl_context=contexts.client)
        with trio.CancelScope(shield=True):
            async with client:
                await client.send_all(b"x")
                assert await client.receive_some() == b""

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            serving = partial(serve_tls_over_tcp, host="127.0.0.1")
            [listener] = await nursery.start(serving, serve, 0, contexts.server)
            nursery.start_soon(connect, port_of(listener))
    assert caught.group_contains(KeyError)
    assert not caught.group_contains(AssertionError)


async def test_handlers_may_run_in_another_nursery(contexts: Contexts) -> None:
    async def serve(stream: Stream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as handlers, trio.open_nursery() as server:
        serving = partial(serve_tls_over_tcp, host="127.0.0.1", handler_nursery=handlers)
        [listener] = await server.start(serving, serve, 0, contexts.server)
        client = await open_tls_over_tcp_stream(
            "localhost", port_of(listener), ssl_context=contexts.client
        )
        async with client:
            await client.do_handshake()
            server.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await client.send_all(b"served on")
                assert await exactly(client, 9) == b"served on"


async def test_the_default_context_trusts_no_one_by_itself(contexts: Contexts) -> None:
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    client = await open_tls_over_tcp_stream("localhost", port_of(listener), https_compatible=True)

    async def accept() -> None:
        async with await listener.accept() as server:
            await refused(trio.BrokenResourceError, server.do_handshake)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        with pytest.raises(trio.BrokenResourceError, match="CERTIFICATE_VERIFY_FAILED"):
            async with client:
                await client.do_handshake()
