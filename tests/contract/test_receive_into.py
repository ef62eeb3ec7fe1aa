"""H8: receiving into the caller's own memory."""

from __future__ import annotations

import array
import gc
import mmap
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import SocketStream, TlsStream, TruncationError, blocking
from ringtls._drivers.trio import TrioDriver

from ..conftest import Contexts
from ..support.peer import Meet, Peer
from ..support.streams import handshaken, reset, socket_streams, tcp_pair
from ..support.waiting import LIMIT, until

Sender = trio.abc.SendStream
Receiver = SocketStream | TlsStream


@pytest.fixture(params=["socket", "TLS"])
async def pair(
    request: pytest.FixtureRequest, contexts: Contexts
) -> AsyncIterator[tuple[Sender, Receiver]]:
    if request.param == "socket":
        streams: tuple[Receiver, Receiver] = await socket_streams()
    else:
        streams = await handshaken(contexts)
    async with streams[0], streams[1]:
        yield streams


def numpy_array(dtype: str) -> Any:
    return pytest.importorskip("numpy").zeros((2, 4), dtype)


MEMORY: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(8),
    "slice": lambda: memoryview(bytearray(20))[3:12],
    "array": lambda: array.array("I", bytes(8)),
    "mmap": lambda: mmap.mmap(-1, 4096),
    "numpy": lambda: numpy_array("u1"),
    "numpy of big-endian integers": lambda: numpy_array(">i4"),
}


@pytest.mark.parametrize("kind", MEMORY)
async def test_h8_memory_of_all_kinds(pair: tuple[Sender, Receiver], kind: str) -> None:
    sender, receiver = pair
    memory = MEMORY[kind]()
    await sender.send_all(b"abcde")
    assert await receiver.receive_into(memory, 3) == 3
    assert bytes(memoryview(memory).cast("B")[:4]) == b"abc\0"
    assert await receiver.receive_into(memory) == 2
    assert bytes(memoryview(memory).cast("B")[:4]) == b"dec\0"


