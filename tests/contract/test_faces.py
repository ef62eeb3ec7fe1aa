"""D5: the asynchronous and the blocking face keep the same rules, C1 to C14.

Each case is a story of ours and one of the peer's, and is played on every face.
"""

from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest
import trio

from ringtls import CloseOutcome, TruncationError

from ..conftest import Contexts
from ..support.clogging import SMALL
from ..support.faces import FACES, AnyStream, Face
from ..support.peer import End, Peer, Transport
from ..support.streams import tcp_pair
from ..support.waiting import LIMIT, wait_until
from .test_ending import leave_by_break, leave_by_exception, leave_by_return

pytestmark = pytest.mark.ringtls_allow_unclosed

LAST_WORDS = b"last words"

Check = Callable[[End], bool]


@dataclass
class Case:
    """What our side does, what the peer does before it reads to the end, and what comes of it."""

    name: str
    ours: Callable[[Face], Awaitable[None]]
    theirs: Callable[[Peer, Face], object] = field(default=lambda peer, face: None)
    outcome: CloseOutcome | None = CloseOutcome.CLEAN
    data: bytes | None = b""
    is_right: Check = field(default=lambda end: end.is_clean)
    handshake: bool = True


def leave(by: Callable[[AnyStream], Awaitable[None]]) -> Callable[[Face], Awaitable[None]]:
    async def story(face: Face) -> None:
        await by(face.stream())

    return story


async def send_forever(stream: AnyStream) -> None:
    """At the first wait more than a narrow connection takes has been accepted."""
    while True:
        await stream.send_all(bytes(1_000_000))


async def interrupted_in_a_receive(face: Face) -> None:
    stream = face.stream()
    await stream.do_handshake()

    async def talk() -> None:
        async with stream:
            await stream.send_all(LAST_WORDS)
            await stream.receive_some()

    await face.interrupted(stream, talk)


async def interrupted_in_a_send(face: Face) -> None:
    stream = face.stream()
    await stream.do_handshake()

    async def talk() -> None:
        async with stream:
            try:
                await send_forever(stream)
            finally:
                face.cue.set()

    await face.interrupted(stream, talk)


async def goes_on_after_an_interrupted_send(face: Face) -> None:
    async with face.stream() as stream:
        await stream.do_handshake()
        await face.interrupted(stream, lambda: send_forever(stream))
        face.cue.set()
        await stream.send_all(LAST_WORDS)


async def goes_on_after_an_interrupted_receive(face: Face) -> None:
    async with face.stream() as stream:
        await stream.do_handshake()
        await face.interrupted(stream, stream.receive_some)
        await stream.send_all(b"now ")
        assert await stream.receive_some() == b"late"
        await stream.send_all(LAST_WORDS)


async def goes_on_after_an_interrupted_handshake(face: Face) -> None:
    async with face.stream() as stream:
        await face.interrupted(stream, stream.do_handshake)
        face.cue.set()
        await stream.do_handshake()
        await stream.send_all(LAST_WORDS)


async def input_is_left_unread(face: Face) -> None:
    async with face.stream() as stream:
        await stream.receive_some(1)
        await stream.send_all(LAST_WORDS)


async def left_before_the_handshake(face: Face) -> None:
    async with face.stream(https_compatible=True) as stream:
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):  # as trio: only to read is it an end
            await stream.do_handshake()


async def half_close(face: Face) -> None:
    async with face.stream() as stream:
        await stream.send_all(LAST_WORDS)
        await stream.send_eof()
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received == b"late"
        assert await stream.receive_some() == b""


async def unwraps(face: Face) -> None:
    stream = face.stream()
    await stream.send_all(LAST_WORDS)
    transport_stream, received = await stream.unwrap()
    for use in (stream.receive_some, stream.unwrap, lambda: stream.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError, match="unwrapped"):
            await use()
    with pytest.raises(trio.ClosedResourceError, match="unwrapped"):
        stream.transport_stream  # noqa: B018
    await stream.aclose()
    while len(received) < len(b"plain"):
        received += await transport_stream.receive_some()
    assert received == b"plain"
    await transport_stream.send_all(b"text")
    await transport_stream.aclose()


