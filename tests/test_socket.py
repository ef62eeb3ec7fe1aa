"""SocketStream and SocketListener on a real ring and real sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from ringtls import SocketStream, blocking
from ringtls._transports import ring as _transport

from .support.clogging import SMALL, clog_socket, is_full
from .support.streams import reset, socket_streams, tcp_pair
from .support.waiting import until


async def clogged_socket_streams() -> tuple[SocketStream, SocketStream]:
    client, server = await socket_streams(buffer_size=16384)
    await clog_socket(client)
    await clog_socket(server)
    return client, server


async def test_trio_check_half_closeable_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    # The check sends to a closed stream, a hundred bytes at a time, until it notices.
    monkeypatch.setattr(_transport, "DISCARD_LIMIT", 1 << 16)
    await trio.testing.check_half_closeable_stream(socket_streams, clogged_socket_streams)


async def test_a_send_eof_that_has_failed_fails_again() -> None:
    ours, theirs = tcp_pair()
    async with SocketStream(ours) as stream:
        reset(theirs)
        for call in (stream.receive_some, stream.send_eof, stream.send_eof):
            with pytest.raises(trio.BrokenResourceError):
                await call()


async def test_c13_a_socket_is_reset_on_purpose() -> None:
    ours, theirs = tcp_pair()
    stream = SocketStream(ours)
    with theirs:
        stream.close_unclean()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    await stream.aclose()


def test_c13_a_blocking_socket_is_reset_on_purpose() -> None:
    ours, theirs = tcp_pair()
    stream = blocking.SocketStream(ours)
    with theirs:
        stream.close_unclean()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    stream.close()


async def receive_into_memory(stream: SocketStream) -> object:
    return await stream.receive_into(bytearray(10))


@pytest.mark.parametrize(
    "receive",
    [SocketStream.receive_some, SocketStream.start_receive, receive_into_memory],
    ids=["receive_some", "start_receive", "receive_into"],
)
@pytest.mark.parametrize("send", [SocketStream.send_all, SocketStream.start_send])
async def test_c11_a_reset_that_a_send_met_is_no_end_of_the_input(
    receive: Callable[[SocketStream], Awaitable[object]],
    send: Callable[[SocketStream, bytes], Awaitable[object]],
) -> None:
    """The kernel tells of it once: a receive that is already waiting reads the end."""
    ours, theirs = tcp_pair(SMALL)
    async with SocketStream(ours) as stream, trio.open_nursery() as nursery:

        async def fails(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await operation()

        nursery.start_soon(fails, partial(receive, stream))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fails, partial(send, stream, bytes(4_000_000)))
        await until(lambda: is_full(stream.socket))
        reset(theirs)


async def test_c11_nor_does_a_peek_take_it_for_that() -> None:
    ours, theirs = tcp_pair(SMALL)
    async with SocketStream(ours) as stream:
        await clog_socket(stream)
        with trio.move_on_after(0):
            await stream.send_all(b"this can't be sent")
        reset(theirs)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"nor this")
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await stream.peek(1)
