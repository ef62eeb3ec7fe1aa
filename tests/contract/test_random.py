"""C1 to C3, C7 to C9, C21, C22, A1, A2, A4 at random: every end, at any moment, in any traffic.

A case is a function of its seed: TLS version, side, how our side ends and when, the traffic in
both directions, how fast the peer is. Whatever it is, what the peer read is a prefix of what was
offered, holds all that was accepted, and is followed by close_notify and FIN; or the timeout
passed, and then the peer saw a reset.

Some streams have a farewell: the peer reads it behind all that, unless a message was cut in two.
Some are broken off on an error: then the peer reads all that was accepted, and a reset.
Half of the tests have a value with a destructor own the stream, and say last words: then the peer
reads these behind all that was accepted, and before the farewell. The value owns the stream, or
borrows it of its own owner; it is nested, or in a reference cycle; its destructor ends the stream
itself, raises, or is cut short by its timeout.

RINGTLS_CASES sets the number of cases (300 by default), RINGTLS_SEED the first seed. A case that
fails names its seed: RINGTLS_CASES=1 RINGTLS_SEED=n runs it alone. Many take longer than pytest
lets a test take: -o faulthandler_timeout=0.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import trio

from ringtls import AsyncDestructor, CloseOutcome, SocketStream, TlsStream, borrowed
from ringtls._engine import ring as _ring
from ringtls._streams.closing import Closing

from ..conftest import Contexts
from ..support.peer import (
    End,
    MakeTransport,
    Peer,
    Transport,
    adapted_socket_stream,
    trio_socket_stream,
)
from ..support.streams import open_fds, tcp_pair

CASES = int(os.environ.get("RINGTLS_CASES", "300"))
FIRST_SEED = int(os.environ.get("RINGTLS_SEED", "0"))

AnyTls = TlsStream[trio.abc.Stream] | trio.SSLStream[trio.SocketStream]
MakeStream = Callable[[socket.socket, "Case", Contexts], AnyTls]

LEAVES = ("return", "raise", "cancel", "drop", "drop in a thread", "exit the run")
PEERS = ("fast", "slow", "stalled")
OWNERS = ("plain", "lender", "nested", "cyclic", "ends the stream", "raises", "cut short")
LAST_WORDS = b"these are the last words"
FAREWELL = b"farewell"


@dataclass
class Case:
    """One connection's story."""

    seed: int
    is_plain: bool = False
    rng: random.Random = field(init=False)
    leave: str = field(init=False)
    peer_speed: str = field(init=False)
    server_side: bool = field(init=False)
    moment: float = field(init=False)
    small_buffers: bool = field(init=False)
    has_farewell: bool = field(init=False)
    reset_on_error: bool = field(init=False)
    owner: str = field(init=False)
    destroy_timeout: float = field(init=False)
    messages: set[int] = field(init=False, default_factory=lambda: {0})  # where they begin and end
    offered: bytearray = field(init=False, default_factory=bytearray)
    accepted: int = field(init=False, default=0)
    closing: Closing | None = field(init=False, default=None)
    destroyed: Counter[str] = field(init=False, default_factory=Counter)
    said_last_words: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.leave = rng.choice(LEAVES)
        self.peer_speed = rng.choice(PEERS)
        self.server_side = rng.random() < 0.5
        self.moment = rng.choice((0, rng.random() * 0.002, rng.random() * 0.02))
        self.small_buffers = rng.random() < 0.5
        self.has_farewell = rng.random() < 0.5 and not self.is_plain
        self.reset_on_error = rng.random() < 0.3 and not self.is_plain
        self.owner = rng.choice(OWNERS)
        self.destroy_timeout = rng.random() * 0.01 if self.owner == "cut short" else 5.0

    @property
    def has_parent(self) -> bool:
        return self.owner in ("lender", "nested", "cyclic")

    def __str__(self) -> str:
        side = "server" if self.server_side else "client"
        return (
            f"seed {self.seed}: {side}, {self.leave} at {self.moment}, {self.peer_speed} peer, "
            f"owner {self.owner}"
        )


class LeaveError(Exception):
    """Our handler's own exception."""


class Speaker(AsyncDestructor):
    """Owns a stream, or borrows it, and says last words."""

    def __init__(self, stream: AnyTls, case: Case) -> None:
        self.stream = stream
        self.case = case
        self.destroy_timeout = case.destroy_timeout
        self.parent: Parent | None = None

    async def adestroy(self) -> None:
        case = self.case
        case.destroyed["Speaker"] += 1
        await self.stream.send_all(LAST_WORDS)
        case.said_last_words = True
        if case.owner == "ends the stream":
            await self.stream.aclose()
        elif case.owner == "raises":
            raise LeaveError
        elif case.owner == "cut short":
            await trio.sleep_forever()


