"""C1: what lies unread, of whatever kind, never prevents the alert, nor loses what was accepted."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable

import pytest
import trio

from ringtls import CloseOutcome, SocketStream, TlsStream

from ..conftest import Contexts
from ..support.peer import MakeTransport, Meet, adapted_socket_stream
from ..support.streams import tcp_pair
from ..support.tlslite import TLS_1_2, TLS_1_3, ScriptedServer
from ..support.waiting import LIMIT

SIZE = 300_000

Say = Callable[[ScriptedServer], None]
CLOSE_NOTIFY = "alert 0"


class Story:
    """The server's thread: it says something that the client leaves unread, and reads on."""

    def __init__(self, sock: socket.socket, contexts: Contexts, version: tuple[int, int]) -> None:
        self._server = ScriptedServer(sock, contexts, version)
        self.seen: tuple[int, list[str]] | None = None
        self.said = threading.Event()

    def __call__(self, say: Say) -> None:
        self._server.handshake()
        self._server.send(b"x")
        say(self._server)
        self.said.set()
        self.seen = self._server.read_to_end()


async def has_come(stream: TlsStream, sock: socket.socket) -> None:
    """Wait until what the server has said is in this process, read by the ring or not."""
    while not stream._session.unread_input:
        with trio.move_on_after(0.01):
            await stream._transport.receive()


def client(make: MakeTransport, sock: socket.socket, contexts: Contexts) -> TlsStream:
    context = ssl.create_default_context(cafile=str(contexts.ca))
    return TlsStream(make(sock), context, server_hostname="localhost", shutdown_timeout=LIMIT)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [SocketStream, adapted_socket_stream], ids=["ring", "adapter"])
@pytest.mark.parametrize(
    ("version", "say"),
    [(TLS_1_2, ScriptedServer.ask_for_renegotiation), (TLS_1_3, ScriptedServer.send_half_a_ticket)],
    ids=["HelloRequest", "half a NewSessionTicket"],
)
async def test_c1_a_handshake_message_that_lies_unread(
    contexts: Contexts, make: MakeTransport, version: tuple[int, int], say: Say
) -> None:
    ours, theirs = tcp_pair()
    story = Story(theirs, contexts, version)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, story, say)
        stream = client(make, ours, contexts)
        async with stream:
            assert await stream.receive_some(1) == b"x"
            await trio.to_thread.run_sync(story.said.wait)
            await has_come(stream, ours)
            await stream.send_all(bytes(SIZE))
    theirs.close()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert story.seen == (SIZE, [CLOSE_NOTIFY, "FIN"])


async def test_c1_half_a_message_that_was_read(contexts: Contexts) -> None:
    """OpenSSL sends no alert then. What was accepted arrives all the same, then a reset."""
    ours, theirs = tcp_pair()
    story = Story(theirs, contexts, TLS_1_3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, story, ScriptedServer.send_half_a_ticket)
        stream = client(SocketStream, ours, contexts)
        async with stream:
            assert await stream.receive_some(1) == b"x"
            await stream.send_all(bytes(SIZE))
            await trio.to_thread.run_sync(story.said.wait)
            await has_come(stream, ours)
            assert stream._session.read(1) is None
    theirs.close()
    assert stream.close_outcome is CloseOutcome.DURING_RENEGOTIATION
    assert story.seen == (SIZE, ["RST"])


def asks_for_certificates(contexts: Contexts) -> Contexts:
    only = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    only.server.verify_mode = ssl.CERT_OPTIONAL
    only.server.post_handshake_auth = only.client.post_handshake_auth = True
    return only


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("way", ["aclose", "send_eof", "dropped"])
async def test_c1_a_request_for_a_certificate_that_was_not_sent_yet(
    contexts: Contexts, meet: Meet, way: str
) -> None:
    """Until it is written, OpenSSL sends no alert."""
    stream, peer = await meet(asks_for_certificates(contexts))
    await stream.send_all(b"all")
    stream.verify_client_post_handshake()
    if way == "dropped":
        with pytest.warns(ResourceWarning, match="unclosed stream"):
            del stream
        end = await trio.to_thread.run_sync(peer.end)
    else:
        async with stream:
            if way == "send_eof":
                await stream.send_eof()
        end = await trio.to_thread.run_sync(peer.end)
        assert stream.close_outcome is CloseOutcome.CLEAN
    assert end.is_clean
    assert end.data == b"all"


async def test_c12_no_request_for_a_certificate_after_the_end(
    contexts: Contexts, meet: Meet
) -> None:
    stream, peer = await meet(asks_for_certificates(contexts))
    async with stream:
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            stream.verify_client_post_handshake()
        await trio.to_thread.run_sync(peer.send, b"x")
        assert await stream.receive_some() == b"x"
    with pytest.raises(trio.ClosedResourceError):
        stream.verify_client_post_handshake()
    assert (await trio.to_thread.run_sync(peer.end)).is_clean
