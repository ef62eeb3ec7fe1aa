"""R1, and C19 in a relay: what peers can make it hold."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ringtls import SocketStream, relay
from ringtls._streams.relay_sides import Data, TlsSide
from ringtls._transports.base import HIGH_WATER, RECEIVE_SIZE, BaseTransport
from ringtls._transports.ring import RingTransport

from ..conftest import Contexts
from ..support.relaying import (
    BLOCKING_KINDS,
    KINDS,
    Kind,
    Met,
    Saw,
    Talker,
    play,
    play_blocking,
    run_beside,
)
from ..support.streams import tls_over
from ..support.waiting import LIMIT
from .test_bounds import MANY, MOST_ON_TOP, records_of
from .test_bounds import logged as logged
from .test_bounds import unsent as unsent
from .test_relay import POOL

#: More bytes than the kernel and the relay hold together. The sockets' buffers are as usual: where
#: both ends of a connection are full of little, Linux drops acknowledgements, too.
FLOOD = 4 * POOL


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a side takes no more."""
    event = threading.Event()
    is_full = TlsSide.is_full

    def watched(self: TlsSide) -> bool:
        found = is_full(self)
        if found:
            event.set()
        return found

    monkeypatch.setattr(TlsSide, "is_full", watched)
    return event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a side is read no more, as it has TLS answer too much."""
    event = threading.Event()
    answers_too_much = BaseTransport.answers_too_much

    def watched(self: BaseTransport) -> bool:
        found = answers_too_much(self)
        if found:
            event.set()
        return found

    monkeypatch.setattr(BaseTransport, "answers_too_much", watched)
    return event


@pytest.mark.parametrize(
    ("kinds", "play_face"),
    [
        pytest.param((KINDS[0], KINDS[1]), play, id="ring"),
        pytest.param((KINDS[2], KINDS[3]), play, id="adapter", marks=pytest.mark.long),
        pytest.param(
            (BLOCKING_KINDS[0], BLOCKING_KINDS[1]),
            play_blocking,
            id="blocking",
            marks=pytest.mark.long,
        ),
    ],
)
def test_c19_a_relay_answers_no_more_than_is_taken_in(
    logged: Contexts,
    full: threading.Event,
    held: threading.Event,
    unsent: list[int],
    kinds: tuple[Kind, Kind],
    play_face: Callable[..., Met],
) -> None:
    """The backend floods, and the client reads nothing and asks for answers."""
    has_all = threading.Event()

    def client(talker: Talker) -> None:
        records = records_of(logged)
        storm = records.key_updates(MANY) + records.data(b"after them")
        assert full.wait(LIMIT)

        def read() -> None:
            assert held.wait(LIMIT)
            with suppress(ConnectionError):
                while talker.sock.recv(65536):
                    pass

        join = run_beside([partial(talker.sock.sendall, storm), read])
        assert has_all.wait(LIMIT)
        talker.sock.shutdown(socket.SHUT_RDWR)
        join()

    def backend(talker: Talker) -> Saw:
        talker.send(bytes(FLOOD))
        data = talker.receive(len(b"after them"))
        has_all.set()
        return Saw(data, talker.read().end)

    met = play_face(logged, kinds, client, backend)
    assert met.backend is not None
    assert met.backend.data == b"after them"
    assert HIGH_WATER <= max(unsent) <= HIGH_WATER + POOL + MOST_ON_TOP


async def test_r1_a_source_that_fills_a_buffer_is_paused_at_once(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its target has room: so no more of the pool's buffers wait for a target without."""
    still_receiving: list[bool] = []
    take = TlsSide.take

    def watched(self: TlsSide, view: Data) -> None:
        size = len(view)
        pauses.clear()
        take(self, view)
        if size == RECEIVE_SIZE:
            still_receiving.append(not pauses)

    pauses: list[RingTransport] = []
    pause = RingTransport.pause

    def noted(self: RingTransport) -> None:
        pauses.append(self)
        pause(self)

    monkeypatch.setattr(TlsSide, "take", watched)
    monkeypatch.setattr(RingTransport, "pause", noted)
    size = 3 * RECEIVE_SIZE // 2  # a local socket has room for it
    ours, theirs = socket.socketpair()
    client, server = tls_over(SocketStream(ours), SocketStream(theirs), contexts)
    target, backend = map(SocketStream, socket.socketpair())
    async with client, backend, trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        await server.do_handshake()
        nursery.start_soon(relay, server, target)
        await wait_all_tasks_blocked()
        await client.send_all(bytes(size))
        received = 0
        while received < size:
            received += len(await backend.receive_some())
        await client.aclose()
        await backend.aclose()
    assert received == size
    assert still_receiving
    assert not any(still_receiving)
