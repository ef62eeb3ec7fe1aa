"""TLS over other streams than the ring's: in memory, over trio's sockets, over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from ringtls import CloseOutcome, TlsStream, TruncationError, statistics

from .conftest import Contexts
from .support.clogging import SMALL, clog, let_both_clog
from .support.peer import adapted_socket_stream
from .support.streams import handshaken, tcp_pair
from .support.waiting import LIMIT, until

ROOT = Path(__file__).parent.parent

Pair = tuple[TlsStream[trio.abc.Stream], TlsStream[trio.abc.Stream]]


async def over(left: trio.abc.Stream, right: trio.abc.Stream, contexts: Contexts) -> Pair:
    """TLS over two connected streams, the handshake done."""
    client = TlsStream(left, contexts.client, server_hostname="localhost")
    server = TlsStream(right, contexts.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


async def test_trio_check_over_memory_streams(contexts: Contexts) -> None:
    async def streams() -> Pair:
        return await over(*trio.testing.memory_stream_pair(), contexts)

    await trio.testing.check_half_closeable_stream(streams, None)


@pytest.mark.long
async def test_trio_check_over_sockets(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    let_both_clog(monkeypatch)

    async def streams() -> Pair:
        left, right = tcp_pair()
        return await over(adapted_socket_stream(left), adapted_socket_stream(right), contexts)

    async def clogged() -> Pair:
        left, right = tcp_pair(SMALL)
        pair = await over(adapted_socket_stream(left), adapted_socket_stream(right), contexts)
        for stream in pair:
            stream.shutdown_timeout = 0.1  # the check closes them one after the other
            await clog(stream)
        return pair

    await trio.testing.check_half_closeable_stream(streams, clogged)


async def test_tls_in_tls(contexts: Contexts) -> None:
    outer = await handshaken(contexts)
    client, server = await over(*outer, contexts)
    async with server, client:
        await client.send_all(b"twice encrypted")
        assert await server.receive_some() == b"twice encrypted"
        await client.send_eof()
        assert await server.receive_some() == b""
    assert client.close_outcome is CloseOutcome.CLEAN
    # They end in the background.
    await until(lambda: not statistics().connections_open)
    await until(lambda: not statistics().connections_closing)
    assert [stream.close_outcome for stream in outer] == [CloseOutcome.CLEAN] * 2


async def test_the_inner_stream_ends_without_close_notify(contexts: Contexts) -> None:
    outer = await handshaken(contexts)
    client, server = await over(*outer, contexts)
    await outer[0].send_eof()
    with pytest.raises(TruncationError):
        await server.receive_some()
    client.close_unclean()
    await server.aclose()


async def test_unwrap_gives_the_stream_back(contexts: Contexts) -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = await over(left, right, contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.unwrap)
        transport, trailing = await server.unwrap()
    assert transport is right
    assert trailing == b""
    await left.send_all(b"plain")
    assert await right.receive_some() == b"plain"


async def test_a_stream_below_that_fails_in_its_own_way(contexts: Contexts) -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = await over(left, right, contexts)

    async def fail() -> None:
        raise KeyError("made up")

    left.send_stream.send_all_hook = fail
    await client.send_all(b"x")
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError, match="made up"):
        await client.send_all(b"y")
    await client.aclose()
    assert client.close_outcome is CloseOutcome.PEER_RESET
    await server.aclose()


WITHOUT_A_RING = """
import errno, pathlib, sys, tempfile, trio, trio.testing
from tests.conftest import contexts_of
from tests.support.seccomp import forbid_io_uring
from tests.test_adapter import over
from ringtls._cli.certificates import make_certificate
forbid_io_uring(errno.EPERM)
with tempfile.TemporaryDirectory() as directory:
    made = make_certificate(pathlib.Path(directory))
    contexts = contexts_of(made.ca, made.certificate, made.key)
async def main():
    sockets = [trio.SocketStream(sock) for sock in trio.socket.socketpair()]
    for pair in (trio.testing.memory_stream_pair(), sockets):
        client, server = await over(*pair, contexts)
        async with client, server:
            await client.send_all(b"no ring")
            print(await server.receive_some())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.unwrap)
                assert await server.unwrap() == (pair[1], b"")
        async with pair[0], pair[1]:
            await pair[0].send_all(b"plain")
            assert await pair[1].receive_some() == b"plain"
trio.run(main)
"""


def test_without_a_ring() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_A_RING],
        cwd=ROOT,
        env=os.environ | {"RINGTLS_ENGINE": "io_uring"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    assert done.stdout == "b'no ring'\n" * 2
