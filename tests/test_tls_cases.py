"""The cases that trio tests its own TLS stream with, as far as the contracts agree.

Where ours differs on purpose, the test says so.
"""

from __future__ import annotations

import array
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import assert_checkpoints
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TlsStream, TruncationError

from .conftest import Contexts, contexts_of
from .peer import Transport, meet
from .streams import clog, handshaken, socket_streams, tls_over

Call = Callable[[TlsStream], Awaitable[object]]

SENDING: dict[str, Call] = {
    "send_all": lambda stream: stream.send_all(b"x"),
    "wait_send_all_might_not_block": lambda stream: stream.wait_send_all_might_not_block(),
    "send_eof": lambda stream: stream.send_eof(),
    "unwrap": lambda stream: stream.unwrap(),
}


@pytest.mark.parametrize("second", SENDING)
async def test_one_sender_at_a_time(contexts: Contexts, second: str) -> None:
    client, server = await handshaken(contexts, buffer_size=16384)
    client.shutdown_timeout = 0.1
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait_send_all_might_not_block)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await SENDING[second](client)
        nursery.cancel_scope.cancel()
    await client.aclose()
    await server.aclose()


async def test_a_busy_receiver_does_not_hold_up_a_sender(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        await server.send_all(b"y")


async def test_every_method_is_a_checkpoint(versioned_contexts: Contexts) -> None:
    client, server = tls_over(*await socket_streams(), versioned_contexts)

    async def shake_hands(stream: TlsStream) -> None:
        with assert_checkpoints():
            await stream.do_handshake()
        with assert_checkpoints():
            await stream.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands, client)
        nursery.start_soon(shake_hands, server)
    for data in (b"", b"x"):
        with assert_checkpoints():
            await client.send_all(data)
    with assert_checkpoints():
        await client.wait_send_all_might_not_block()
    with assert_checkpoints():
        await client.wait_sent()
    with assert_checkpoints():
        await server.receive_some()
    for _ in range(2):
        with assert_checkpoints():
            await client.send_eof()
    for _ in range(2):
        with assert_checkpoints():
            await server.receive_some()
    for stream in (client, server):
        for _ in range(2):
            with assert_checkpoints():
                await stream.aclose()


async def test_what_can_be_sent(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    wide = memoryview(array.array("I", [1, 2, 3]))
    async with client, server:
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view")[1:], wide):
            await client.send_all(data)
            await client.send_all(b"")
        expected = b"bytes" + b"bytearray" + b"iew" + wide.tobytes()
        received = b""
        while len(received) < len(expected):
            received += await server.receive_some(3)
        assert received == expected
        with pytest.raises(TypeError):
            await client.send_all("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await client.send_all(memoryview(b"abcdef")[::2])
        with pytest.raises(ValueError, match="max_bytes"):
            await server.receive_some(0)


async def test_closing_before_the_handshake_makes_none(contexts: Contexts) -> None:
    """trio shakes hands in order to close; here the other side sees FIN (C6)."""
    client, server = tls_over(*await socket_streams(), contexts)
    await client.aclose()
    with pytest.raises(trio.BrokenResourceError, match="handshake"):
        await server.receive_some()
    await server.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.do_handshake()


@pytest.mark.parametrize("how", ["do_handshake", "receive_some", "send_all"])
async def test_closing_during_the_handshake(contexts: Contexts, how: str) -> None:
    client, server = tls_over(*await socket_streams(), contexts)

    async def blocked() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await (client.send_all(b"x") if how == "send_all" else getattr(client, how)())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocked)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
    assert client.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    await server.aclose()


async def test_both_sides_close_at_once(versioned_contexts: Contexts) -> None:
    streams = await handshaken(versioned_contexts)
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.aclose)
    assert [stream.close_outcome for stream in streams] == [CloseOutcome.CLEAN] * 2


