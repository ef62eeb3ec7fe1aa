"""Operations cancelled at random moments: no byte, descriptor or operation is lost.

Steps of the race: (1) an operation is submitted; (2) it completes in the kernel, or not yet;
(3) its task is cancelled; (4) the kernel is asked to cancel; (5) the completion is reaped.
Whatever the order of 2 to 4, what the kernel did is what the program sees.

Each test goes on until CUT_OFF attempts were cancelled; RINGTLS_RACES multiplies it.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from ringtls import SocketListener, SocketStream, TlsStream
from ringtls._drivers.trio import TrioDriver

from .conftest import Contexts
from .support.streams import handshaken, open_fds, socket_streams, tcp_pair
from .support.waiting import LIMIT, until

CUT_OFF = int(1500 * float(os.environ.get("RINGTLS_RACES", "1")))


#: Descriptors are few where nobody asked for more: 1024, and each client takes two.
MOST_CLIENTS = 100


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


def counting(start: int, size: int) -> bytes:
    """``size`` bytes of an endless pattern, from ``start`` on."""
    pattern = bytes(range(251))
    first = start % 251
    return (pattern * (size // 251 + 2))[first : first + size]


async def wait_a_little(rng: random.Random) -> None:
    """Between no tick at all and a few, or a moment of real time."""
    if rng.random() < 0.1:
        await trio.sleep(rng.random() * 0.0005)
    for _ in range(rng.randrange(5)):
        await trio.lowlevel.cancel_shielded_checkpoint()


async def race(rng: random.Random, attempt: Callable[[], Awaitable[None]]) -> bool:
    """Run an attempt and cancel it at a random moment; true if it was cut off."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def cancel() -> None:
            await wait_a_little(rng)
            scope.cancel()

        nursery.start_soon(cancel)
        with scope:
            await attempt()
        nursery.cancel_scope.cancel()
    return scope.cancelled_caught


@asynccontextmanager
async def nothing_lost() -> AsyncIterator[None]:
    """No more descriptors and operations after than before. (Less may be: a worker thread of an
    earlier test may end meanwhile, and with it its ring.)"""
    ring = TrioDriver.current().ring
    await trio.testing.wait_all_tasks_blocked()
    fds, in_flight = open_fds(), ring.in_flight
    yield
    await until(lambda: open_fds() <= fds and ring.in_flight <= in_flight)


@pytest.mark.parametrize("how", ["receive_some", "receive_into", "start_receive"])
async def test_receives(rng: random.Random, how: str) -> None:
    received = bytearray()
    cut_off = sent = 0
    async with nothing_lost():
        source, sink = await socket_streams()
        async with source, sink, trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal sent
                while cut_off < CUT_OFF:
                    size = rng.randrange(1, 6)
                    await source.send_all(counting(sent, size))
                    sent += size
                    for _ in range(4):
                        await wait_a_little(rng)
                await source.send_eof()

            async def receive() -> None:
                size = rng.randrange(1, 10)
                if how == "receive_some":
                    received.extend(await sink.receive_some(size))
                elif how == "receive_into":
                    count = await sink.receive_into(memory, size)
                    received.extend(memory[:count])
                    memory[:count] = bytes(count)
                    assert not any(memory)  # nothing else was written, nor since the last time
                else:
                    operation = sink.start_receive(size)
                    if rng.random() < 0.1:
                        operation.cancel()
                    with suppress(OSError):
                        received.extend(await operation)

            memory = bytearray(10)
            nursery.start_soon(send)
            while cut_off < CUT_OFF:
                cut_off += await race(rng, receive)
            while data := await sink.receive_some():
                received.extend(data)
    assert len(received) == sent
    assert received == counting(0, sent)


async def test_sends(rng: random.Random) -> None:
    offset = cut_off = 0
    received = bytearray()
    async with nothing_lost():
        ours, theirs = tcp_pair(32768)
        source, sink = SocketStream(ours), SocketStream(theirs)
        async with sink, trio.open_nursery() as nursery:

            async def receive() -> None:
                while data := await sink.receive_some(rng.randrange(1, 10_000)):
                    received.extend(data)
                    await wait_a_little(rng)

            async def send() -> None:
                nonlocal offset
                data = counting(offset, rng.randrange(1, 40_000))
                offset += await source._transport.send(memoryview(data))

            nursery.start_soon(receive)
            async with source:
                while cut_off < CUT_OFF:
                    cut_off += await race(rng, send)
    assert len(received) == offset
    assert received == counting(0, offset)


@pytest.mark.parametrize("how", ["accept", "start_accept"])
async def test_accepts(rng: random.Random, how: str) -> None:
    clients: list[socket.socket] = []
    accepted: list[SocketStream] = []
    cut_off = 0
    async with nothing_lost():
        listener = SocketListener(socket.create_server(("127.0.0.1", 0), backlog=4096))
        address = listener.socket.getsockname()

        async def accept() -> None:
            accepting = listener.accept() if how == "accept" else listener.start_accept()
            accepted.append(await accepting)

        async def end_all() -> None:
            """Each client was accepted, once."""
            with trio.fail_after(LIMIT):
                while len(accepted) < len(clients):
                    await accept()
            ports = sorted(stream.socket.getpeername()[1] for stream in accepted)
            assert ports == sorted(client.getsockname()[1] for client in clients)
            for client in clients:
                client.close()
            for stream in accepted:
                await stream.aclose()
            clients.clear()
            accepted.clear()

        while cut_off < CUT_OFF:
            if rng.random() < 0.2:
                clients.append(socket.create_connection(address))
            if len(clients) == MOST_CLIENTS:
                await end_all()
            cut_off += await race(rng, accept)
        await end_all()
        await listener.aclose()


@pytest.mark.parametrize("how", ["receive_some", "receive_into"])
async def test_tls_both_ways(contexts: Contexts, rng: random.Random, how: str) -> None:
    """A cancelled send_all of one piece sent nothing of it, a cancelled receive took nothing."""
    async with nothing_lost():
        client, server = await handshaken(contexts, buffer_size=32768)

        async def exchange(ours: TlsStream, theirs: TlsStream) -> None:
            accepted = bytearray()
            received = bytearray()
            memory = bytearray(12_000)
            ended = False

            async def send() -> None:
                data = rng.randbytes(rng.randrange(1, 20_000))
                await ours.send_all(data)
                accepted.extend(data)

            async def receive() -> None:
                nonlocal ended
                size = rng.randrange(1, 12_000)
                if how == "receive_some":
                    received.extend(data := await theirs.receive_some(size))
                    ended = not data
                else:
                    count = await theirs.receive_into(memory, size)
                    received.extend(memory[:count])
                    ended = not count

            async def receive_all() -> None:
                while not ended:
                    await race(rng, receive)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_all)
                cut_off = 0
                while cut_off < CUT_OFF // 4:
                    cut_off += await race(rng, send)
                await ours.send_eof()
            assert received == accepted

        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(exchange, client, server)
            nursery.start_soon(exchange, server, client)
