"""The figures of a run."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, statistics
from ringtls._drivers.trio import TrioDriver

from .conftest import Contexts
from .support import peer
from .support.engines import ENGINE
from .support.peer import Meet
from .support.streams import handshaken, reset, socket_streams, tls_over
from .support.waiting import cut_off, until


@pytest.mark.ringtls_allow_unclosed
async def test_connections_and_their_ends(contexts: Contexts, meet: Meet) -> None:
    assert statistics().connections_open == 0
    clean, clean_peer = await meet(contexts)
    unclean, unclean_peer = await meet(contexts)
    dropped, dropped_peer = await meet(contexts)
    assert statistics().connections_open == 3
    sent, received = statistics().bytes_sent, statistics().bytes_received
    await in_thread(clean_peer.send, bytes(1000))
    await clean.receive_some()
    assert statistics().bytes_received > received + 1000
    await clean.send_all(bytes(1000))
    await clean.aclose()
    assert statistics().bytes_sent > sent + 1000
    unclean.close_unclean()
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        del dropped
        gc.collect()
    for each in (clean_peer, unclean_peer, dropped_peer):
        await in_thread(each.end)
    await until(lambda: not statistics().connections_closing)
    figures = statistics()
    assert figures.connections_open == 0
    assert figures.orphans_adopted == 1
    assert figures.closings == {CloseOutcome.CLEAN: 2, CloseOutcome.UNCLEAN: 1}


async def test_the_engine() -> None:
    assert statistics().engine is None
    client, server = await socket_streams()
    async with client, server:
        assert statistics().engine == ENGINE


async def test_handshakes_by_what_they_came_to(versioned_contexts: Contexts) -> None:
    version = versioned_contexts.client.minimum_version.name.replace("_", ".")
    client, server = await handshaken(versioned_contexts)
    await server.send_all(b"with the ticket, if that is TLS 1.3")
    await client.receive_some()
    cipher = client.cipher()
    assert cipher is not None
    assert statistics().handshakes == {(version, cipher[0], False): 2}
    session = client.session
    for stream in client, server:
        await stream.aclose()
    client, server = tls_over(*await socket_streams(), versioned_contexts)
    client.session = session
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    await client.do_handshake()  # is not another
    assert statistics().handshakes == {
        (version, cipher[0], False): 2,
        (version, cipher[0], True): 2,
    }
    assert not statistics().handshake_failures
    for stream in client, server:
        await stream.aclose()


async def test_failed_handshakes_by_why(contexts: Contexts, meet: Meet) -> None:
    suspicious, vain = await meet(contexts, server_side=False, handshake=False)
    vain.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    left, gone = await meet(contexts, handshake=False)
    gone.sock.close()
    broken, reset_by = await meet(contexts, server_side=False, handshake=False)
    await cut_off(broken.do_handshake)  # it has sent something
    reset(reset_by.sock)
    never, silent = await meet(contexts, handshake=False)
    for stream in suspicious, left, broken:
        async with stream:
            for _ in range(2):
                with pytest.raises(trio.BrokenResourceError):
                    await stream.do_handshake()
    await never.aclose()
    assert statistics().handshake_failures == {
        "WRONG_VERSION_NUMBER": 1,
        "UNEXPECTED_EOF_WHILE_READING": 1,
        "connection": 1,
    }
    assert not statistics().handshakes
    vain.sock.close()
    silent.sock.close()


async def test_two_who_wait_for_one_handshake(contexts: Contexts) -> None:
    """It fails once."""
    stream, peer_ = await peer.meet(contexts, server_side=False, handshake=False)

    async def fails(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await call()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(fails, stream.receive_some)
        nursery.start_soon(fails, partial(stream.send_all, b"x"))
        await wait_all_tasks_blocked()
        reset(peer_.sock)
    assert statistics().handshake_failures == {"connection": 1}


async def test_operations(contexts: Contexts) -> None:
    stream, stalled = await peer.meet(contexts)
    assert statistics().operations_submitted > 0
    await cut_off(stream.receive_some)
    assert statistics().operations_in_flight == 1  # for whoever receives next
    assert statistics().completion_queue_overflows == 0
    stream.close_unclean()
    await until(lambda: not statistics().operations_in_flight)
    stalled.sock.close()


@pytest.mark.ringtls_allow_unclosed
async def test_after_the_ring_has_failed(contexts: Contexts) -> None:
    """Just then one wants to know."""
    stream, vain = await peer.meet(contexts)
    before = statistics()
    TrioDriver.current()._fail(RuntimeError("made up"))
    after = statistics()
    assert after.operations_submitted == before.operations_submitted
    assert after.connections_open == before.connections_open
    stream.close_unclean()
    assert statistics().connections_open == 0
    vain.sock.close()


async def test_without_a_ring() -> None:
    assert statistics().operations_submitted == 0
    assert TrioDriver.current()._ring is None