def goes_on_in_plain(peer: Peer, face: Face) -> None:
    assert peer.receive(len(LAST_WORDS)) == LAST_WORDS
    peer.send_close_notify()
    peer.sock.sendall(b"plain")


async def truncated(face: Face) -> None:
    async with face.stream() as stream:
        assert await stream.receive_some() == b"half a"
        for _ in range(2):
            with pytest.raises(TruncationError):
                await stream.receive_some()
        await stream.send_all(LAST_WORDS)


async def truncated_as_on_the_web(face: Face) -> None:
    async with face.stream(https_compatible=True) as stream:
        assert await stream.receive_some() == b"half a"
        assert await stream.receive_some() == b""


def truncate(peer: Peer, face: Face) -> None:
    peer.send(b"half a")
    peer.sock.shutdown(1)


async def tls_error(face: Face) -> None:
    async with face.stream() as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def before_the_handshake(face: Face) -> None:
    async with face.stream():
        pass


async def timeout_of_the_stream(face: Face) -> None:
    async with face.stream(shutdown_timeout=0.1) as stream:
        await stream.do_handshake()
        await face.interrupted(stream, lambda: send_forever(stream))


async def timeout_of_the_close(face: Face) -> None:
    stream = face.stream(shutdown_timeout=60)
    await stream.do_handshake()
    await face.interrupted(stream, lambda: send_forever(stream))
    await stream.aclose(shutdown_timeout=0.1)


async def peer_is_gone(face: Face) -> None:
    async with face.stream() as stream:
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await send_forever(stream)


async def on_purpose(face: Face) -> None:
    stream = face.stream()
    await stream.do_handshake()
    stream.close_unclean()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    await stream.aclose()


