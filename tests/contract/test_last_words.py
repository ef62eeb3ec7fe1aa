"""C21 and C22: breaking off on an error, if asked; last words before close_notify."""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, SocketListener, SocketStream, TlsListener, TlsStream
from ringtls._engine.descriptors import is_delivered
from ringtls._transports import ring as transport

from ..conftest import Contexts
from ..support.clogging import SMALL
from ..support.faces import AnyStream
from ..support.peer import End, Meet, Peer, Transport, meet
from ..support.streams import handshaken, tls_over
from ..support.waiting import until

WORDS = b"goodbye"

#: Of linux/sockios.h: bytes that TCP has not sent.
SIOCOUTQNSD = 0x894B


class HandlerError(Exception):
    pass


async def end_of(peer: Peer) -> End:
    return await in_thread(peer.end)


# C21


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "much"])
async def test_c21_an_exception_breaks_off(contexts: Contexts, meet: Meet, size: int) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    ends: list[End] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            ends.append(await end_of(peer))

        nursery.start_soon(look)
        with pytest.raises(HandlerError):
            async with stream:
                await stream.send_all(bytes(size))
                raise HandlerError
    assert stream.close_outcome is CloseOutcome.BROKEN_OFF
    (end,) = ends
    assert not end.close_notify
    assert end.transport is Transport.RST
    assert len(end.data) == size


