"""H2: memory that was given to a send is the caller's again when the send has raised.

Who catches an exception holds its traceback, and so the variables of all frames that it came
through.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from ringtls import SocketStream, TlsStream, blocking

from ..conftest import Contexts
from ..support.peer import adapted_socket_stream
from ..support.streams import handshaken, socket_streams, tcp_pair, tls_over
from ..support.waiting import when_all_wait

#: The size of the kernel's buffers, and more than these and a TlsStream take.
NARROW = 32768
MUCH = 4_000_000

Stream = SocketStream | TlsStream[Any]
Pair = tuple[Stream, Stream]


async def over_other_streams(contexts: Contexts) -> Pair:
    client, server = tcp_pair(NARROW)
    below: tuple[Any, Any] = adapted_socket_stream(client), adapted_socket_stream(server)
    streams = tls_over(*below, contexts)
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.do_handshake)
    return streams


MAKERS: dict[str, Callable[[Contexts], Awaitable[Pair]]] = {
    "socket": lambda contexts: socket_streams(NARROW),
    "TLS": lambda contexts: handshaken(contexts, NARROW),
    "TLS over other streams": over_other_streams,
}


@pytest.fixture(params=MAKERS)
async def pair(request: pytest.FixtureRequest, contexts: Contexts) -> AsyncIterator[Pair]:
    streams = await MAKERS[request.param](contexts)
    yield streams
    for stream in streams:
        stream.close_unclean()


async def test_h2_c7_what_a_cancelled_send_has_accepted_needs_the_memory_no_more(
    pair: Pair,
) -> None:
    sender, receiver = pair
    data = bytearray(os.urandom(MUCH))
    sent, received = bytes(data), b""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(when_all_wait, scope.cancel)
            try:
                await sender.send_all(data)
            except trio.Cancelled:
                data.clear()
                raise
        nursery.start_soon(sender.aclose)
        while piece := await receiver.receive_some():
            received += piece
    assert not data
    assert 0 < len(received) < len(sent)
    assert sent.startswith(received)


async def test_h2_a_failed_send_has_given_the_memory_back(pair: Pair) -> None:
    sender, receiver = pair
    data = bytearray(MUCH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(when_all_wait, receiver.close_unclean)
        try:
            await sender.send_all(data)
        except trio.BrokenResourceError:
            data.clear()
    assert not data


@pytest.mark.parametrize(("size", "refusal"), [(300_000, ValueError), (1, trio.WouldBlock)])
async def test_h2_a_refused_piece_has_given_the_memory_back(
    contexts: Contexts, size: int, refusal: type[Exception]
) -> None:
    client, server = tls_over(*await socket_streams(), contexts)
    data = bytearray(size)
    async with client, server:
        try:
            client.send_nowait(data)
        except refusal:
            data.clear()
    assert not data


def test_h2_d5_a_timed_out_send_has_given_the_memory_back() -> None:
    ours, theirs = tcp_pair(NARROW)
    data = bytearray(MUCH)
    with theirs, blocking.SocketStream(ours) as stream:
        stream.timeout = 0
        try:
            stream.send_all(data)
        except TimeoutError:
            data.clear()
        stream.close_unclean()
    assert not data
