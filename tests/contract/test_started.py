"""D4, H1, H3, H4, H5: operations that are started and awaited later, or never."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import (
    CloseOutcome,
    Operation,
    SocketListener,
    SocketStream,
    TlsStream,
    must_complete,
)
from ringtls._drivers.trio import TrioDriver
from ringtls._engine.ring import Ring
from ringtls._streams import leaks as _unclosed

from ..conftest import Contexts
from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.processes import in_child
from ..support.streams import open_fds, reset, socket_streams, tcp_pair
from ..support.waiting import LIMIT, cut_off, until, when_all_wait

Pair = tuple[SocketStream, SocketStream]

#: More than the kernel takes at once, with small buffers.
LARGE = bytes(range(256)) * 12_000


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    left, right = await socket_streams()
    async with left, right:
        yield left, right


@pytest.fixture
async def small_pair() -> AsyncIterator[Pair]:
    left, right = await socket_streams(buffer_size=32768)
    async with left, right:
        yield left, right


async def until_done(operation: Operation[object]) -> None:
    with trio.fail_after(LIMIT):
        while not operation.done:  # a sleep may leave its frames behind, and they the operation
            await trio.lowlevel.checkpoint()


async def until_idle() -> None:
    ring = TrioDriver.current().ring
    await until(lambda: not ring.in_flight)


async def test_d4_it_happens_without_being_awaited(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    sending = left.start_send(b"hello")
    assert not receiving.done
    await until_done(receiving)
    await until_done(sending)
    assert await sending == 5
    assert await receiving == b"hello"
    await left.send_eof()
    assert await right.start_receive() == b""
    assert await right.start_receive(3) == b""
    assert await right.start_send(b"") == 0


async def test_d4_awaited_while_in_flight(pair: Pair) -> None:
    left, right = pair
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await right.start_receive(2) == b"ab"
            assert await right.start_receive() == b"c"

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(left.start_send(memoryview(b"abc")).wait)


async def test_d4_accept() -> None:
    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as listener:
        operations = [listener.start_accept() for _ in range(3)]
        address = listener.socket.getsockname()
        clients = [socket.create_connection(address) for _ in range(3)]
        accepted = [await operation for operation in operations]
        ports = {stream.socket.getpeername()[1] for stream in accepted}
        assert ports == {client.getsockname()[1] for client in clients}
        for client, stream in zip(clients, accepted, strict=True):
            client.close()
            await stream.aclose()


async def test_d4_in_a_nursery_that_is_cancelled(pair: Pair) -> None:
    left, right = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.start_receive().wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"


async def test_d4_must_complete(pair: Pair) -> None:
    left, right = pair
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                received.append(await must_complete(right.start_receive().wait))

        received: list[bytes] = []
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await left.send_all(b"x")
    assert received == [b"x"]


async def test_d4_one_at_a_time_in_each_direction(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    in_flight = "still in flight: <recv on fd .*, SUBMITTED>"
    with pytest.raises(trio.BusyResourceError, match=in_flight):
        right.start_receive()
    with pytest.raises(trio.BusyResourceError, match=in_flight):
        await right.receive_some()
    with pytest.raises(trio.BusyResourceError, match=in_flight):
        await right.receive_into(bytearray(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiving.wait)
        await left.send_all(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
            right.start_receive()
        await left.send_all(b"x")


async def test_d4_nothing_in_flight_is_put_below_tls(contexts: Contexts, pair: Pair) -> None:
    left, right = pair
    receiving = left.start_receive()
    with pytest.raises(trio.BusyResourceError, match="in flight"):
        TlsStream(left, contexts.client, server_hostname="localhost")
    await right.send_all(b"not TLS")
    assert await receiving == b"not TLS"


async def test_d4_sending_from_the_callers_memory(small_pair: Pair) -> None:
    """Also what is sent in several parts, and with the buffer dropped."""
    left, right = small_pair
    data = bytearray(os.urandom(3_000_000))
    sent = bytes(data)
    sending = left.start_send(data)
    with pytest.raises(BufferError):
        data.append(1)
    del data
    with pytest.raises(trio.BusyResourceError, match="send on fd"):
        await left.send_all(b"in the middle of it")
    with pytest.raises(trio.BusyResourceError, match="send on fd"):
        await left.send_eof()
    received = bytearray()
    while len(received) < len(sent):
        received += await right.receive_some()
    assert received == sent
    assert await sending == len(sent)


async def test_d4_refused_at_the_call(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(ValueError, match="max_bytes"):
        right.start_receive(0)
    with pytest.raises(TypeError):
        left.start_send("text")  # type: ignore[arg-type]
    await left.send_eof()
    with pytest.raises(trio.ClosedResourceError, match="send_eof"):
        left.start_send(b"x")
    await left.aclose()
    with pytest.raises(trio.ClosedResourceError):
        left.start_receive()
    listener = SocketListener(socket.create_server(("127.0.0.1", 0)))
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        listener.start_accept()


# H1


async def test_h1_repr(pair: Pair) -> None:
    left, right = pair
    fd = left.socket.fileno()
    sending = left.start_send(b"hello")
    assert repr(sending) == f"<Operation: <send on fd {fd}, SUBMITTED>>"
    await until_done(sending)
    assert repr(sending) == f"<Operation: <send on fd {fd}, DONE, result 5>>"
    await sending
    assert repr(sending) == f"<Operation: <send on fd {fd}, TAKEN, result 5>>"


# H3


@pytest.mark.ringtls_allow_unclosed
async def test_h3_a_dropped_receive_takes_nothing(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.warns(ResourceWarning, match=r"^recv on fd \d+, started at .*test_started\.py:\d+"):
        del receiving
    await until_idle()
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("how", ["reference", "cycle", "thread"])
async def test_h3_a_dropped_send_completes(small_pair: Pair, how: str) -> None:
    left, right = small_pair
    sent = os.urandom(3_000_000)
    holder: list[object] = [left.start_send(sent)]
    if how == "cycle":
        holder.append(holder)
    with pytest.warns(ResourceWarning, match="send on fd .* was never awaited"):
        if how == "thread":
            thread = threading.Thread(target=holder.clear)
            thread.start()
            thread.join()
        elif how == "reference":
            holder.clear()
        del holder
        gc.collect()
    received = bytearray()
    while len(received) < len(sent):
        received += await right.receive_some()
    assert received == sent
    await until_idle()


async def all_of(stream: SocketStream) -> bytes:
    received = bytearray()
    async for data in stream:
        received += data
    return bytes(received)


async def close_cancelled(stream: SocketStream) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()


async def close_its_socket(stream: SocketStream) -> None:
    stream.socket.close()


@pytest.mark.parametrize("close", [SocketStream.aclose, close_cancelled, close_its_socket])
@pytest.mark.parametrize("data", [b"GOODBYE", LARGE], ids=["small", "large"])
async def test_h3_a_send_completes_though_its_stream_is_closed(
    small_pair: Pair, data: bytes, close: Callable[[SocketStream], Awaitable[None]]
) -> None:
    """Closed at once, before the kernel has heard of it. FIN comes behind the last byte."""
    left, right = small_pair
    sending = left.start_send(data)
    await close(left)
    assert await all_of(right) == data
    assert await sending == len(data)
    await right.aclose()
    await until_idle()
    assert left._closing.outcome is CloseOutcome.CLEAN


async def test_h3_a_send_that_is_waited_for_while_its_stream_is_closed(small_pair: Pair) -> None:
    left, right = small_pair
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            assert await left.start_send(LARGE) == len(LARGE)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await left.aclose()
        assert await all_of(right) == LARGE


@pytest.mark.ringtls_allow_unclosed
async def test_h3_a_send_completes_though_all_is_dropped() -> None:
    left, right = await socket_streams(buffer_size=32768)
    holder: list[object] = [left.start_send(LARGE), left]
    del left
    with pytest.warns(ResourceWarning):
        holder.clear()
    async with right:
        assert await all_of(right) == LARGE


@pytest.mark.ringtls_allow_unclosed
def test_h3_a_send_completes_though_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer reads no sooner than the end of the run has cancelled all but sends: timers, too."""
    begins = threading.Event()
    expedite_close = Ring.expedite_close

    def expedite(ring: Ring) -> None:
        expedite_close(ring)
        begins.set()

    monkeypatch.setattr(Ring, "expedite_close", expedite)
    ours, theirs = tcp_pair(32768)
    kept: list[Operation[int]] = []
    received = bytearray()

    def read() -> None:
        with theirs:
            begins.wait(LIMIT)
            while data := theirs.recv(1 << 20):
                received.extend(data)

    async def main() -> None:
        async with SocketStream(ours) as stream:
            kept.append(stream.start_send(LARGE))

    reader = threading.Thread(target=read)
    reader.start()
    trio.run(main)
    reader.join()
    assert received == LARGE
    with pytest.warns(ResourceWarning, match="never awaited"):
        kept.clear()


