"""C2: a KeyboardInterrupt at any bytecode of ours, in a connection's life and in its end.

SIGINT comes at the nth bytecode that is executed in ringtls' own modules, for many n. The run
always ends, and the peer always sees a clean end of what it was sent.
"""

from __future__ import annotations

import random
import threading
import warnings
from contextlib import suppress
from typing import Any

import trio

from ringtls import TlsStream

from ..conftest import Contexts
from ..support.peer import End, MakeTransport, Peer
from ..support.signals import SignalAtBytecode
from ..support.streams import tcp_pair
from ..support.tracing import traced_by
from ..support.waiting import LIMIT

SENT = bytes(range(256)) * 100


def peer_story(peer: Peer, ends: list[End]) -> None:
    peer.handshake()
    peer.send(b"to be received")
    ends.append(peer.end())


def play(contexts: Contexts, make_transport: MakeTransport, number: int) -> tuple[bool, End]:
    """Run a connection; was the signal given, and how did the peer see the end?"""
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    ends: list[End] = []
    thread = threading.Thread(target=peer_story, args=(peer, ends))
    signaller = SignalAtBytecode(number)

    async def main() -> None:
        stream: TlsStream[Any] = TlsStream(
            make_transport(ours), contexts.server, server_side=True, shutdown_timeout=LIMIT
        )
        await stream.do_handshake()
        with traced_by(signaller):
            async with stream:
                await stream.send_all(SENT)
                with trio.move_on_after(0.0001) as scope:
                    await stream.receive_some()
                if scope.cancelled_caught:
                    await stream.receive_some()
                await stream.send_all(SENT)

    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it may come before the async with
        with suppress(KeyboardInterrupt):
            trio.run(main)
    thread.join()
    return signaller.left <= 0, ends[0]


def test_c2_keyboard_interrupt_at_any_bytecode(
    contexts: Contexts, transport: MakeTransport
) -> None:
    rng = random.Random(3)
    last = 1
    while play(contexts, transport, last)[0]:
        last *= 2
    for _ in range(30):
        number = rng.randrange(1, last)
        _, end = play(contexts, transport, number)
        assert end.is_clean, (number, end.close_notify, end.transport)
        assert (SENT * 2).startswith(end.data), number