class Parent(AsyncDestructor):
    """Owns a Speaker, and perhaps the stream that this borrows."""

    def __init__(self, stream: AnyTls, case: Case) -> None:
        self.case = case
        self.speaker = Speaker(borrowed(stream) if case.owner == "lender" else stream, case)
        if case.owner == "lender":
            self.stream = stream
        elif case.owner == "cyclic":
            self.speaker.parent = self

    async def adestroy(self) -> None:
        self.case.destroyed["Parent"] += 1


def owner_of(stream: AnyTls, case: Case) -> Speaker | Parent:
    return Parent(stream, case) if case.has_parent else Speaker(stream, case)


def drop_in_a_thread(box: list[object]) -> None:
    """Drop what only the box holds."""

    def drop() -> None:
        box.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()


class OurSide:
    """The stream under test, in a trio run of its own."""

    def __init__(self, case: Case, *, is_owned: bool) -> None:
        self.case = case
        self.is_owned = is_owned
        self.stream: AnyTls | None = None
        self.kept: trio.abc.AsyncResource | None = None

    async def run(self) -> None:
        """Talk, and leave as the case says."""
        case = self.case
        stream = self.stream
        assert stream is not None
        resource: AnyTls | Speaker | Parent | None
        resource = owner_of(stream, case) if self.is_owned else stream
        assert resource is not None
        if case.leave == "exit the run":
            self.kept = resource
            with trio.move_on_after(case.moment):
                await self.talk(stream)
        elif case.leave.startswith("drop"):
            with trio.move_on_after(case.moment):
                await self.talk(stream)
            box: list[object] = [resource]
            self.stream = stream = resource = None
            if case.leave == "drop in a thread":
                drop_in_a_thread(box)
            del box
            gc.collect()
        else:
            try:
                await self.leave_block(stream, resource)
            except* LeaveError:
                pass  # ours, or that of a destructor

    async def leave_block(
        self, stream: trio.abc.Stream, resource: AnyTls | Speaker | Parent
    ) -> None:
        """Leave an ``async with``, as the case says."""
        case = self.case
        if case.leave == "cancel":
            with trio.move_on_after(case.moment):
                async with resource:
                    await self.talk(stream)
        else:
            async with resource:
                with trio.move_on_after(case.moment):
                    await self.talk(stream)
                if case.leave == "raise":
                    raise LeaveError

    async def talk(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, stream)
            nursery.start_soon(self.receive, stream)

    async def send(self, stream: trio.abc.Stream) -> None:
        case = self.case
        while True:
            piece = case.rng.randbytes(case.rng.choice((1, 100, 5_000, 200_000, 600_000)))
            case.offered += piece
            case.messages.add(len(case.offered))
            await stream.send_all(piece)
            case.accepted = len(case.offered)
            if case.rng.random() < 0.2:
                await trio.sleep(0.001)

    async def receive(self, stream: trio.abc.Stream) -> None:
        while await stream.receive_some(self.case.rng.choice((1, 1000, None))):
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()


def peer_story(peer: Peer, case: Case, ends: list[End]) -> None:
    """Handshake, perhaps send, and read to the end at the peer's own speed."""
    rng = random.Random(-case.seed - 1)
    was_reset = False
    try:
        peer.handshake()  # our side may reset before a server's tickets are sent
        for _ in range(rng.randrange(4)):
            peer.send(rng.randbytes(rng.choice((1, 1000, 30_000))))
    except BrokenPipeError:
        pass  # our side has ended already
    except ConnectionResetError:
        was_reset = True  # which the kernel tells once
    if case.peer_speed == "stalled":
        time.sleep(0.03)
    elif case.peer_speed == "slow":
        for _ in range(5):
            time.sleep(0.002)
    end = peer.end()
    ends.append(replace(end, transport=Transport.RST) if was_reset else end)


def ours_over(make_transport: MakeTransport) -> MakeStream:
    """Our TLS over a transport."""

    def make(sock: socket.socket, case: Case, contexts: Contexts) -> TlsStream[trio.abc.Stream]:
        stream = TlsStream(
            make_transport(sock),
            contexts.server if case.server_side else contexts.client,
            server_side=case.server_side,
            server_hostname=None if case.server_side else "localhost",
            shutdown_timeout=2.0,
            reset_on_error=case.reset_on_error,
        )
        if case.has_farewell:
            stream.farewell = FAREWELL
        case.closing = stream._closing
        return stream

    return make


