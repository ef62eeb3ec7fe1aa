"""ringtls.blocking: threads and their ends, timeouts, signals, forks, misuse."""

from __future__ import annotations

import gc
import inspect
import math
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from trio.to_thread import run_sync as in_thread

import ringtls
from ringtls import CloseOutcome, blocking
from ringtls._drivers.blocking import BlockingDriver

from .conftest import Contexts
from .support.clogging import ACCEPTED, SMALL
from .support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from .support.peer import End, Peer, Transport
from .support.processes import in_child
from .support.signals import SignalAtBytecode, signal_in_the_ring
from .support.streams import open_fds, refusing_port, tcp_pair
from .support.tracing import traced_by
from .support.waiting import LIMIT, is_in_the_ring, wait_until


def meet(contexts: Contexts, *, buffer_size: int | None = None) -> tuple[blocking.TlsStream, Peer]:
    ours, theirs = tcp_pair(buffer_size)
    stream = blocking.TlsStream(blocking.SocketStream(ours), contexts.server, server_side=True)
    peer = Peer(theirs, contexts, server_side=False)
    thread = threading.Thread(target=peer.handshake)
    thread.start()
    stream.do_handshake()
    thread.join()
    return stream, peer


def clog(stream: blocking.TlsStream) -> None:
    """Leave the stream with more accepted than a narrow connection takes."""
    stream.timeout = 0
    with pytest.raises(TimeoutError):
        stream.send_all(bytes(ACCEPTED))
    stream.timeout = None


def run_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_public_names() -> None:
    assert sorted(blocking.__all__) == [
        "SocketStream",
        "TlsStream",
        "call",
        "open_tls_over_tcp_stream",
        "relay",
    ]
    for name in blocking.__all__:
        assert inspect.getdoc(getattr(blocking, name)), name


def test_it_has_the_methods_of_the_asynchronous_stream() -> None:
    asynchronous = {name for name in dir(ringtls.TlsStream) if not name.startswith("_")}
    missing = asynchronous - set(dir(blocking.TlsStream))
    assert missing == {
        "aclose",
        "send_nowait",
        "wait_sent",
        "wait_send_all_might_not_block",
    }


# Opening, and serving


def serve(listener: socket.socket, contexts: Contexts) -> None:
    """A thread for each connection."""

    def echo(sock: socket.socket) -> None:
        transport_stream = blocking.SocketStream(sock)
        stream = blocking.TlsStream(transport_stream, contexts.server, server_side=True)
        with suppress(trio.BrokenResourceError), stream:
            for data in stream:
                stream.send_all(data)

    threads = []
    with suppress(OSError):  # the listener was shut down
        while True:
            sock, _ = listener.accept()
            threads.append(threading.Thread(target=echo, args=(sock,)))
            threads[-1].start()
    for thread in threads:
        thread.join()


@pytest.fixture
def port(contexts: Contexts) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        thread = threading.Thread(target=serve, args=(listener, contexts))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def echo_once(contexts: Contexts, port: int) -> CloseOutcome | None:
    data = os.urandom(10_000)
    with blocking.open_tls_over_tcp_stream(
        "localhost", port, ssl_context=contexts.client, timeout=LIMIT
    ) as stream:
        assert stream.timeout == LIMIT
        stream.send_all(data)
        stream.send_eof()
        assert b"".join(stream) == data
        assert stream.version() == "TLSv1.3"
    return stream.close_outcome


def test_client_and_server(contexts: Contexts, port: int) -> None:
    assert echo_once(contexts, port) is CloseOutcome.CLEAN


def test_the_ring_of_a_thread_is_small() -> None:
    """A user may lock 8 MiB, as a rule, and all that threads have counts."""
    counters = BlockingDriver.current().ring.counters()
    assert 68 * counters.sq_entries + 16 * counters.cq_entries < 16_384


def test_many_threads_at_once(contexts: Contexts, port: int) -> None:
    before = open_fds()
    outcomes: list[object] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(echo_once(contexts, port)))
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [CloseOutcome.CLEAN] * 50
    wait_until(lambda: open_fds() <= before)  # the server's threads have some