async def closed_amid_a_send(left: SocketStream, right: SocketStream) -> Operation[int]:
    sending = left.start_send(LARGE)
    await left.aclose()
    assert await right.receive_some()
    return sending


async def assert_cut_off(sending: Operation[int]) -> None:
    with trio.fail_after(LIMIT), pytest.raises(trio.ClosedResourceError):
        await sending


async def test_h3_a_send_that_does_not_complete_in_time_is_no_end(small_pair: Pair) -> None:
    left, right = small_pair
    left._closing.timeout = 0.05
    sending = left.start_send(LARGE)
    await left.aclose()
    await assert_cut_off(sending)
    with pytest.raises(trio.BrokenResourceError):
        await all_of(right)
    assert left._closing.outcome is CloseOutcome.TIMED_OUT


async def test_h3_a_send_that_meets_a_reset_after_the_close(small_pair: Pair) -> None:
    left, right = small_pair
    sending = await closed_amid_a_send(left, right)
    right.close_unclean()
    await assert_cut_off(sending)
    assert left._closing.outcome is CloseOutcome.PEER_RESET


async def test_h3_a_send_whose_stream_is_reset_after_the_close(small_pair: Pair) -> None:
    left, right = small_pair
    sending = await closed_amid_a_send(left, right)
    left.close_unclean()
    await assert_cut_off(sending)
    with pytest.raises(trio.BrokenResourceError):
        await all_of(right)
    assert left._closing.outcome is CloseOutcome.UNCLEAN


