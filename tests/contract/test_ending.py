"""C1, C2, C3, C4, C6, C7, C9, C15: the order, the shield, the bound of a connection's end."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TlsStream, statistics

from ..conftest import Contexts
from ..support.clogging import SMALL, clog
from ..support.peer import End, Meet, Peer, Transport
from ..support.streams import socket_streams, tls_over
from ..support.waiting import LIMIT, cut_off, until

Leave = Callable[[TlsStream], Awaitable[None]]


async def leave_by_return(stream: TlsStream) -> None:
    async with stream:
        await stream.send_all(b"last words")


async def leave_by_exception(stream: TlsStream) -> None:
    with pytest.raises(KeyError):
        async with stream:
            await stream.send_all(b"last words")
            raise KeyError


async def leave_by_break(stream: TlsStream) -> None:
    while True:
        async with stream:
            await stream.send_all(b"last words")
            break


async def leave_by_cancellation(stream: TlsStream) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            await stream.send_all(b"last words")
            scope.cancel()
            await stream.receive_some()
    assert scope.cancelled_caught


async def leave_by_cancelled_aclose(stream: TlsStream) -> None:
    await stream.send_all(b"last words")
    await trio.aclose_forcefully(stream)


LEAVES = [
    leave_by_return,
    leave_by_exception,
    leave_by_break,
    leave_by_cancellation,
    leave_by_cancelled_aclose,
]


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("server_side", [True, False])
async def test_c1_order(
    versioned_contexts: Contexts, meet: Meet, server_side: bool, leave: Leave
) -> None:
    stream, peer = await meet(versioned_contexts, server_side=server_side)
    await leave(stream)
    end = await in_thread(peer.end)
    assert end.is_clean, end
    assert end.data == b"last words"
    assert stream.close_outcome is CloseOutcome.CLEAN


async def test_c1_all_that_was_accepted_goes_first(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    data = bytes(range(256)) * 1000
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with stream:
                await stream.send_all(data)

        nursery.start_soon(serve)
        end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == data


async def test_c2_a_close_is_not_a_cancellation_point(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    reached = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
        reached.append("after aclose")
        await trio.lowlevel.checkpoint()
        reached.append("after the checkpoint")
    assert reached == ["after aclose"]
    assert (await in_thread(peer.end)).is_clean


async def test_c2_the_end_of_a_socket_stream_is_not_stopped_by_a_cancellation() -> None:
    """Its ``aclose`` ends with a checkpoint, as trio's does."""
    stream, peer = await socket_streams()
    with trio.CancelScope() as scope:
        scope.cancel()
        started = stream.start_send(b"last words")
        await stream.aclose()
    assert scope.cancelled_caught
    async with peer:
        assert await peer.receive_some(4) == b"last"
        assert await peer.receive_some() == b" words"
        assert await peer.receive_some() == b""
    assert await started == len(b"last words")