async def test_in_trios_threads(contexts: Contexts, port: int) -> None:
    outcomes = []

    def echo_and_end() -> CloseOutcome | None:
        try:
            return echo_once(contexts, port)
        finally:  # the thread stays for some seconds, and its ring would end amid another test
            BlockingDriver.current().end()

    async def one() -> None:
        outcomes.append(await in_thread(echo_and_end))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
    assert outcomes == [CloseOutcome.CLEAN] * 10


def test_in_the_thread_of_a_trio_run(contexts: Contexts, port: int) -> None:
    """It blocks the run, and has a ring of its own."""

    async def main() -> None:
        assert echo_once(contexts, port) is CloseOutcome.CLEAN

    trio.run(main)


def test_a_connection_that_is_refused(contexts: Contexts) -> None:
    with refusing_port() as port, pytest.raises(ConnectionRefusedError):
        blocking.open_tls_over_tcp_stream("127.0.0.1", port, ssl_context=contexts.client)


def test_timeouts_of_connecting(contexts: Contexts, port: int) -> None:
    for wrong in (-1, math.nan, 10**400):
        with pytest.raises(ValueError, match="timeout"):
            blocking.open_tls_over_tcp_stream("localhost", port, timeout=wrong)
    for longest in (math.inf, None):
        stream = blocking.open_tls_over_tcp_stream(
            "localhost", port, ssl_context=contexts.client, timeout=longest
        )
        with stream:
            assert stream.timeout == longest


def test_no_stream_is_left_if_the_context_does_not_fit(contexts: Contexts, port: int) -> None:
    with pytest.raises(ssl.SSLError, match="SERVER"):
        blocking.open_tls_over_tcp_stream("localhost", port, ssl_context=contexts.server)


def test_plain_sockets() -> None:
    ours, theirs = tcp_pair()
    ours.settimeout(0.05)
    with theirs, blocking.SocketStream(ours) as stream:
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(TimeoutError, match="timed out"):
            stream.receive_some()
        theirs.sendall(b"abc")
        assert stream.receive_some(2) == b"ab"
        assert stream.receive_some() == b"c"
        with pytest.raises(TimeoutError):
            stream.send_all(bytes(30_000_000))
        stream.timeout = None
        with signal_in_the_ring(), pytest.raises(KeyboardInterrupt):
            stream.receive_some()
        theirs.sendall(b"abc")
        assert stream.receive_some() == b"abc"
        stream.send_eof()
        stream.close()
        stream.close()
        with pytest.raises(trio.ClosedResourceError):
            stream.receive_some()


# Timeouts


def test_h8_into_the_callers_memory(contexts: Contexts) -> None:
    stream, peer = meet(contexts)
    buffer = bytearray(5)
    with stream:
        peer.send(b"hello, world")
        assert stream.receive_into(buffer) == 5
        assert buffer == b"hello"
        assert stream.receive_into(buffer, 2) == 2
        assert buffer == b", llo"
        stream.timeout = 0.01
        assert stream.receive_into(buffer) == 5
        with pytest.raises(TimeoutError):
            stream.receive_into(buffer)
        buffer.append(0)  # it is released
    peer.sock.close()


def test_h8_into_the_callers_memory_without_tls() -> None:
    ours, theirs = tcp_pair()
    buffer = bytearray(5)
    with theirs, blocking.SocketStream(ours) as stream:
        theirs.sendall(b"hello, world")
        assert stream.receive_into(buffer) == 5
        assert buffer == b"hello"


def test_no_time_at_all_is_one_try(contexts: Contexts) -> None:
    stream, peer = meet(contexts)
    with stream:
        stream.timeout = 0
        with pytest.raises(TimeoutError):
            stream.receive_some()
        peer.send(b"here")
        select.select([stream.transport_stream.socket], [], [], LIMIT)
        assert stream.receive_some() == b"here"
        stream.send_all(b"last words")
    assert peer.end() == End(b"last words", True, Transport.FIN, 0, None)