@pytest.mark.parametrize("when", ["before the close", "after it"])
async def test_h3_a_send_that_is_cancelled_stays_cut_off(small_pair: Pair, when: str) -> None:
    left, right = small_pair
    sending = left.start_send(LARGE)
    assert await right.receive_some(1)
    if when == "before the close":
        sending.cancel()
        left._closing.start()
        assert left._closing.is_settled  # FIN does not wait for it
    else:
        await left.aclose()
        sending.cancel()
    with trio.fail_after(LIMIT):
        sent = await sending
    assert 0 < sent < len(LARGE)
    assert 1 + len(await all_of(right)) == sent


async def test_h3_nothing_stays_behind_a_send_after_the_close(small_pair: Pair) -> None:
    """Steps: (1) the peer takes all, and ends; (2) the limit of the end is far away still."""
    left, right = small_pair
    left._closing.timeout = 1e6
    sending = left.start_send(LARGE)
    await left.aclose()
    assert await all_of(right) == LARGE
    await right.aclose()
    await sending
    await until_idle()


async def test_h3_the_ring_fails_while_a_send_is_waited_for(small_pair: Pair) -> None:
    left, right = small_pair
    sending = left.start_send(LARGE)
    await left.aclose()
    await trio.testing.wait_all_tasks_blocked()
    TrioDriver.current()._fail(OSError("made up"))
    with pytest.raises(trio.ClosedResourceError):
        await sending
    assert left._closing.outcome is CloseOutcome.PEER_RESET
    await right.aclose()