async def test_the_peers_close_ends_iteration(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with server:
        await client.send_all(b"all")
        await client.aclose()
        assert b"".join([data async for data in server]) == b"all"
        await server.send_all(b"to nobody")


@pytest.mark.parametrize("https_compatible", [False, True])
async def test_ours_is_sent_in_either_mode(contexts: Contexts, https_compatible: bool) -> None:
    """trio sends no close_notify with https_compatible=True; here it loosens reading only."""
    stream, peer = await meet(contexts, https_compatible=https_compatible)
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


async def test_closing_forcefully_is_graceful(contexts: Contexts) -> None:
    """trio's stream would drop the connection; here that is close_unclean()'s (C2, C13)."""
    stream, peer = await meet(contexts)
    await stream.send_all(b"last words")
    await trio.aclose_forcefully(stream)
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"last words"


async def test_a_cancelled_call_breaks_nothing(contexts: Contexts) -> None:
    """trio's stream is unusable after a cancelled send or handshake; this one is not (C7)."""
    client, server = tls_over(*await socket_streams(), contexts)
    for call in (client.do_handshake, client.receive_some):
        with trio.move_on_after(0.01) as scope:
            await call()
        assert scope.cancelled_caught
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x")
        assert await server.receive_some() == b"x"


async def test_a_peer_that_resets(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    peer.vanish()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.receive_some()
    assert not isinstance(caught.value, TruncationError)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await stream.aclose()


async def test_unwrap_with_data_behind_the_end(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    await in_thread(peer.send_close_notify)
    await in_thread(peer.sock.sendall, b"no TLS")
    transport, trailing = await stream.unwrap()
    while len(trailing) < 6:
        trailing += await transport.receive_some()
    assert trailing == b"no TLS"
    await transport.aclose()
    end = await in_thread(peer.end)
    assert end.close_notify
    assert end.transport is Transport.FIN


async def test_channel_binding(contexts: Contexts) -> None:
    client, server = await handshaken(contexts.of_version(ssl.TLSVersion.TLSv1_2))
    async with client, server:
        binding = client.get_channel_binding("tls-unique")
        assert binding
        assert binding == server.get_channel_binding("tls-unique")
        with pytest.raises(ValueError, match="channel binding"):
            client.get_channel_binding("no such binding")


async def test_a_certificate_of_the_client(contexts: Contexts) -> None:
    mutual = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    mutual.server.verify_mode = ssl.CERT_REQUIRED
    mutual.server.load_verify_locations(str(contexts.ca))
    mutual.client.load_cert_chain(contexts.certificate, contexts.key)
    client, server = await handshaken(mutual)
    async with client, server:
        assert server.getpeercert() == client.getpeercert()
        assert ("DNS", "localhost") in server.getpeercert()["subjectAltName"]


async def test_an_optional_certificate_that_the_client_does_not_have(contexts: Contexts) -> None:
    mutual = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    mutual.server.verify_mode = ssl.CERT_OPTIONAL
    mutual.server.load_verify_locations(str(contexts.ca))
    client, server = await handshaken(mutual)
    async with client, server:
        assert server.getpeercert(binary_form=True) is None
        assert client.getpeercert(binary_form=True)


async def test_an_sni_callback_changes_the_context(contexts: Contexts) -> None:
    mine = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    other = contexts_of(contexts.ca, contexts.certificate, contexts.key)
    other.server.set_alpn_protocols(["chosen"])
    mine.client.set_alpn_protocols(["chosen"])
    names: list[str | None] = []

    def choose(ssl_object: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        names.append(name)
        ssl_object.context = other.server

    mine.server.sni_callback = choose
    client, server = await handshaken(mine)
    async with client, server:
        assert names == ["localhost"]
        assert server.context is other.server


async def test_session_resumption_in_both_versions(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    async with client, server:
        await server.send_all(b"x")
        await client.receive_some()
        session = client.session
    again, server = tls_over(*await socket_streams(), versioned_contexts)
    again.session = session
    async with again, server, trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await again.do_handshake()
        assert again.session_reused
