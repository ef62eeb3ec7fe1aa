"""C3, A2: an end is bounded in real time, whatever the run's clock, or a patched one, says."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import (
    AsyncDestructor,
    CloseOutcome,
    RingUnavailableError,
    _combinators,
    aclose_all,
)
from ringtls._drivers.trio import TrioDriver
from ringtls._streams.session import TlsSession

from ..conftest import Contexts
from ..support.clogging import SMALL, clog
from ..support.faces import Face, TimeoutFace, TrioFace
from ..support.peer import Meet, Peer, Transport
from ..support.streams import tcp_pair
from ..support.waiting import when_all_wait
from .test_streams_below import faulty


class Frozen(trio.abc.Clock):
    """As trio's own where time.perf_counter is patched: trio sleeps, and the clock does not go."""

    def start_clock(self) -> None:
        """It does not."""

    def current_time(self) -> float:
        return 0.0

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline


standing_clocks = pytest.mark.parametrize("clock", [trio.testing.MockClock, Frozen])

#: Seconds that an end may take here.
SHORTLY = 0.05


@standing_clocks
def test_c3_a_peer_that_reads_nothing_where_the_clock_stands_still(
    contexts: Contexts, meet: Meet, clock: Callable[[], trio.abc.Clock]
) -> None:
    async def main() -> None:
        stream, peer = await meet(contexts, buffer_size=SMALL)
        await clog(stream)
        await stream.aclose(shutdown_timeout=SHORTLY)
        assert stream.close_outcome is CloseOutcome.TIMED_OUT
        assert (await in_thread(peer.end)).transport is Transport.RST

    trio.run(main, clock=clock())


@standing_clocks
def test_c3_c21_a_delivery_where_the_clock_stands_still(
    contexts: Contexts, meet: Meet, clock: Callable[[], trio.abc.Clock]
) -> None:
    """What the peer's TCP has is looked at again and again."""

    async def main() -> None:
        stream, peer = await meet(contexts, buffer_size=SMALL)
        stream.reset_on_error = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, peer.receive, 2 * SMALL)
            with pytest.raises(KeyError):
                async with stream:
                    await stream.send_all(bytes(2 * SMALL))
                    raise KeyError
        assert (await in_thread(peer.end)).transport is Transport.RST
        assert stream.close_outcome is CloseOutcome.BROKEN_OFF

    trio.run(main, clock=clock())


@standing_clocks
def test_c3_c10_a_peer_that_never_ends_where_the_clock_stands_still(
    contexts: Contexts, meet: Meet, clock: Callable[[], trio.abc.Clock]
) -> None:
    """The run does not wait for it for long."""
    peers: list[Peer] = []

    async def main() -> None:
        stream, peer = await meet(contexts, shutdown_timeout=SHORTLY)
        peers.append(peer)
        await stream.aclose()
        assert stream.close_outcome is CloseOutcome.CLEAN

    trio.run(main, clock=clock())
    assert peers[0].end().is_clean


@standing_clocks
def test_c3_a_stream_below_that_hangs_where_the_clock_stands_still(
    contexts: Contexts, clock: Callable[[], trio.abc.Clock]
) -> None:
    async def main() -> None:
        below, client, server = await faulty(contexts)
        below.send_eof = trio.sleep_forever  # type: ignore[method-assign]
        await client.aclose(shutdown_timeout=SHORTLY)
        assert client.close_outcome is CloseOutcome.TIMED_OUT
        assert below.is_closed
        await server.aclose(shutdown_timeout=SHORTLY)

    trio.run(main, clock=clock())


@standing_clocks
@pytest.mark.parametrize("why", ["unavailable", "failed"])
def test_c3_the_clock_stands_still_and_there_is_no_ring(
    contexts: Contexts,
    monkeypatch: pytest.MonkeyPatch,
    clock: Callable[[], trio.abc.Clock],
    why: str,
) -> None:
    """Who can't be woken in time does not sleep."""

    def refuse(wakeup_fd: int) -> NoReturn:
        raise RingUnavailableError

    async def main() -> None:
        _, client, server = await faulty(contexts)
        if why == "failed":
            TrioDriver.current().ring.fail(OSError("made up"))
        await client.aclose(shutdown_timeout=SHORTLY)
        assert client.close_outcome is CloseOutcome.CLEAN
        await server.aclose(shutdown_timeout=SHORTLY)

    if why == "unavailable":
        monkeypatch.setattr("ringtls._drivers.trio.open_for_event_loop", refuse)
    trio.run(main, clock=clock())