async def test_h8_a_slice_is_all_that_is_written_to(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    buffer = bytearray(b"........")
    await sender.send_all(b"abcdefgh")
    assert await receiver.receive_into(memoryview(buffer)[2:6]) == 4
    assert buffer == b"..abcd.."
    assert await receiver.receive_some() == b"efgh"
    buffer.append(1)  # it is not exported any more


async def test_h8_a_lot(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    sent = os.urandom(3_000_000)
    received = bytearray(len(sent))

    async def send() -> None:
        await sender.send_all(sent)
        await sender.send_all(b"and the rest")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        filled = 0
        while filled < len(received):
            filled += await receiver.receive_into(memoryview(received)[filled:])
    assert received == sent
    rest = bytearray(20)
    assert await receiver.receive_into(rest) == 12
    assert rest[:12] == b"and the rest"


async def test_h8_the_end(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    await sender.aclose()
    buffer = bytearray(b"...")
    for _ in range(2):
        assert await receiver.receive_into(buffer) == 0
    assert buffer == b"..."


async def test_h8_refused_at_the_call(pair: tuple[Sender, Receiver]) -> None:
    _, receiver = pair
    buffer = bytearray(8)
    for misuse, error, text in (
        ((b"read-only",), TypeError, "writable memory, not bytes"),
        ((memoryview(buffer)[::2],), TypeError, "contiguous"),
        ((8,), TypeError, "int"),
        ((bytearray(),), ValueError, "empty"),
        ((buffer, 0), ValueError, "between 1 and the buffer's 8 bytes"),
        ((buffer, 9), ValueError, "between 1 and the buffer's 8 bytes"),
        ((buffer, -1), ValueError, "between 1"),
        ((buffer, 1.5), TypeError, "integer"),
    ):
        with pytest.raises(error, match=text):
            await receiver.receive_into(*misuse)
    await receiver.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await receiver.receive_into(buffer)
    buffer.append(1)


async def test_h8_one_receiver(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.receive_into, bytearray(1))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await receiver.receive_into(bytearray(1))
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await receiver.receive_some()
        await sender.send_all(b"x")


async def test_h8_checkpoints(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    await sender.send_all(b"xy")
    with trio.testing.assert_checkpoints():
        await receiver.receive_into(bytearray(1))
    with trio.testing.assert_checkpoints():
        await receiver.receive_into(bytearray(1))


async def test_h8_exported_until_it_is_over(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    buffer = bytearray(b"...")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive_into, buffer)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                buffer.append(1)
            scope.cancel()
    assert scope.cancelled_caught
    await sender.send_all(b"later")
    await trio.testing.wait_all_tasks_blocked()
    assert buffer == b"..."
    buffer.append(1)
    assert await receiver.receive_some() == b"later"


async def test_h8_an_error_does_not_keep_the_memory() -> None:
    ours, theirs = tcp_pair()
    buffer = bytearray(3)
    async with SocketStream(ours) as stream:
        reset(theirs)
        try:
            await stream.receive_into(buffer)
        except trio.BrokenResourceError:
            buffer.append(1)
    assert len(buffer) == 4


async def test_h8_a_refusal_does_not_keep_the_memory(pair: tuple[Sender, Receiver]) -> None:
    _, receiver = pair
    buffer = bytearray(3)
    try:
        await receiver.receive_into(buffer, 4)
    except ValueError:
        buffer.append(1)
    await receiver.aclose()
    try:
        await receiver.receive_into(buffer)
    except trio.ClosedResourceError:
        buffer.append(1)
    assert len(buffer) == 5


async def test_h8_the_coroutine_is_dropped() -> None:
    """The kernel may still write, so the memory stays; what comes after that is not lost."""
    sender, receiver = await socket_streams()
    async with sender, receiver:
        buffer = bytearray(b"...")
        coroutine = receiver.receive_into(buffer)
        coroutine.send(None)
        coroutine.close()
        with pytest.raises(BufferError):
            buffer.append(1)
        await until(lambda: not TrioDriver.current().ring.in_flight)
        buffer.append(1)
        await sender.send_all(b"x")
        assert await receiver.receive_some() == b"x"


def test_h8_the_run_ends_while_the_kernel_has_it() -> None:
    """A task that does not end by itself is cut off with its run."""
    buffer = bytearray(3)

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(left.receive_into, buffer)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError

    with pytest.RaisesGroup(KeyError):
        trio.run(main)
    buffer.append(1)


def test_h8_the_ring_fails() -> None:
    """Then nobody knows whether the kernel is done: the memory stays exported for good."""
    buffer = bytearray(3)

    async def receive(stream: SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError, match="made up"):
            await stream.receive_into(buffer)

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(receive, left)
            await trio.testing.wait_all_tasks_blocked()
            TrioDriver.current()._fail(OSError("made up"))

    trio.run(main)
    gc.collect()
    with pytest.raises(BufferError):
        buffer.append(1)


# TLS


@pytest.fixture
async def meeting(contexts: Contexts, meet: Meet) -> AsyncIterator[tuple[TlsStream, Peer]]:
    stream, peer = await meet(contexts)
    async with stream:
        yield stream, peer
    peer.sock.close()


async def test_h8_all_records_that_are_there(meeting: tuple[TlsStream, Peer]) -> None:
    stream, peer = meeting
    for record in (b"abc", b"defg", b"h" * 20):
        await in_thread(peer.send, record)
    await in_thread(peer.send_close_notify)
    buffer = bytearray(10)
    with trio.fail_after(LIMIT):
        while stream._session.unread_input < 27 + 3 * 22:  # until all has come
            await stream._transport.receive()
    assert await stream.receive_into(buffer) == 10
    assert buffer == b"abcdefghhh"
    assert await stream.receive_into(buffer, 9) == 9
    assert await stream.receive_into(buffer) == 8
    assert buffer == b"hhhhhhhhhh"
    assert await stream.receive_into(buffer) == 0
    assert await stream.receive_some() == b""


async def test_h8_what_came_before_our_end(meeting: tuple[TlsStream, Peer]) -> None:
    """send_eof() saves it (rule 2 of the session)."""
    stream, peer = meeting
    await in_thread(peer.send, b"abcdef")
    with trio.fail_after(LIMIT):
        while not stream._session.unread_input:
            await stream._transport.receive()
    await stream.send_eof()
    buffer = bytearray(4)
    assert await stream.receive_into(buffer) == 4
    assert buffer == b"abcd"
    assert await stream.receive_into(buffer) == 2
    assert buffer == b"efcd"


async def test_h8_truncation(meeting: tuple[TlsStream, Peer]) -> None:
    stream, peer = meeting
    await in_thread(peer.send, b"half a")
    await in_thread(peer.sock.shutdown, socket.SHUT_WR)
    buffer = bytearray(10)
    assert await stream.receive_into(buffer) == 6
    for _ in range(2):
        with pytest.raises(TruncationError):
            await stream.receive_into(buffer)
    buffer.append(1)


async def test_h8_garbage_after_data(meeting: tuple[TlsStream, Peer]) -> None:
    """What was good is handed out first; the error stays for the next call."""
    stream, peer = meeting

    def send() -> None:
        peer.ssl.write(b"good")
        peer.sock.sendall(peer._outgoing.read() + b"\x17\x03\x03\x00\x02ab")

    await in_thread(send)
    with trio.fail_after(LIMIT):
        while stream._session.unread_input < 4 + 22 + 7:
            await stream._transport.receive()
    buffer = bytearray(10)
    assert await stream.receive_into(buffer) == 4
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="TLS failed"):
            await stream.receive_into(buffer)


async def test_h8_it_shakes_hands_where_needed(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, handshake=False)

    def speak() -> None:
        peer.handshake()
        peer.send(b"hello")

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, speak)
        buffer = bytearray(10)
        assert await stream.receive_into(buffer) == 5
    peer.sock.close()


def test_h8_blocking(contexts: Contexts) -> None:
    """Also when it was interrupted by its timeout."""
    ours, theirs = tcp_pair()
    with blocking.SocketStream(ours) as receiver, theirs:
        buffer = bytearray(5)
        receiver.timeout = 0.01
        with pytest.raises(TimeoutError):
            receiver.receive_into(buffer)
        theirs.sendall(b"hello")
        receiver.timeout = None
        assert receiver.receive_into(buffer, 3) == 3
        assert buffer == b"hel\0\0"
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    with (
        ThreadPoolExecutor() as threads,
        blocking.TlsStream(
            blocking.SocketStream(ours), contexts.server, server_side=True
        ) as stream,
    ):
        shaken = threads.submit(peer.handshake)
        stream.do_handshake()
        shaken.result()
        peer.send(b"hello")
        assert stream.receive_into(buffer) == 5
        assert buffer == b"hello"
    assert peer.end().is_clean
