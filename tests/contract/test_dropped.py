"""C8, C14: streams that nobody closed, and streams of another process."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import SocketStream, TlsStream
from ringtls._engine.descriptors import is_gone
from ringtls._streams.closing import Phase

from ..conftest import Contexts
from ..support.clogging import ACCEPTED, SMALL, is_full
from ..support.peer import Meet, Peer
from ..support.processes import exit_status, fork, in_child, wait_for_child
from ..support.streams import set_buffers, tcp_pair
from ..support.waiting import cut_off, until

pytestmark = pytest.mark.ringtls_allow_unclosed


@pytest.mark.parametrize("how", ["reference", "cycle", "thread"])
async def test_c8_dropped(contexts: Contexts, meet: Meet, how: str) -> None:
    stream, peer = await meet(contexts)
    await stream.send_all(b"last words")
    holder = [stream]
    with pytest.warns(ResourceWarning, match="peer.py:"):
        if how == "cycle":
            stream.cycle = stream  # type: ignore[attr-defined]
        del stream
        if how == "thread":
            thread = threading.Thread(target=holder.clear)
            thread.start()
            thread.join()
        holder.clear()
        gc.collect()
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"last words"


async def test_c8_dropped_in_the_middle_of_a_send(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    sent = os.urandom(1_000_000)
    await cut_off(stream.send_all, sent)
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        del stream
        gc.collect()
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data
    assert sent.startswith(end.data)


async def test_c8_dropped_after_a_receive_was_cut_off(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    await cut_off(stream.receive_some)
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        del stream
        gc.collect()
    assert (await in_thread(peer.end)).is_clean


async def test_c8_dropped_during_the_handshake(contexts: Contexts, meet: Meet) -> None:
    """C6 then: there is nothing to notify."""
    stream, peer = await meet(contexts, server_side=False, handshake=False)
    await cut_off(stream.do_handshake)
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        del stream
        gc.collect()
    assert await in_thread(peer.sock.recv, 65536)
    assert await in_thread(peer.sock.recv, 65536) == b""
    peer.sock.close()


def test_c8_after_the_main_task_raised(contexts: Contexts, meet: Meet) -> None:
    kept: list[tuple[TlsStream, Peer]] = []

    async def main() -> None:
        kept.append(await meet(contexts))
        raise KeyError

    with pytest.warns(ResourceWarning, match="unclosed stream"), pytest.raises(KeyError):
        trio.run(main)
    assert kept[0][1].end().is_clean


def test_c8_still_open_at_the_end_of_the_run(contexts: Contexts, meet: Meet) -> None:
    kept: list[tuple[TlsStream, Peer]] = []

    async def main() -> None:
        stream, peer = await meet(contexts)
        await stream.send_all(b"last words")
        kept.append((stream, peer))

    with pytest.warns(ResourceWarning, match="peer.py:"):
        trio.run(main)
    end = kept[0][1].end()
    assert end.is_clean
    assert end.data == b"last words"


async def test_c14_a_child_that_goes_on_with_the_run(contexts: Contexts, meet: Meet) -> None:
    """What is being sent, and the close, are the parent's."""
    stream, peer = await meet(contexts, buffer_size=SMALL)
    sock = stream.transport_stream.socket
    data = os.urandom(ACCEPTED)
    await stream.send_all(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await until(lambda: is_full(sock))  # else a trio stream in the child would go on sending
        child = fork()
        if child == 0:
            await trio.testing.wait_all_tasks_blocked()
            os._exit(0)
        await in_thread(wait_for_child, child)
        end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == data


def test_c14_a_child_that_goes_on_to_the_end_of_the_run(contexts: Contexts) -> None:
    """It neither gives up what its parent is delivering, nor says so.

    The parent is a child of the test, too: forks share trio's epoll, and one has to go.
    """
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    async def main() -> None:
        ours, theirs = tcp_pair(SMALL)
        while not is_full(ours):
            with suppress(BlockingIOError):
                ours.send(bytes(SMALL), socket.MSG_DONTWAIT)
        set_buffers(8 * SMALL, ours)  # the kernel takes more, and the peer does not
        stream = TlsStream(
            SocketStream(ours),
            contexts.client,
            server_hostname="localhost",
            reset_on_error=True,
        )
        await cut_off(stream.do_handshake)
        stream._closing.start(after_error=True)
        await until(lambda: stream._closing._phase is Phase.DELIVERING)
        if child := fork():
            status = exit_status(child)
            os._exit(status or int(is_gone(stream.transport_stream.socket.fileno())))
        kept.extend([stream, theirs])

    def parent() -> None:
        logging.getLogger("ringtls").addHandler(Handler())
        trio.run(main)
        assert not said

    kept: list[object] = []
    in_child(parent)


def test_c14_a_run_of_its_own_in_a_child(contexts: Contexts, meet: Meet) -> None:
    """The child of a process that has had runs can have its own."""

    async def main() -> None:
        stream, peer = await meet(contexts)
        async with stream:
            await stream.send_all(b"x")
        assert (await in_thread(peer.end)).is_clean

    trio.run(main)
    in_child(lambda: trio.run(main))


async def test_c14_fork(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)

    def misuse() -> None:
        for use in (
            lambda: stream.send_all(b"from the child").send(None),
            stream.close_unclean,
            lambda: stream.aclose().send(None),
        ):
            with pytest.raises(RuntimeError, match="parent"):
                use()

    in_child(misuse)
    await stream.send_all(b"from the parent")
    await stream.aclose()
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"from the parent"