async def test_c2_a_deadline_does_not_end_a_close(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await clog(stream)
    scope = trio.CancelScope()

    async def close() -> None:
        with scope:
            await stream.aclose()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        scope.deadline = trio.current_time()
        await until(lambda: scope.cancel_called)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.close_outcome is None  # the deadline has passed, the peer not read
        end = await in_thread(peer.end)
    assert scope.cancelled_caught
    assert end.is_clean
    assert stream.close_outcome is CloseOutcome.CLEAN


@pytest.mark.parametrize("where", ["in a receive", "in the close"])
def test_c2_keyboard_interrupt(contexts: Contexts, meet: Meet, where: str) -> None:
    ends: list[End] = []

    async def main() -> None:
        stream, peer = await meet(contexts, buffer_size=SMALL)
        async with trio.open_nursery() as nursery:

            async def read_later() -> None:
                with trio.CancelScope(shield=True):
                    await interrupted.wait()
                    ends.append(await in_thread(peer.end))

            interrupted = trio.Event()
            nursery.start_soon(read_later)
            async with stream:
                await clog(stream)
                nursery.start_soon(interrupt, interrupted)
                if where == "in a receive":
                    await stream.receive_some()
            await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection  # so that it reaches the main task
    async def interrupt(interrupted: trio.Event) -> None:
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
        interrupted.set()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert ends[0].is_clean


async def test_c3_a_peer_that_never_reads_is_reset(
    contexts: Contexts, meet: Meet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ringtls")
    stream, peer = await meet(contexts, buffer_size=SMALL, shutdown_timeout=0.1)
    await clog(stream)
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.TIMED_OUT
    end = await in_thread(peer.end)
    assert end.transport is Transport.RST
    assert not end.close_notify
    assert "timed out" in caplog.text
    await until(lambda: not statistics().connections_closing)
    assert statistics().closings == {CloseOutcome.TIMED_OUT: 1}


async def test_c3_five_seconds_by_default(contexts: Contexts) -> None:
    for stream in tls_over(*await socket_streams(), contexts):
        assert stream.shutdown_timeout == 5
        await stream.aclose()


async def test_c3_timeout_of_one_call(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL, shutdown_timeout=60)
    await clog(stream)
    await stream.aclose(shutdown_timeout=0.1)
    assert stream.close_outcome is CloseOutcome.TIMED_OUT
    peer.sock.close()


async def test_c3_any_timeout(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, shutdown_timeout=math.inf)
    for wrong in (-1, math.nan, 10**400):
        with pytest.raises(ValueError, match="timeout"):
            stream.shutdown_timeout = wrong
        with pytest.raises(ValueError, match="timeout"):
            await stream.aclose(shutdown_timeout=wrong)
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


async def test_c3_no_time_at_all(contexts: Contexts, meet: Meet) -> None:
    """There is one try, and a peer that takes it in gets a clean end."""
    stream, peer = await meet(contexts)
    await stream.send_all(b"last words")
    await stream.aclose(shutdown_timeout=0)
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert (await in_thread(peer.end)).is_clean


async def test_c3_a_peer_that_is_gone_is_no_error(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    peer.vanish()
    await stream.send_all(b"to nobody")
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.PEER_RESET


async def test_c4_closing_again_does_nothing(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    await stream.aclose()
    await stream.aclose()
    end = await in_thread(peer.end)
    assert end.is_clean  # and so there was one close_notify


async def test_c4_two_tasks_close_once_and_both_wait(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await clog(stream)
    outcomes = []

    async def close() -> None:
        await stream.aclose()
        outcomes.append(stream.close_outcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not outcomes
        end = await in_thread(peer.end)
    assert outcomes == [CloseOutcome.CLEAN, CloseOutcome.CLEAN]
    assert end.is_clean


@pytest.mark.parametrize("what", ["receive_some", "send_all", "wait_send_all_might_not_block"])
async def test_c4_others_wake(contexts: Contexts, meet: Meet, what: str) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await clog(stream)
    woken = []

    async def blocked() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await (stream.send_all(bytes(10**6)) if what == "send_all" else getattr(stream, what)())
        woken.append(stream.close_outcome)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocked)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [None]  # at once, and not when the close is done
        await in_thread(peer.end)


@pytest.mark.parametrize("server_side", [True, False])
async def test_c6_before_the_handshake_there_is_fin_only(
    contexts: Contexts, meet: Meet, server_side: bool
) -> None:
    stream, peer = await meet(contexts, server_side=server_side, handshake=False)
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    assert await in_thread(peer.sock.recv, 100) == b""
    peer.sock.close()


async def test_c6_in_the_middle_of_the_handshake(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, server_side=False, handshake=False)

    async def talk() -> None:
        async with stream:
            await stream.do_handshake()

    await cut_off(talk)
    assert stream.close_outcome is CloseOutcome.BEFORE_HANDSHAKE
    hello = await in_thread(peer.sock.recv, 65536)
    assert hello[:1] == b"\x16"
    assert await in_thread(peer.sock.recv, 100) == b""
    peer.sock.close()


async def test_c7_a_cancelled_send_leaves_the_stream_usable(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    sent = bytes(range(251)) * 12_000
    await cut_off(stream.send_all, sent)
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            async with stream:
                await stream.send_all(b"more")

        nursery.start_soon(go_on)
        end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data.endswith(b"more")
    assert sent.startswith(end.data[:-4])


class OnTaskExit(trio.abc.Instrument):
    """Calls a function when a task has ended."""

    def __init__(self, task: trio.lowlevel.Task, function: Callable[[], object]) -> None:
        self._task = task
        self._function = function

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._function()


def test_c9_the_run_waits_for_its_closings(contexts: Contexts, meet: Meet) -> None:
    ends: list[End] = []

    def read_late(peer: Peer) -> None:
        main_has_ended.wait(LIMIT)
        ends.append(peer.end())

    async def main() -> threading.Thread:
        stream, peer = await meet(contexts, buffer_size=SMALL)
        await clog(stream)
        thread = threading.Thread(target=read_late, args=(peer,))
        thread.start()
        stream_holder.append(stream)
        trio.lowlevel.spawn_system_task(stream.aclose)
        trio.lowlevel.add_instrument(OnTaskExit(trio.lowlevel.current_task(), main_has_ended.set))
        return thread

    main_has_ended = threading.Event()
    stream_holder: list[TlsStream] = []
    thread = trio.run(main)
    assert stream_holder[0].close_outcome is CloseOutcome.CLEAN
    thread.join()
    assert ends[0].is_clean


def test_c9_async_generator_finalizers(contexts: Contexts, meet: Meet) -> None:
    peers = []
    streams = []

    async def lines() -> AsyncIterator[bytes]:
        stream, peer = await meet(contexts)
        peers.append(peer)
        streams.append(stream)
        async with stream:
            await stream.send_all(b"first")
            yield b"first"
            raise AssertionError("the generator is never resumed")

    generators = []  # so that only the end of the run finalizes it

    async def main() -> None:
        generator = lines()
        generators.append(generator)
        assert await anext(generator) == b"first"

    trio.run(main)
    assert streams[0].close_outcome is CloseOutcome.CLEAN
    end = peers[0].end()
    assert end.is_clean
    assert end.data == b"first"


async def test_c15_sync_use(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    with pytest.raises(TypeError, match="async with"), stream:
        pass
    await stream.aclose()
    peer.sock.close()