class Endless(AsyncDestructor):
    destroy_timeout = SHORTLY

    async def adestroy(self) -> None:
        await trio.sleep_forever()


class EndlessResource(trio.abc.AsyncResource):
    async def aclose(self) -> None:
        await trio.sleep_forever()


class Owner(AsyncDestructor):
    def __init__(self) -> None:
        self.resource = EndlessResource()


@standing_clocks
def test_a2_where_the_clock_stands_still(clock: Callable[[], trio.abc.Clock]) -> None:
    async def main() -> None:
        await Endless().aclose()

    trio.run(main, clock=clock())


def test_a2_where_the_clock_stands_still_and_no_ring_can_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        await Endless().aclose()

    monkeypatch.setenv("RINGTLS_ENGINE", "kqueue")
    trio.run(main, clock=trio.testing.MockClock())


@standing_clocks
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("cls", [Endless, Owner])
def test_a2_a3_the_end_of_a_run_whose_clock_stands_still(
    clock: Callable[[], trio.abc.Clock],
    cls: type[AsyncDestructor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_combinators, "GRACE", SHORTLY)
    kept = []

    async def main() -> None:
        cls()
        kept.append(cls())

    trio.run(main, clock=clock())


@standing_clocks
@pytest.mark.parametrize("is_late", [False, True])
def test_d1_cancelled_where_the_clock_stands_still(
    clock: Callable[[], trio.abc.Clock], is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_combinators, "GRACE", SHORTLY)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if is_late:
                nursery.start_soon(when_all_wait, nursery.cancel_scope.cancel)
            else:
                nursery.cancel_scope.cancel()
            await aclose_all(EndlessResource())

    trio.run(main, clock=clock())


async def test_d1_cancelled_and_there_is_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The run's clock does it alone."""

    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(TrioDriver, "current", refuse)
    with trio.CancelScope() as scope:
        scope.cancel()
        await aclose_all(EndlessResource())


def raising() -> NoReturn:
    raise RuntimeError("a patched clock")


def fail(session: TlsSession, *, keep_unread: bool) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize("patched", [lambda: 0.0, raising], ids=["stands still", "raises"])
@pytest.mark.parametrize("how", ["in time", "crashed"])
@pytest.mark.parametrize("face", [TrioFace, TimeoutFace])
def test_c3_c16_a_patched_clock(
    contexts: Contexts,
    monkeypatch: pytest.MonkeyPatch,
    face: Callable[[socket.socket, Contexts], Face],
    how: str,
    patched: Callable[[], float],
) -> None:
    """The peer reads nothing; or something raises in the end."""
    outcomes: list[CloseOutcome | None] = []

    async def story(face: Face) -> None:
        stream = face.stream(shutdown_timeout=SHORTLY)
        await stream.do_handshake()
        await face.interrupted(stream, partial(stream.send_all, bytes(1_000_000)))
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", patched)
            if how == "crashed":
                patch.setattr(TlsSession, "close_output", fail)
                with pytest.raises(MemoryError):
                    await stream.aclose()
            await stream.aclose()
        outcomes.append(stream.close_outcome)

    ours, theirs = tcp_pair(SMALL)
    peer = Peer(theirs, contexts, server_side=False)
    thread = threading.Thread(target=peer.handshake)
    thread.start()
    face(ours, contexts).play(story)
    thread.join()
    assert outcomes == [CloseOutcome.CRASHED if how == "crashed" else CloseOutcome.TIMED_OUT]
    assert peer.end().transport is Transport.RST


#: A timer of the ring that ends when it should, and not before.
TIMER = """
from ringtls._clock import now
from ringtls._engine.ring import Ring
ring = Ring()
deadline = now() + 0.1
timer = ring.timer(deadline)
while not timer.is_over:
    ring.wait(60)
    ring.reap()
    assert timer.is_over or now() < deadline + 30
assert now() >= deadline
"""


@pytest.mark.parametrize("offset", [100_000, -1])
def test_c3_in_a_time_namespace(offset: int) -> None:
    """Whose clock is another than the kernel's (time_namespaces(7))."""
    apart = ["unshare", "--user", "--map-root-user", "--time", "--fork", f"--monotonic={offset}"]
    try:
        possible = (
            subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no time namespace can be made here")
    subprocess.run([*apart, sys.executable, "-c", TIMER], check=True)
