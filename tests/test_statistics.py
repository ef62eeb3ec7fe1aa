"""The figures of a run."""

from __future__ import annotations

import gc

import pytest
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, statistics
from ringtls._drivers.trio import TrioDriver

from .conftest import Contexts
from .support import peer
from .support.peer import Meet
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
