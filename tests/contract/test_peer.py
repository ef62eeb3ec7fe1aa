"""C5, C10, C11, C12, C13: what the peer does at the end, and what it sees of ours."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, SocketStream, TlsStream, TruncationError, statistics
from ringtls._transports import ring as ring_transport

from ..conftest import Contexts
from ..support import peer as peers
from ..support.clogging import SMALL, clog, is_full
from ..support.peer import End, Meet, Peer, Transport
from ..support.streams import open_fds, tcp_pair
from ..support.waiting import closed_while_it_waits, until


async def test_c5_the_alert_goes_out_and_no_close_notify_after_it(
    contexts: Contexts, meet: Meet
) -> None:
    stream, peer = await meet(contexts)
    await in_thread(peer.sock.sendall, b"\x17\x03\x03\x00\x05junk!")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.AFTER_FATAL_ALERT
    end = await in_thread(peer.end)
    assert not end.close_notify
    assert end.error is not None
    assert "ALERT" in end.error.replace(" ", "_").upper()
    assert end.transport is Transport.FIN


async def test_c5_a_handshake_that_fails(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    stream = TlsStream(SocketStream(ours), contexts.client, server_hostname="wrong.example")
    peer = Peer(theirs, contexts, server_side=True)
    errors: list[Exception] = []

    def handshake() -> None:
        with pytest.raises(ssl.SSLError) as caught:
            peer.handshake()
            peer.receive(1)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, handshake)
        with pytest.raises(trio.BrokenResourceError) as caught:
            async with stream:
                await stream.do_handshake()
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert "ALERT" in str(errors[0]).upper()
    peer.sock.close()


async def test_c10_unread_input_does_not_destroy_what_was_sent(
    contexts: Contexts, meet: Meet
) -> None:
    stream, peer = await meet(contexts)
    answer = bytes(1_000_000)  # more of either than all kernels hold would make both sides wait

    def talk() -> None:
        peer.send(bytes(1_000_000))
        ends.append(peer.end())

    ends: list[End] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, talk)
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
    assert ends[0].is_clean, (len(ends[0].data), ends[0].transport)
    assert ends[0].data == answer


async def test_c10_the_task_does_not_wait_for_the_peer(contexts: Contexts, meet: Meet) -> None:
    before = open_fds()
    stream, peer = await meet(contexts)
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert open_fds() > before + 1  # the ring still reads, until the peer's FIN
    peer.sock.close()
    await until(lambda: open_fds() <= before + 3)  # the ring, its eventfd, its pump's timer stay


def send_until_refused(peer: Peer) -> None:
    with peer.sock, pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(1000):
            peer.sock.sendall(bytes(SMALL))


@pytest.mark.parametrize("limit", ["bytes", "time"])
async def test_c10_lingering_is_limited(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """By what a peer sends that never ends, and by the shutdown timeout if it says nothing."""
    monkeypatch.setattr(ring_transport, "DISCARD_LIMIT", SMALL)
    stream, peer = await peers.meet(contexts, buffer_size=SMALL)
    await stream.aclose(shutdown_timeout=3600 if limit == "bytes" else 0.01)
    assert stream.close_outcome is CloseOutcome.CLEAN
    if limit == "time":
        await until(lambda: not statistics().connections_closing)
    await in_thread(send_until_refused, peer)
    await until(lambda: not statistics().connections_closing)


@pytest.mark.parametrize("https_compatible", [False, True])
@pytest.mark.parametrize("hide_truncation", [False, True])
async def test_c11_truncation(
    contexts: Contexts, meet: Meet, https_compatible: bool, hide_truncation: bool
) -> None:
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    if hide_truncation:
        contexts.server.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    stream, peer = await meet(contexts, https_compatible=https_compatible)
    await in_thread(peer.send, b"half a")
    peer.sock.shutdown(1)
    assert await stream.receive_some() == b"half a"
    if https_compatible:
        assert await stream.receive_some() == b""
    else:
        for _ in range(2):
            with pytest.raises(TruncationError):
                await stream.receive_some()
    await stream.aclose()  # and ours is sent all the same
    end = await in_thread(peer.end)
    assert end.is_clean


async def test_c11_the_peers_end_reads_as_empty(versioned_contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(versioned_contexts)
    await in_thread(peer.send, b"bye")
    await in_thread(peer.send_close_notify)
    assert await stream.receive_some() == b"bye"
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""
    await stream.send_eof()
    assert await stream.receive_some() == b""  # after ours too
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


@pytest.mark.parametrize("server_side", [True, False])
async def test_c12_half_close(versioned_contexts: Contexts, meet: Meet, server_side: bool) -> None:
    stream, peer = await meet(versioned_contexts, server_side=server_side)
    await in_thread(peer.send, b"early ")  # is in the socket when we half-close
    await stream.send_all(b"all we say")
    await stream.send_eof()
    await stream.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"more")
    assert await in_thread(peer.receive, 10) == b"all we say"
    await in_thread(peer.send, b"late")
    await in_thread(peer.send_close_notify)
    received = b""
    while data := await stream.receive_some():
        received += data
    assert received == b"early late"
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean  # and so close_notify went out once


async def test_c11_a_reset_is_no_end(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, https_compatible=True)
    peer.vanish()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    await stream.aclose()


async def send_until_broken(stream: TlsStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await stream.send_all(b"x")


async def test_c11_a_reset_that_a_send_has_met_is_no_end(contexts: Contexts, meet: Meet) -> None:
    """The kernel reports it once; input then reads as ended."""
    stream, peer = await meet(contexts, https_compatible=True)
    peer.vanish()
    await send_until_broken(stream)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    await stream.aclose()


async def test_c11_nor_is_one_that_a_send_in_flight_has_met(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, https_compatible=True, buffer_size=SMALL)

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await clog(stream)
        await until(lambda: is_full(stream.transport_stream.socket))
        peer.vanish()
    await stream.aclose()


async def test_c11_an_end_before_the_reset_is_one(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, https_compatible=True)
    await in_thread(peer.send, b"answer")
    peer.sock.close()
    await send_until_broken(stream)
    assert await stream.receive_some() == b"answer"
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_c12_after_a_tls_error_there_is_none(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    peer.ssl.write(b"good")
    await in_thread(peer.sock.sendall, peer._outgoing.read() + b"\x17\x03\x03\x00\x05junk!")
    assert await stream.receive_some(1) == b"g"
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_eof()
    assert await stream.receive_some() == b"ood"
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
    peer.sock.close()


async def test_c12_what_was_received_before_stays_readable(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    await in_thread(peer.send, bytes(40_000))
    received = len(await stream.receive_some(1))
    await stream.send_eof()
    while received < 40_000:
        received += len(await stream.receive_some())
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


async def test_c13_unclean_on_purpose(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    await stream.send_all(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        stream.close_unclean()
        assert stream.close_outcome is CloseOutcome.UNCLEAN
    end = await in_thread(peer.end)
    assert end.transport is Transport.RST
    assert not end.close_notify
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.UNCLEAN


async def test_c13_in_the_middle_of_a_close(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await clog(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await trio.testing.wait_all_tasks_blocked()
        stream.close_unclean()
    assert stream.close_outcome is CloseOutcome.UNCLEAN
    assert (await in_thread(peer.end)).transport is Transport.RST


@pytest.mark.parametrize("how", ["unclean", "broken off", "timed out"])
async def test_c13_c21_c3_a_reset_though_somebody_else_has_the_socket_too(
    contexts: Contexts, meet: Meet, how: str
) -> None:
    """A forked child, say, or who was passed the descriptor: to close ours would end nothing."""
    duplicates: list[socket.socket] = []

    def shared_pair(buffer_size: int | None) -> tuple[socket.socket, socket.socket]:
        ours, theirs = tcp_pair(buffer_size)
        duplicates.append(ours.dup())
        return ours, theirs

    stream, peer = await meet(contexts, buffer_size=SMALL, pair=shared_pair)
    if how == "unclean":
        stream.close_unclean()
    elif how == "broken off":
        stream.reset_on_error = True
        with pytest.raises(ValueError, match="half an answer"):
            async with stream:
                raise ValueError("half an answer")
    else:
        await clog(stream)
        await stream.aclose(shutdown_timeout=0)
    end = await in_thread(peer.end)
    duplicates.pop().close()
    assert end.transport is Transport.RST
    assert not end.close_notify


async def test_c13_in_a_callback_of_the_handshake(contexts: Contexts, meet: Meet) -> None:
    """What OpenSSL then goes on to say is not sent."""
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    stream, peer = await meet(contexts, handshake=False)
    contexts.server.sni_callback = lambda *_: stream.close_unclean()

    def shake_hands() -> None:
        with peer.sock, pytest.raises(ConnectionResetError):
            peer.handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, shake_hands)
        await closed_while_it_waits(stream.do_handshake)
    assert stream.close_outcome is CloseOutcome.UNCLEAN