async def test_c21_the_last_bytes_are_not_held_back(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before FIN, with which they share a segment (MSG_MORE in send(2))."""
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    unsent: list[int] = []

    def look(fd: int) -> bool:
        unsent.append(struct.unpack("i", fcntl.ioctl(fd, SIOCOUTQNSD, bytes(4)))[0])
        return is_delivered(fd)

    monkeypatch.setattr(transport, "is_delivered", look)
    with pytest.raises(HandlerError):
        async with stream:
            stream.send_nowait(bytes(10))
            raise HandlerError
    assert len((await end_of(peer)).data) == 10
    assert unsent[0] == 0


async def test_c21_a_peer_that_reads_late_gets_all(contexts: Contexts, meet: Meet) -> None:
    """What the kernel has not delivered yet, a reset would destroy."""
    stream, peer = await meet(contexts, buffer_size=SMALL)
    stream.reset_on_error = True
    ends: list[End] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            await until(lambda: stream.close_outcome is not None)
            ends.append(await end_of(peer))

        nursery.start_soon(look)
        with pytest.raises(HandlerError):
            async with stream:
                await stream.send_all(bytes(2 * SMALL))
                await stream.wait_sent()
                raise HandlerError
    (end,) = ends
    assert len(end.data) == 2 * SMALL
    assert end.transport is Transport.RST


async def test_c21_a_cancellation_breaks_off(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    with trio.CancelScope() as scope:
        async with stream:
            await stream.send_all(b"half an answer")
            scope.cancel()
            await stream.receive_some()
    end = await end_of(peer)
    assert (end.data, end.close_notify) == (b"half an answer", False)
    assert stream.close_outcome is CloseOutcome.BROKEN_OFF


async def test_c21_a_return_does_not(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    async with stream:
        await stream.send_all(b"an answer")
    assert (await end_of(peer)).is_clean
    assert stream.close_outcome is CloseOutcome.CLEAN


async def test_c21_aclose_does_not(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    await stream.aclose()
    assert (await end_of(peer)).is_clean


PIECES = [b"<li>%d</li>" % number for number in range(100)]
HOW = [b"return", b"raise", b"be cancelled"]


async def answer(stream: TlsStream) -> None:
    """Send the pieces, which only the end of the connection delimits, or half of them."""
    with suppress(HandlerError), trio.CancelScope() as scope:
        async with stream:
            how = await stream.receive_some()
            for number, piece in enumerate(PIECES):
                if number == 50 and how == b"raise":
                    raise HandlerError
                if number == 50 and how == b"be cancelled":
                    scope.cancel()
                await stream.send_all(piece)


def fetch(address: tuple[str, int], contexts: Contexts, how: bytes) -> bytes | None:
    """What a client takes for a whole answer, which insists on close_notify."""
    taken = b""
    with (
        socket.create_connection(address) as sock,
        contexts.client.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as tls,
    ):
        tls.sendall(how)
        try:
            while data := tls.recv(65536):
                taken += data
        except OSError:
            return None
    return taken


@pytest.mark.parametrize("reset_on_error", [True, False])
async def test_c21_half_an_answer_never_looks_whole(
    contexts: Contexts, reset_on_error: bool
) -> None:
    """Without it, it does each time."""
    whole, half = b"".join(PIECES), b"".join(PIECES[:50])
    expected = dict.fromkeys(HOW, None if reset_on_error else half) | {b"return": whole}

    async def ask(how: bytes) -> None:
        taken = await in_thread(fetch, below.socket.getsockname(), contexts, how)
        assert taken == expected[how], how

    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as below:
        listener = TlsListener(below, contexts.server, reset_on_error=reset_on_error)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, answer, [listener])
            async with trio.open_nursery() as clients:
                for number in range(60):
                    clients.start_soon(ask, HOW[number % 3])
            nursery.cancel_scope.cancel()


@pytest.mark.ringtls_allow_unclosed
async def test_c21_what_is_lost_is_broken_off(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    await stream.send_all(b"half an answer")
    with pytest.warns(ResourceWarning):
        del stream
    end = await end_of(peer)
    assert (end.data, end.close_notify, end.transport) == (
        b"half an answer",
        False,
        Transport.RST,
    )


# C22


async def returns(stream: AnyStream) -> None:
    async with stream:
        await stream.send_all(b"data;")


async def raises(stream: AnyStream) -> None:
    with pytest.raises(HandlerError):
        async with stream:
            await stream.send_all(b"data;")
            raise HandlerError


@pytest.mark.parametrize("leave", [returns, raises])
@pytest.mark.parametrize("words", [WORDS, lambda: WORDS], ids=["bytes", "function"])
async def test_c22_last_words(
    contexts: Contexts, meet: Meet, leave: Callable[[AnyStream], Any], words: Any
) -> None:
    stream, peer = await meet(contexts)
    stream.farewell = words
    await leave(stream)
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == b"data;" + WORDS


async def test_c22_the_longest_last_words(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    stream.farewell = words = bytes(range(256)) * 64
    await returns(stream)
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == b"data;" + words


async def test_c22_when_cancelled(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.farewell = WORDS
    with trio.CancelScope() as scope:
        async with stream:
            scope.cancel()
            await stream.receive_some()
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == WORDS


@pytest.mark.ringtls_allow_unclosed
async def test_c22_when_dropped(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.farewell = WORDS
    with pytest.warns(ResourceWarning):
        del stream
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == WORDS


async def test_c22_not_inside_of_another_message(contexts: Contexts) -> None:
    """A send_all that was cancelled halfway."""
    stream, peer = await meet(contexts, buffer_size=128 * 1024)
    stream.farewell = WORDS
    ends: list[End] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            ends.append(await end_of(peer))

        with trio.CancelScope() as scope:
            async with stream, trio.open_nursery() as senders:
                senders.start_soon(stream.send_all, bytes(10_000_000))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(look)
                scope.cancel()
    (end,) = ends
    assert end.is_clean
    assert 0 < len(end.data) < 10_000_000
    assert not end.data.strip(b"\0")


async def test_c22_not_after_send_eof(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    async with stream:
        stream.farewell = WORDS
        await stream.send_eof()
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == b""


@pytest.mark.parametrize("words", [lambda: 1 / 0, lambda: bytes(16385), lambda: "text"])
async def test_c22_what_it_raises_does_not_stop_the_end(
    contexts: Contexts, words: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stream, peer = await meet(contexts)
    stream.farewell = words
    with caplog.at_level(logging.ERROR, "ringtls"):
        async with stream:
            await stream.send_all(b"data;")
    end = await end_of(peer)
    assert end.is_clean
    assert end.data == b"data;"
    assert "without its farewell" in caplog.text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("text", TypeError),
        (bytes(16385), ValueError),
        (memoryview(bytes(16388)).cast("I"), ValueError),
    ],
    ids=["text", "too long", "too long in items of four bytes"],
)
async def test_c22_what_can_not_be_said_is_refused_when_it_is_set(
    contexts: Contexts, words: Any, error: type[Exception]
) -> None:
    """The end would go without it, and nobody but the log would hear of that."""
    stream, peer = await meet(contexts)
    stream.farewell = WORDS
    with pytest.raises(error, match="a farewell"):
        stream.farewell = words
    await stream.aclose()
    assert (await end_of(peer)).data == WORDS


async def test_c22_not_when_broken_off(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.farewell, stream.reset_on_error = WORDS, True
    await raises(stream)
    assert (await end_of(peer)).data == b"data;"


async def test_c22_last_words_are_of_one_stream(contexts: Contexts) -> None:
    """The next on the same connection has its own, and its own way to end."""
    client, server = await handshaken(contexts)
    client.farewell, client.reset_on_error = b"of the first", True
    below: dict[TlsStream[Any], SocketStream] = {}

    async def unwrap(stream: TlsStream[Any]) -> None:
        below[stream], _ = await stream.unwrap()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unwrap, client)
        nursery.start_soon(unwrap, server)
    client.farewell = b"too late"
    again = tls_over(below[client], below[server], contexts)
    assert (again[0].farewell, again[0].reset_on_error) == (None, False)
    async with again[0], again[1]:
        async with trio.open_nursery() as nursery:
            for stream in again:
                nursery.start_soon(stream.do_handshake)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again[0].aclose)
            assert await again[1].receive_some() == b""