async def closes_again(face: Face) -> None:
    stream = face.stream()
    await stream.send_all(LAST_WORDS)
    await stream.aclose()
    await stream.aclose()
    stream.close_unclean()
    for use in (stream.receive_some, stream.do_handshake, lambda: stream.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            await use()


async def dropped(face: Face) -> None:
    stream = face.stream()
    await stream.send_all(LAST_WORDS)
    with pytest.warns(ResourceWarning, match="faces.py:"):
        del stream
        gc.collect()


async def dropped_after_an_interrupted_send(face: Face) -> None:
    streams = [face.stream()]
    await streams[0].do_handshake()
    await face.interrupted(streams[0], lambda: send_forever(streams[0]))
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        streams.clear()
        gc.collect()
    face.cue.set()


left_open: list[Any] = []


async def left_open_at_the_end(face: Face) -> None:
    """Of the run, or of the thread."""
    stream = face.stream()
    await stream.send_all(LAST_WORDS)
    left_open.append(stream)


def read_late(peer: Peer, face: Face) -> None:
    face.cue.wait(LIMIT)


def read_too_late(peer: Peer, face: Face) -> None:
    wait_until(lambda: face.closing.outcome)


def handshake_late(peer: Peer, face: Face) -> None:
    face.cue.wait(LIMIT)
    peer.handshake()


def send_much(peer: Peer, face: Face) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # our face has ended
        peer.send(bytes(3_000_000))


def answer_late(peer: Peer, face: Face) -> None:
    assert peer.receive(4) == b"now "
    peer.send(b"late")


def send_late_and_end(peer: Peer, face: Face) -> None:
    assert peer.receive(len(LAST_WORDS)) == LAST_WORDS
    peer.send(b"late")
    peer.send_close_notify()


CASES = [
    Case("return", leave(leave_by_return), data=LAST_WORDS),
    Case("exception", leave(leave_by_exception), data=LAST_WORDS),
    Case("break", leave(leave_by_break), data=LAST_WORDS),
    Case("interrupted in a receive", interrupted_in_a_receive, data=LAST_WORDS),
    Case("interrupted in a send", interrupted_in_a_send, read_late, data=None),
    Case(
        "goes on after an interrupted send",
        goes_on_after_an_interrupted_send,
        read_late,
        data=None,
        is_right=lambda end: end.is_clean and end.data.endswith(LAST_WORDS),
    ),
    Case(
        "goes on after an interrupted receive",
        goes_on_after_an_interrupted_receive,
        answer_late,
        data=LAST_WORDS,
    ),
    Case(
        "goes on after an interrupted handshake",
        goes_on_after_an_interrupted_handshake,
        handshake_late,
        data=LAST_WORDS,
        handshake=False,
    ),
    Case(
        "unread input",
        input_is_left_unread,
        send_much,
        data=LAST_WORDS,
    ),
    Case("half-close", half_close, send_late_and_end),
    Case(
        "unwrap",
        unwraps,
        goes_on_in_plain,
        outcome=None,  # the connection has not ended with TLS
        data=None,
        is_right=lambda end: end.trailing == len(b"text") and end.transport is Transport.FIN,
    ),
    Case("truncated", truncated, truncate, data=LAST_WORDS),
    Case("truncated as on the web", truncated_as_on_the_web, truncate),
    Case(
        "TLS error",
        tls_error,
        lambda peer, face: peer.sock.sendall(b"\x17\x03\x03\x00\x05junk!"),
        outcome=CloseOutcome.AFTER_FATAL_ALERT,
        is_right=lambda end: "ALERT" in str(end.error) and end.transport is Transport.FIN,
    ),
    Case(
        "before the handshake",
        before_the_handshake,
        outcome=CloseOutcome.BEFORE_HANDSHAKE,
        handshake=False,
        is_right=lambda end: not end.close_notify and end.transport is Transport.FIN,
    ),
    Case(
        "the peer leaves before the handshake, as on the web",
        left_before_the_handshake,
        lambda peer, face: peer.sock.shutdown(socket.SHUT_WR),
        outcome=CloseOutcome.BEFORE_HANDSHAKE,
        handshake=False,
        is_right=lambda end: not end.close_notify and end.transport is Transport.FIN,
    ),
    Case(
        "timeout of the stream",
        timeout_of_the_stream,
        read_too_late,
        outcome=CloseOutcome.TIMED_OUT,
        data=None,
        is_right=lambda end: not end.close_notify and end.transport is Transport.RST,
    ),
    Case(
        "timeout of the close",
        timeout_of_the_close,
        read_too_late,
        outcome=CloseOutcome.TIMED_OUT,
        data=None,
        is_right=lambda end: not end.close_notify and end.transport is Transport.RST,
    ),
    Case(
        "the peer is gone",
        peer_is_gone,
        lambda peer, face: peer.vanish(),
        outcome=CloseOutcome.PEER_RESET,
    ),
    Case(
        "unclean on purpose",
        on_purpose,
        outcome=CloseOutcome.UNCLEAN,
        is_right=lambda end: not end.close_notify and end.transport is Transport.RST,
    ),
    Case("closes again", closes_again, data=LAST_WORDS),
    Case("dropped", dropped, data=LAST_WORDS),
    Case(
        "dropped after an interrupted send",
        dropped_after_an_interrupted_send,
        read_late,
        data=None,
    ),
    Case("left open at the end", left_open_at_the_end, data=LAST_WORDS),
]


def play(case: Case, face_type: type[Face], contexts: Contexts) -> tuple[Face, End | None]:
    """Play a case; returns how the peer saw the end, unless it went first."""
    ours, theirs = tcp_pair(SMALL)
    peer = Peer(theirs, contexts, server_side=False)
    ends: list[End] = []

    def their_story() -> None:
        if case.handshake:
            peer.handshake()
        case.theirs(peer, face)
        if theirs.fileno() >= 0:
            ends.append(peer.end())

    face = face_type(ours, contexts)
    thread = Thread(target=their_story)
    del ours
    thread.start()
    try:
        with warnings.catch_warnings():
            if case.ours is left_open_at_the_end:
                warnings.simplefilter("ignore", ResourceWarning)
            face.play(case.ours)
    finally:
        thread.join()
    return face, ends[0] if ends else None


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("face_type", FACES)
def test_d5_the_same_on_every_face(contexts: Contexts, face_type: type[Face], case: Case) -> None:
    face, end = play(case, face_type, contexts)
    assert face.closing.outcome is case.outcome
    if end is not None:
        assert case.is_right(end), (end.close_notify, end.transport, end.trailing, end.error)
        assert case.data is None or end.data == case.data
    left_open.clear()