@pytest.mark.parametrize(
    "function",
    ["RingTransport._end_send", "RingTransport._limit_send", "RingTransport._end_send_limit"],
)
def test_c16_an_exception_in_an_end_that_waits_for_a_send(function: str) -> None:
    """What reads as an end has come whole, and nobody waits for ever."""

    def play(injection: RaiseAt) -> None:
        ours, theirs = tcp_pair(32768)
        received = bytearray()
        ended = []

        def read() -> None:
            with theirs, suppress(ConnectionResetError):
                while data := theirs.recv(1 << 20):
                    received.extend(data)
                ended.append(True)

        async def main() -> None:
            stream = SocketStream(ours)
            if function.endswith("_end_send_limit"):
                stream._closing.timeout = 0
            sending = stream.start_send(LARGE)
            with suppress(InjectedError):
                await stream.aclose()
            if not function.endswith("_end_send_limit"):
                reader.start()
            with trio.fail_after(LIMIT), suppress(trio.ClosedResourceError):
                assert await sending == len(LARGE)

        reader = threading.Thread(target=read)
        with injection.tracing():
            trio.run(main)
        if function.endswith("_end_send_limit"):
            reader.start()
        reader.join()
        assert not ended or received == LARGE, injection.place

    raise_at_each_bytecode(function, play)


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("when", ["waiting", "accepted"])
async def test_h3_a_dropped_accept_leaves_no_connection(when: str) -> None:
    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as listener:
        address = listener.socket.getsockname()
        before = open_fds()
        operation = listener.start_accept()
        if when == "waiting":
            await trio.testing.wait_all_tasks_blocked()
        else:
            client = socket.create_connection(address)
            await until_done(operation)
            assert open_fds() == before + 2
        with pytest.warns(ResourceWarning, match="accept on fd"):
            del operation
        if when == "accepted":
            await trio.testing.wait_all_tasks_blocked()
            assert open_fds() == before + 1
            with client:
                assert await in_thread(client.recv, 1) == b""
        await until_idle()
        assert open_fds() == before


@pytest.mark.ringtls_allow_unclosed
async def test_h3_done_and_dropped(pair: Pair) -> None:
    left, right = pair
    await left.send_all(b"lost")
    operation = right.start_receive()
    await until_done(operation)
    with pytest.warns(ResourceWarning, match="its result is lost"):
        del operation


async def test_h3_what_is_awaited_or_cancelled_warns_not(pair: Pair) -> None:
    """A warning would fail this, and so would what is left open."""
    left, right = pair
    before = _unclosed.still_open.copy()
    await left.start_send(b"x")
    await right.start_receive()
    given_up = right.start_receive()
    given_up.cancel()
    assert _unclosed.still_open == before
    del given_up
    await until_idle()


@pytest.mark.ringtls_allow_unclosed
def test_h3_dropped_after_its_run() -> None:
    kept: list[Operation[bytes]] = []
    fds = open_fds()

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right:
            kept.append(left.start_receive())

    trio.run(main)
    assert open_fds() == fds
    with pytest.warns(ResourceWarning, match="recv on fd"):
        kept.clear()


# H4


