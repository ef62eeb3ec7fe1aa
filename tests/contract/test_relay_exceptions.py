"""C16 in a relay: an exception at any call, or any bytecode, of ours.

No end is forged, and nobody waits for ever.

As tests/contract/test_exceptions.py does it; RINGTLS_INJECTIONS plays that many.
"""

from __future__ import annotations

import gc
import random
import socket
import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from ringtls import RelayEnd, RelayOutcome, blocking, relay
from ringtls._drivers.blocking import BlockingDriver
from ringtls._transports.base import RESET_AT_CLOSE

from ..conftest import Contexts
from ..support.injection import RaiseAt
from ..support.relaying import BLOCKING_KINDS, END, KINDS, Kind, Meeting, Saw, Talker, run_beside
from ..support.waiting import LIMIT
from .test_exceptions import INJECTIONS, SEEN

REQUEST = b"a question"
ANSWER = bytes(range(256)) * 1000

#: Bytecodes of a function, until it has begun its work.
FIRST_STEPS = 30

#: Plays relays while an exception is raised, and says how they ended.
Run = Callable[[list[Meeting], RaiseAt], list[RelayOutcome]]


def client(talker: Talker) -> Saw | None:
    with suppress(ConnectionError, ssl.SSLError):
        talker.handshake()
        talker.send(REQUEST)
        talker.half_close()
        return talker.read()
    return None


def backend(talker: Talker) -> Saw | None:
    with suppress(ConnectionError, ssl.SSLError):
        talker.handshake()
        saw = talker.read()
        if saw == Saw(REQUEST, END):
            talker.send(ANSWER)
            talker.half_close()
        return saw
    return None


def give_up(stream: Any) -> None:
    """As who sees an error does that has given nothing away."""
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):  # it is closed
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        stream.socket.close()
    else:
        stream.close_unclean()


def run_on_trio(meetings: list[Meeting], injection: RaiseAt) -> list[RelayOutcome]:
    """Relays side by side."""
    outcomes: list[RelayOutcome] = []

    async def one(streams: tuple[Any, Any]) -> None:
        try:
            outcomes.append(await relay(*streams, idle_timeout=LIMIT))
        except SEEN:
            for stream in streams:
                give_up(stream)
        gc.collect(0)

    async def main() -> None:
        pairs = [meeting.streams() for meeting in meetings]
        with injection.tracing():
            async with trio.open_nursery() as nursery:
                for streams in pairs:
                    nursery.start_soon(one, streams)

    with suppress(trio.TrioInternalError, *SEEN):
        trio.run(main)
    return outcomes


def run_in_thread(meetings: list[Meeting], injection: RaiseAt) -> list[RelayOutcome]:
    """Relays one after another, of blocking streams; not in the main thread, which has to do with
    SIGINT."""
    outcomes: list[RelayOutcome] = []

    def run() -> None:
        for meeting in meetings:
            streams = meeting.streams()
            try:
                with injection.tracing():
                    outcomes.append(blocking.relay(*streams, idle_timeout=LIMIT))
            except SEEN:
                for stream in streams:
                    give_up(stream)
            finally:
                BlockingDriver.current().end()

    run_beside([run])()
    return outcomes


def played(run: Run, kinds: tuple[Kind, Kind], contexts: Contexts, injection: RaiseAt) -> bool:
    """One run of two relays; was the exception raised?"""
    meetings = [Meeting(contexts, kinds, client, backend) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never started
        outcomes = run(meetings, injection)
        gc.collect()
    for outcome in outcomes:
        ends = outcome.a_to_b.end, outcome.b_to_a.end
        assert RelayEnd.TIMED_OUT not in ends, injection.place
    for meeting in meetings:
        client_saw, backend_saw = meeting.join()
        for saw, said in ((client_saw, ANSWER), (backend_saw, REQUEST)):
            assert saw is None or said.startswith(saw.data), injection.place
            assert saw is None or saw.end != END or saw.data == said, injection.place
    return injection.has_raised


TLS, PLAIN, TLS_ADAPTED, ADAPTED = KINDS


@pytest.mark.parametrize("event", ["call", pytest.param("opcode", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("run", "kinds"),
    [
        pytest.param(run_on_trio, (TLS, PLAIN), id="tls to plain"),
        pytest.param(run_on_trio, (PLAIN, TLS), id="plain to tls", marks=pytest.mark.long),
        pytest.param(run_on_trio, (TLS_ADAPTED, ADAPTED), id="adapted"),
        pytest.param(
            run_in_thread,
            (BLOCKING_KINDS[0], BLOCKING_KINDS[1]),
            id="blocking",
            marks=pytest.mark.long,
        ),
    ],
)
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_an_exception_anywhere_in_a_relay(
    contexts: Contexts, run: Run, kinds: tuple[Kind, Kind], event: str
) -> None:
    rng = random.Random(16)
    last = 1
    while played(run, kinds, contexts, RaiseAt(last, event)):
        last *= 2
    for _ in range(INJECTIONS):
        played(run, kinds, contexts, RaiseAt(rng.randrange(1, last), event))


@pytest.mark.long
@pytest.mark.parametrize("function", ["Side.take", "TlsSide.take"])
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_an_exception_as_a_relay_gets_busy(contexts: Contexts, function: str) -> None:
    """It does not stay so: nothing else would ever be looked at."""
    for number in range(1, FIRST_STEPS):
        assert played(run_on_trio, (TLS, PLAIN), contexts, RaiseAt(number, "opcode", function))