def test_a_send_that_timed_out_is_sent_by_later_calls(contexts: Contexts) -> None:
    stream, peer = meet(contexts, buffer_size=SMALL)
    ends: list[End] = []
    with stream:
        clog(stream)
        thread = threading.Thread(target=lambda: ends.append(peer.end()))
        thread.start()
        stream.send_all(b"last words")
    thread.join()
    assert ends[0].is_clean
    assert ends[0].data.endswith(b"last words")


def test_what_was_sent_needs_no_later_call(contexts: Contexts) -> None:
    stream, peer = meet(contexts, buffer_size=SMALL)
    data = os.urandom(200_000)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(peer.receive(len(data))))
    thread.start()
    stream.send_all(data)
    thread.join()
    assert received == [data]
    stream.close()
    peer.sock.close()


def test_wrong_timeouts(contexts: Contexts) -> None:
    stream, peer = meet(contexts)
    with stream:
        for wrong in (-1, math.nan, 10**400):
            with pytest.raises(ValueError, match="timeout"):
                stream.timeout = wrong
            with pytest.raises(ValueError, match="timeout"):
                stream.close(shutdown_timeout=wrong)
    peer.sock.close()


# The end of a thread


@pytest.mark.ringtls_allow_unclosed
def test_a_thread_that_ends_closes_its_streams(contexts: Contexts) -> None:
    """C8, C9: they are used no more, but referred to."""
    before = open_fds()
    kept: list[blocking.TlsStream] = []
    ends: list[End] = []

    def reader(peer: Peer) -> None:
        wait_until(lambda: kept[0]._closing.started)
        ends.append(peer.end())

    def work() -> None:
        stream, peer = meet(contexts, buffer_size=SMALL)
        clog(stream)
        kept.append(stream)
        readers.append(threading.Thread(target=reader, args=(peer,)))
        readers[0].start()

    readers: list[threading.Thread] = []
    with pytest.warns(ResourceWarning, match="test_blocking.py:"):
        run_thread(work)
    assert kept[0].close_outcome is CloseOutcome.CLEAN
    readers[0].join()
    assert ends[0].is_clean
    kept[0].close()  # which has no need of the thread
    with pytest.raises(RuntimeError, match="another thread"):
        kept[0].receive_some()
    assert open_fds() == before


def test_a_thread_that_ends_waits_for_what_lingers(contexts: Contexts) -> None:
    """C10: nothing of what was sent gets lost over input that nobody read."""
    before = open_fds()
    peers: list[Peer] = []

    def work() -> None:
        stream, peer = meet(contexts)
        peers.append(peer)
        peer.send(bytes(10_000))
        with stream:
            stream.send_all(b"last words")

    run_thread(work)
    assert open_fds() == before + 1
    end = peers[0].end()
    assert end.is_clean
    assert end.data == b"last words"


