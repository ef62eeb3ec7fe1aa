"""C1, C3, C9, C11: the bounds hold when it is the network that fails, between two hosts."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TruncationError

from ..conftest import Contexts
from ..support.hosts import (
    DEVICE,
    THEIR_ADDRESS,
    Host,
    Hosts,
)
from ..support.peer import End, Meet, Transport
from ..support.streams import open_fds

#: Seconds that an end may take in these tests, if it is to be cut short.
TIMEOUT = 0.5

#: Seconds that are plenty for a test, and little for TCP, which gives up after many minutes.
PLENTY = 30.0

#: More than fits into the small buffers below, and less than makes a sender wait.
DATA = bytes(range(256)) * 400
SMALL = 16384


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    try:
        hosts = Hosts()
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"two hosts can't be made: {error}")
    yield hosts
    hosts.shut_down()


@pytest.fixture
def stranger(hosts: Hosts) -> Iterator[Host]:
    """A host that knows of no connections."""
    host = Host()
    yield host
    host.shut_down()


Change = Callable[[Hosts], None]


def cut(hosts: Hosts) -> None:
    hosts.theirs.ip(f"link set {DEVICE} down")


def mend(hosts: Hosts) -> None:
    hosts.theirs.ip(f"link set {DEVICE} up")


def lose_address(hosts: Hosts) -> None:
    hosts.theirs.ip(f"address flush dev {DEVICE}")


def regain_address(hosts: Hosts) -> None:
    hosts.theirs.plug_in(THEIR_ADDRESS)


def fail_over(stranger: Host, hosts: Hosts) -> None:
    """Their address goes to the stranger, who answers whatever comes with RST."""
    hosts.theirs.ip(f"link set {DEVICE} netns {stranger.thread_id}")
    stranger.plug_in(THEIR_ADDRESS)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """A run that ends in bounded time and leaves no file descriptor (C9)."""

    async def bounded() -> None:
        with trio.fail_after(PLENTY):
            await main()

    fds = open_fds()
    start = time.monotonic()
    trio.run(bounded)
    assert time.monotonic() - start < PLENTY
    assert open_fds() == fds


async def end_amid(
    contexts: Contexts,
    meet: Meet,
    hosts: Hosts,
    shutdown_timeout: float,
    change: Change,
    undo: Change | None = None,
) -> tuple[CloseOutcome | None, End]:
    """Close while the peer does not read; change the network; only then let the peer read."""
    stream, peer = await meet(
        contexts, buffer_size=SMALL, shutdown_timeout=shutdown_timeout, pair=hosts.tcp_pair
    )
    await stream.send_all(DATA)
    ends: list[End] = []
    async with trio.open_nursery() as peers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            await trio.testing.wait_all_tasks_blocked()
            assert stream.close_outcome is None
            change(hosts)
            peers.start_soon(in_thread, lambda: ends.append(peer.end()))
            if undo is not None:
                await trio.sleep(TIMEOUT / 4)
                assert stream.close_outcome is None
                undo(hosts)
        if undo is None:  # nothing reaches the peer any more
            peer.sock.shutdown(socket.SHUT_RD)
    return stream.close_outcome, ends[0]


@pytest.mark.parametrize("change", [cut, lose_address])
def test_c3_the_peer_is_unreachable_from_amid_the_end(
    contexts: Contexts, meet: Meet, hosts: Hosts, change: Change
) -> None:
    async def main() -> None:
        outcome, end = await end_amid(contexts, meet, hosts, TIMEOUT, change)
        assert outcome is CloseOutcome.TIMED_OUT
        assert not end.close_notify
        assert DATA.startswith(end.data)

    run(main)


@pytest.mark.parametrize(("change", "undo"), [(cut, mend), (lose_address, regain_address)])
def test_c1_the_peer_is_unreachable_for_a_moment(
    contexts: Contexts, meet: Meet, hosts: Hosts, change: Change, undo: Change
) -> None:
    async def main() -> None:
        outcome, end = await end_amid(contexts, meet, hosts, PLENTY, change, undo)
        assert outcome is CloseOutcome.CLEAN
        assert end.is_clean
        assert end.data == DATA

    run(main)


def test_c3_reset_amid_the_end(
    contexts: Contexts, meet: Meet, hosts: Hosts, stranger: Host
) -> None:
    async def main() -> None:
        change = functools.partial(fail_over, stranger)
        outcome, end = await end_amid(contexts, meet, hosts, PLENTY, change)
        assert outcome is CloseOutcome.PEER_RESET
        assert not end.close_notify

    run(main)


def test_c11_reset_while_receiving(
    contexts: Contexts, meet: Meet, hosts: Hosts, stranger: Host
) -> None:
    async def main() -> None:
        stream, peer = await meet(contexts, https_compatible=True, pair=hosts.tcp_pair)
        fail_over(stranger, hosts)
        await stream.send_all(b"anybody there?")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert not isinstance(caught.value, TruncationError)
        await stream.aclose()
        assert stream.close_outcome is CloseOutcome.PEER_RESET
        peer.sock.close()

    run(main)


@pytest.mark.parametrize("change", [cut, lose_address])
def test_c9_the_peer_is_unreachable_before_the_end(
    contexts: Contexts, meet: Meet, hosts: Hosts, change: Change
) -> None:
    """The kernel takes in all that is left, and that is as much as this side can know."""

    async def main() -> None:
        stream, peer = await meet(contexts, shutdown_timeout=TIMEOUT, pair=hosts.tcp_pair)
        change(hosts)
        await stream.send_all(b"into the void")
        await stream.aclose()
        assert stream.close_outcome is CloseOutcome.CLEAN
        peer.sock.shutdown(socket.SHUT_RD)
        end = peer.end()
        assert (end.data, end.close_notify, end.transport) == (b"", False, Transport.FIN)

    run(main)


@pytest.mark.parametrize(
    ("mtu", "buffer_size"), [(128, None), (1500, 2304)], ids=["tiny MTU", "slow link"]
)
def test_c1_all_arrives(
    contexts: Contexts, meet: Meet, hosts: Hosts, mtu: int, buffer_size: int | None
) -> None:
    for host in (hosts.ours, hosts.theirs):
        host.ip(f"link set {DEVICE} mtu {mtu}")

    async def main() -> None:
        stream, peer = await meet(
            contexts, buffer_size=buffer_size, shutdown_timeout=PLENTY, pair=hosts.tcp_pair
        )
        ends: list[End] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: ends.append(peer.end()))
            for _ in range(5):
                await stream.send_all(DATA)
            await stream.aclose()
        assert stream.close_outcome is CloseOutcome.CLEAN
        assert ends[0].is_clean
        assert ends[0].data == DATA * 5

    run(main)