async def test_h4_cancelled_with_its_waiter(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    await cut_off(receiving.wait)
    assert receiving.done
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"


async def test_h4_a_result_wins_over_a_cancellation(pair: Pair) -> None:
    left, right = pair
    await left.send_all(b"in time")
    receiving = right.start_receive()
    await until_done(receiving)
    with trio.CancelScope() as scope:
        scope.cancel()
        received = await receiving
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert received == b"in time"


async def test_h4_cancelled_by_hand(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    receiving.cancel()
    receiving.cancel()
    with pytest.raises(OSError, match="recv on fd") as caught:
        await receiving
    assert caught.value.errno == errno.ECANCELED
    receiving.cancel()
    await left.send_all(b"x")
    receiving = right.start_receive()
    await until_done(receiving)
    receiving.cancel()
    assert await receiving == b"x"


async def test_h4_a_cancelled_send_says_how_much_went_out(small_pair: Pair) -> None:
    left, right = small_pair
    sending = left.start_send(bytes(5_000_000))
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(when_all_wait, scope.cancel)
            sent = await sending
    assert 0 < sent < 5_000_000
    await left.send_eof()
    received = 0
    async for data in right:
        received += len(data)
    assert received == sent


async def test_h4_closing_the_stream_ends_them(pair: Pair) -> None:
    left, _right = pair
    receiving = left.start_receive()
    await trio.testing.wait_all_tasks_blocked()
    await left.aclose()
    with trio.fail_after(LIMIT), pytest.raises(trio.ClosedResourceError):
        await receiving
    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as listener:
        accepting = listener.start_accept()
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(LIMIT), pytest.raises(trio.ClosedResourceError):
        await accepting


async def test_h4_what_came_before_the_close_is_handed_out(pair: Pair) -> None:
    left, right = pair
    await left.send_all(b"x")
    receiving = right.start_receive()
    await until_done(receiving)
    await right.aclose()
    assert await receiving == b"x"


async def test_h4_a_connection_that_breaks() -> None:
    ours, theirs = tcp_pair()
    async with SocketStream(ours) as stream:
        receiving = stream.start_receive()
        reset(theirs)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await receiving
        assert isinstance(caught.value.__cause__, ConnectionResetError)


# H5


async def test_h5_two_waiters(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            assert await receiving == b"x"

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match=r"recv on fd \d+, SUBMITTED.* awaited before"):
            await receiving
        await left.send_all(b"x")


async def test_h5_taken_twice(pair: Pair) -> None:
    left, right = pair
    sending = left.start_send(b"x")
    await sending
    with pytest.raises(RuntimeError, match=r"TAKEN, result 1.* awaited before"):
        await sending


async def test_h5_another_thread_or_run(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another trio run"):
            left.start_send(b"x")
        with pytest.raises(RuntimeError, match="another trio run"):
            receiving.cancel()
        with pytest.raises(RuntimeError, match="another trio run"):
            await receiving

    await in_thread(trio.run, elsewhere)

    def without_a_run() -> None:
        for misuse in (left.start_receive, receiving.cancel, lambda: receiving.wait().send(None)):
            with pytest.raises(RuntimeError, match=r"only inside trio\.run"):
                misuse()

    await in_thread(without_a_run)
    await left.send_all(b"x")
    assert await receiving == b"x"


def test_h5_after_the_run() -> None:
    kept: list[Operation[bytes]] = []
    streams: list[SocketStream] = []
    listeners: list[SocketListener] = []

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right:
            kept.append(left.start_receive())
            kept[0].cancel()
            streams.append(left)
        listeners.append(SocketListener(socket.create_server(("127.0.0.1", 0))))

    trio.run(main)
    for misuse in (
        kept[0].cancel,
        lambda: kept[0].wait().send(None),
        streams[0].start_receive,
        lambda: streams[0].start_send(b"x"),
        listeners[0].start_accept,
    ):
        with pytest.raises(RuntimeError, match=r"only inside trio\.run"):
            misuse()
    listeners[0].socket.close()


async def test_h5_after_a_fork(pair: Pair) -> None:
    left, right = pair
    receiving = right.start_receive()

    def misuse() -> None:
        for use in (
            lambda: left.start_send(b"x"),
            receiving.cancel,
            lambda: receiving.wait().send(None),
        ):
            with pytest.raises(RuntimeError, match="parent process"):
                use()

    in_child(misuse)
    await left.send_all(b"x")
    assert await receiving == b"x"


async def test_h5_the_ring_fails(pair: Pair) -> None:
    left, right = await socket_streams()
    receiving = left.start_receive()
    await trio.testing.wait_all_tasks_blocked()
    TrioDriver.current()._fail(OSError("made up"))
    assert receiving.done
    with pytest.raises(trio.BrokenResourceError, match="made up"):
        await receiving
    with pytest.raises(OSError, match="made up"):
        left.start_send(b"x")
    await left.aclose()
    await right.aclose()