def trios(sock: socket.socket, case: Case, contexts: Contexts) -> trio.SSLStream[trio.SocketStream]:
    """The control: the same cases with trio's TLS."""
    return trio.SSLStream(
        trio_socket_stream(sock),
        contexts.server if case.server_side else contexts.client,
        server_side=case.server_side,
        server_hostname=None if case.server_side else "localhost",
    )


def play(case: Case, contexts: Contexts, make_stream: MakeStream, *, is_owned: bool = False) -> End:
    """Run a case; returns how the peer saw it end."""
    ours, theirs = tcp_pair(32768 if case.small_buffers else None)
    peer = Peer(theirs, contexts, server_side=not case.server_side)
    sockets = [ours]  # which main() empties, so that nothing here keeps the socket open
    del ours
    ends: list[End] = []
    thread = threading.Thread(target=peer_story, args=(peer, case, ends))
    side = OurSide(case, is_owned=is_owned)

    async def main() -> None:
        side.stream = make_stream(sockets.pop(), case, contexts)
        await side.stream.do_handshake()
        await side.run()

    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # some cases drop streams on purpose
        trio.run(main)
        side.stream = side.kept = None
        gc.collect()
    thread.join()
    return ends[0]


def judge(case: Case, end: End, *, is_owned: bool) -> None:
    assert case.closing is not None
    outcome = case.closing.outcome
    data = end.data.removesuffix(FAREWELL)
    has_farewell = data != end.data
    if is_owned:
        assert case.destroyed == Counter(Speaker=1, Parent=int(case.has_parent)), case
        if outcome is CloseOutcome.CLEAN and case.owner != "cut short":
            assert case.said_last_words, case
    if case.said_last_words and outcome is CloseOutcome.CLEAN:
        assert data.endswith(LAST_WORDS), case
        data = data.removesuffix(LAST_WORDS)
        is_whole = True  # the last words are a message, and were accepted
    else:
        is_whole = len(data) in case.messages
    assert bytes(case.offered).startswith(data), case
    if outcome is not CloseOutcome.CLEAN:
        assert end.transport is Transport.RST, case
        assert not end.close_notify, case
        if outcome is CloseOutcome.TIMED_OUT:
            return
    assert len(data) >= case.accepted, case
    is_broken_off = case.reset_on_error and case.leave != "return" and not is_owned
    assert outcome is (CloseOutcome.BROKEN_OFF if is_broken_off else CloseOutcome.CLEAN), case
    if outcome is CloseOutcome.CLEAN:
        assert end.is_clean, (str(case), end.close_notify, end.transport, end.trailing, end.error)
    assert has_farewell == (case.has_farewell and is_whole and not is_broken_off), case


def alive() -> set[int]:
    """Streams, their ends and owners that exist, by id: other tests may have left some."""
    return {
        id(each)
        for each in gc.get_objects()
        if isinstance(each, TlsStream | Closing | AsyncDestructor)
    }


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize(
    "make_transport", [SocketStream, adapted_socket_stream], ids=["ring", "adapter"]
)
@pytest.mark.parametrize("is_owned", [False, True], ids=["alone", "owned"])
def test_c1_c21_c22_a1_at_random(
    versioned_contexts: Contexts,
    make_transport: MakeTransport,
    is_owned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pytest would keep what destructors raise in the background, and by its traceback the values
    monkeypatch.setattr(logging.getLogger("ringtls"), "propagate", False)
    clean = 0
    fds, threads, rings = open_fds(), threading.active_count(), set(_ring._open_rings)
    streams = alive()
    cases = (CASES + 7) // 8
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        case = Case(seed)
        make_stream = ours_over(make_transport)
        end = play(case, versioned_contexts, make_stream, is_owned=is_owned)
        judge(case, end, is_owned=is_owned)
        clean += end.is_clean
    assert open_fds() == fds
    assert _ring._open_rings <= rings  # each drained its operations
    del case
    gc.collect()
    assert alive() <= streams
    assert threading.active_count() <= threads  # idle ones of trio's end by themselves
    assert clean >= cases // 3


@pytest.mark.ringtls_allow_unclosed
def test_the_cases_can_fail(contexts: Contexts, capsys: pytest.CaptureFixture[str]) -> None:
    """trio.SSLStream does not promise what C1 says: it loses some of the same cases."""
    cases = max(CASES // 10, 20)
    scores: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        ours, theirs = Case(seed, is_plain=True), Case(seed, is_plain=True)
        scores["ringtls"] += play(ours, contexts, ours_over(SocketStream)).is_clean
        scores["trio.SSLStream"] += play(theirs, contexts, trios).is_clean
    with capsys.disabled():
        print(f"\nclean ends of {cases}: {dict(scores)}")
    assert scores["trio.SSLStream"] < cases
    assert scores["ringtls"] > scores["trio.SSLStream"]