#: How a program leaves its stream.
LEAVING = {
    "open": "leave_open()",
    "closing": "leave_open(); stream.close()",
    "of a forked worker": """if True:
        import multiprocessing
        worker = multiprocessing.get_context("fork").Process(target=leave_open)
        worker.start()
        ours.close()
        worker.join()
        sys.exit(worker.exitcode)""",
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
def test_at_the_interpreters_exit(contexts: Contexts, leave: str) -> None:
    ours, theirs = tcp_pair(32768)
    program = f"""if True:
        import socket, ssl, sys
        from ringtls import blocking
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain({str(contexts.certificate)!r}, {str(contexts.key)!r})
        ours = socket.socket(fileno={ours.fileno()})

        def leave_open():
            global stream
            stream = blocking.TlsStream(blocking.SocketStream(ours), context, server_side=True)
            stream.send_all(b"last words")
        """
    program = f"{program.rstrip()}\n{leave}"
    child = subprocess.Popen([sys.executable, "-c", program], pass_fds=[ours.fileno()])
    with child, theirs:
        ours.close()
        peer = Peer(theirs, contexts, server_side=False)
        peer.handshake()
        end = peer.end()
    assert child.returncode == 0
    assert end.is_clean
    assert end.data == b"last words"


# Streams that go in the wrong way


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("owner", ["sleeps in a call", "makes a call later"])
def test_c8_dropped_in_another_thread(contexts: Contexts, owner: str) -> None:
    stream, peer = meet(contexts)
    other, other_peer = meet(contexts)
    stream.send_all(b"last words")
    holder = [stream]
    del stream

    def drop() -> None:
        holder.clear()
        if owner == "sleeps in a call":
            ends.append(peer.end())
            other_peer.send(b"that was it")

    ends: list[End] = []
    with other, pytest.warns(ResourceWarning, match="unclosed stream"):
        thread = threading.Thread(target=drop)
        thread.start()
        if owner == "sleeps in a call":
            assert other.receive_some() == b"that was it"
            thread.join()
        else:
            thread.join()
            other.send_all(b"x")
            ends.append(peer.end())
    end = ends[0]
    assert end.is_clean
    assert end.data == b"last words"
    other_peer.sock.close()


@pytest.mark.ringtls_allow_unclosed
def test_c8_dropped_in_the_middle_of_a_call(contexts: Contexts) -> None:
    """The garbage collector runs anywhere: here at every allocation it can."""
    peers = []
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(5):
                stream, peer = meet(contexts)
                stream.send_all(b"last words")
                stream.cycle = stream  # type: ignore[attr-defined]
                del stream
                peers.append(peer)
                ours, theirs = tcp_pair()
                with theirs, blocking.SocketStream(ours) as plain:
                    plain.timeout = 0
                    with pytest.raises(TimeoutError):
                        plain.receive_some()
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
    for peer in peers:
        end = peer.end()
        assert end.is_clean
        assert end.data == b"last words"


def test_another_threads_stream(contexts: Contexts) -> None:
    stream, peer = meet(contexts)
    refused = []

    def misuse() -> None:
        for use in (
            lambda: stream.send_all(b"x"),
            stream.receive_some,
            stream.close,
            stream.close_unclean,
            lambda: blocking.TlsStream(stream.transport_stream, contexts.server, server_side=True),
        ):
            with pytest.raises(RuntimeError, match="another thread"):
                use()
            refused.append(use)

    with stream:
        run_thread(misuse)
        assert len(refused) == 5
        stream.send_all(b"still works")
    assert peer.end().is_clean


def test_c14_fork(contexts: Contexts, port: int) -> None:
    stream, peer = meet(contexts)

    def in_the_child() -> None:
        for use in (stream.receive_some, stream.close, stream.close_unclean):
            with pytest.raises(RuntimeError, match="parent"):
                use()
        assert echo_once(contexts, port) is CloseOutcome.CLEAN  # with a ring of its own
        BlockingDriver.current().end()

    in_child(in_the_child)
    with stream:
        stream.send_all(b"from the parent")
    end = peer.end()
    assert end.is_clean
    assert end.data == b"from the parent"


async def test_c15_async_use(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with theirs, blocking.SocketStream(ours) as stream:
        with pytest.raises(TypeError, match="use 'with' with a blocking SocketStream"):
            async with stream:
                pass
        tls = blocking.TlsStream(stream, contexts.server, server_side=True)
        with pytest.raises(TypeError, match="use 'with' with a blocking TlsStream"):
            async with tls:
                pass


def test_wrong_arguments(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        with pytest.raises(TypeError, match="needs a blocking SocketStream"):
            blocking.TlsStream(ours, contexts.server)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"needs a socket\.socket"):
            blocking.SocketStream("socket")  # type: ignore[arg-type]


@pytest.mark.ringtls_allow_unclosed
def test_a_ring_that_fails(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call says so, and nothing hangs."""
    stream, peer = meet(contexts)

    def fail() -> None:
        raise ValueError("made up")

    monkeypatch.setattr(BlockingDriver.current().ring, "reap", fail)
    with pytest.raises((OSError, trio.BrokenResourceError)):
        stream.receive_some()
    with pytest.raises((OSError, trio.BrokenResourceError)):
        stream.receive_some()
    stream.close()
    BlockingDriver.current().end()
    assert peer.read_to_end().error is None
    peer.sock.close()
    again, peer = meet(contexts)  # with another ring
    again.close()
    peer.sock.close()


# Signals


def test_sigint_in_a_close(contexts: Contexts) -> None:
    """C2: the close goes on, and then the KeyboardInterrupt comes out."""
    stream, peer = meet(contexts, buffer_size=SMALL)
    clog(stream)
    ends: list[End] = []

    def read_late() -> None:
        second.wait(LIMIT)
        ends.append(peer.end())

    thread = threading.Thread(target=read_late)
    interrupts = BlockingDriver.current().interrupts
    with (
        signal_in_the_ring(),
        signal_in_the_ring(when=lambda: interrupts._is_pending) as second,
        pytest.raises(KeyboardInterrupt),
    ):
        thread.start()
        stream.close()
    assert stream.close_outcome is CloseOutcome.CLEAN
    thread.join()
    assert ends[0].is_clean


def test_a_handler_that_does_not_raise(contexts: Contexts) -> None:
    """It runs while the call waits, and the call goes on waiting."""
    stream, peer = meet(contexts)
    calls = []

    def handler(number: int, frame: FrameType | None) -> None:
        calls.append(number)
        signal.signal(signal.SIGINT, successor)
        peer.send(b"by the handler")

    def successor(number: int, frame: FrameType | None) -> None:
        raise AssertionError("there was one signal")

    before = signal.signal(signal.SIGINT, handler)
    try:
        with stream, signal_in_the_ring():
            assert stream.receive_some() == b"by the handler"
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is successor
    finally:
        signal.signal(signal.SIGINT, before)
    peer.sock.close()


def test_without_a_handler_sigint_is_the_kernels(contexts: Contexts) -> None:
    program = """if True:
        import signal, socket
        from ringtls import blocking
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ours, theirs = socket.socketpair()
        stream = blocking.SocketStream(ours)
        print("ready", flush=True)
        stream.receive_some()
        """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        wait_until(lambda: is_in_the_ring(child.pid))
        child.send_signal(signal.SIGINT)
    assert child.returncode == -signal.SIGINT


@contextmanager
def amid_replacing(number: int, function: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Call a function before or after the nth call that handlers are replaced with. Its value tells
    whether it was called."""
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            function()

    def with_steps(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            step()
            result = real(*arguments)
            step()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("getsignal", "signal"):
            patch.setattr(signal, name, with_steps(getattr(signal, name)))
        yield lambda: left <= 0


def test_an_exception_where_the_handler_is_replaced() -> None:
    """Another signal's handler raises there: the one for SIGINT is the user's again.

    Rule 4 of _drivers/blocking.py.
    """
    driver = BlockingDriver.current()

    def fail() -> None:
        raise InjectedError

    number, has_raised = 0, True
    while has_raised:
        number += 1
        with amid_replacing(number, fail) as was_called, suppress(InjectedError), driver.call():
            pass
        has_raised = was_called()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, number
        assert not driver.interrupts.calls, number
        with pytest.raises(KeyboardInterrupt), driver.call():
            signal.raise_signal(signal.SIGINT)
    assert number == 9  # four calls


@pytest.mark.parametrize(
    "function", ["Call.__enter__", "Call.__exit__", "Call.leave", "_Interrupts.hold"]
)
def test_an_exception_at_any_bytecode_of_a_call_leaves_the_next_as_it_was(function: str) -> None:
    """SIGINT comes out of it (rule 4)."""
    driver = BlockingDriver.current()

    def enter_and_leave() -> None:
        with driver.call():
            pass

    def play(injection: RaiseAt) -> None:
        with suppress(InjectedError), injection.tracing():
            enter_and_leave()
            enter_and_leave()  # since CPython 3.12 bytecodes are traced from the second on
        with pytest.raises(KeyboardInterrupt), driver.call():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, injection.place
        assert not driver.interrupts.calls, injection.place

    raise_at_each_bytecode(function, play)


@pytest.mark.parametrize("function", ["Call.__exit__", "Call.leave"])
@pytest.mark.parametrize("what_comes", ["SIGINT", "a call", "a finalizer"])
def test_an_exception_at_the_entry_of_a_calls_end(function: str, what_comes: str) -> None:
    """Another signal's handler raises there, and the call is over all the same (rule 4)."""
    ours, theirs = tcp_pair()
    with theirs, blocking.SocketStream(ours) as stream:
        with pytest.raises(InjectedError), RaiseAt(1, "call", function).tracing():
            assert not stream.input_pending
        if what_comes == "a call":
            assert not stream.input_pending
        elif what_comes == "a finalizer":
            done: list[int] = []
            stream._driver.call_soon(partial(done.append, 1))
            assert done == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not stream._driver.interrupts.calls


def test_a_finalizer_where_the_handler_is_replaced() -> None:
    """Its work is done, and a signal that was kept comes out (rule 5 there)."""
    driver = BlockingDriver.current()
    done: list[int] = []
    number, has_run = 0, True
    while has_run:
        number += 1
        leave_behind = partial(driver.call_soon, partial(done.append, number))
        with (
            amid_replacing(number, leave_behind) as was_called,
            pytest.raises(KeyboardInterrupt),
            driver.call(),
        ):
            signal.raise_signal(signal.SIGINT)
        has_run = was_called()
        assert done == list(range(1, number + has_run))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, number
        assert not driver.interrupts.calls, number
    assert number > 8


def receive_into(stream: blocking.TlsStream) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: stream.receive_into(buffer)])


@pytest.mark.parametrize("receive", [blocking.TlsStream.receive_some, receive_into])
def test_no_interrupt_of_a_receive_loses_anything(
    contexts: Contexts, receive: Callable[[blocking.TlsStream], bytes]
) -> None:
    """At each bytecode of the driver: what it would have returned comes the next time."""
    stream, peer = meet(contexts)
    stream.timeout = LIMIT
    number, interrupts, has_fired = 0, 0, True
    with stream:
        while has_fired:
            number += 1
            peer.send(b"%d" % number)
            signaller = SignalAtBytecode(number, inspect.getfile(BlockingDriver))
            data = b""
            try:
                with traced_by(signaller):
                    data = receive(stream)
            except KeyboardInterrupt:
                interrupts += 1
            assert (data or receive(stream)) == b"%d" % number
            has_fired = signaller.left <= 0
    assert interrupts
    assert peer.end().is_clean


@pytest.mark.parametrize("receive", [blocking.TlsStream.receive_some, receive_into])
def test_no_other_signal_loses_what_a_receive_has(
    contexts: Contexts, receive: Callable[[blocking.TlsStream], bytes]
) -> None:
    """CPython calls handlers where a call returns, as that of the coroutine that has received."""

    def trace(frame: FrameType, event: str, result: object) -> Any:
        if frame.f_code.co_name not in ("complete", "complete_into"):
            return None
        if event == "return":
            sys.settrace(None)
            raise InjectedError
        return trace

    stream, peer = meet(contexts)
    with stream:
        peer.send(b"something")
        with traced_by(trace), pytest.raises(InjectedError):
            receive(stream)
        peer.send(b"and more")
        assert receive(stream) == b"something"
    assert peer.end().is_clean


def test_what_another_signals_handler_raises(contexts: Contexts) -> None:
    stream, peer = meet(contexts)

    def handler(number: int, frame: FrameType | None) -> None:
        sys.exit(3)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with signal_in_the_ring(signal.SIGTERM), pytest.raises(SystemExit), stream:
            stream.receive_some()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert peer.end().is_clean
    assert stream.close_outcome is CloseOutcome.CLEAN


def test_there_is_one_tls_and_one_closing() -> None:
    """D5: the blocking face has neither session nor closing logic of its own."""
    package = Path(ringtls.__file__).parent
    for module in (package / "_drivers" / "blocking.py", *(package / "blocking").glob("*.py")):
        source = module.read_text()
        for name in ("SSLObject", "MemoryBIO", "TlsSession(", "Closing(", "SHUT_WR", "enqueue"):
            assert name not in source, (module, name)
