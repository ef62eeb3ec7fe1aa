"""The ways in which a server's side of a connection can end, each with the client it needs.

A case is the same code for every kind of server. ``serve`` runs inside ``async with stream:``,
inside a cancel scope of its own. ``converse`` is what the client does before it reads to the end.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from .peer import TIMEOUT, End, Observation

__all__ = ["CANCELLED_READING", "CASES", "RETURN", "Case", "Connection", "HandlerFailedError"]

REPLY = 16 * 1024

#: Bytes that a client sends and nobody reads.
UPLOAD = 512 * 1024

#: What is sent at once into a client that has stalled.
PIECE = 64 * 1024

#: Seconds that a handler which is to be cancelled has to block.
CANCEL_AFTER = 0.01

#: Random moments are within so many seconds after the handshake.
RANDOM_CANCEL_AFTER = 0.02
RANDOM_UPLOADS = 8
RANDOM_SIZE = 64 * 1024


class HandlerFailedError(Exception):
    """What a handler raises that fails."""


@dataclass
class Connection:
    """What is known of one connection while it lasts.

    Attributes:
      source: the bytes that the server sends, in this order.
      offered: how many of them were given to ``send_all``.
      accepted: how many of them a ``send_all`` that returned was given.
      may_read: set when the client may begin to read.
      scope: the handler's.
    """

    number: int
    source: memoryview
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    may_read: threading.Event = field(default_factory=threading.Event)
    offered: int = 0
    accepted: int = 0

    async def send(self, stream: trio.abc.Stream, size: int) -> None:
        """Send up to ``size`` bytes more of the source."""
        data = self.source[self.offered :][:size]
        self.offered += len(data)
        await stream.send_all(data)
        self.accepted = self.offered

    def cancel_after(self, seconds: float) -> None:
        self.scope.deadline = trio.current_time() + seconds

    def random(self, side: str) -> random.Random:
        """The same numbers in each run."""
        return random.Random(f"{side} {self.number}")

    def judge(self, observation: Observation) -> End:
        """The end that the client saw, if what it received is what was sent.

        That is some part of what was offered, from its start, and after a clean end all that
        was accepted.
        """
        received = len(observation.received)
        expected = self.accepted if observation.end is End.CLEAN else 0
        intact = observation.received == self.source[: self.offered][:received]
        return observation.end if intact and received >= expected else End.CORRUPT


@dataclass(frozen=True)
class Case:
    name: str
    serve: Callable[[trio.abc.Stream, Connection], Awaitable[None]]
    converse: Callable[[ssl.SSLSocket, Connection], None]


def _only_read(client: ssl.SSLSocket, connection: Connection) -> None:
    """The client has nothing to say."""


def _stall(client: ssl.SSLSocket, connection: Connection) -> None:
    if not connection.may_read.wait(TIMEOUT):
        raise TimeoutError("the server's handler was not cancelled")


def _upload(client: ssl.SSLSocket, connection: Connection) -> None:
    client.sendall(bytes(UPLOAD))


def _upload_at_random(client: ssl.SSLSocket, connection: Connection) -> None:
    rng = connection.random("client")
    for _ in range(rng.randrange(RANDOM_UPLOADS)):
        client.sendall(bytes(rng.randrange(1, RANDOM_SIZE)))


async def _return(stream: trio.abc.Stream, connection: Connection) -> None:
    await connection.send(stream, REPLY)


async def _raise(stream: trio.abc.Stream, connection: Connection) -> None:
    await connection.send(stream, REPLY)
    raise HandlerFailedError


async def _be_cancelled_reading(stream: trio.abc.Stream, connection: Connection) -> None:
    await connection.send(stream, REPLY)
    connection.cancel_after(CANCEL_AFTER)
    await stream.receive_some()


async def _be_cancelled_sending(stream: trio.abc.Stream, connection: Connection) -> None:
    connection.cancel_after(CANCEL_AFTER)
    try:
        while True:
            await connection.send(stream, PIECE)
    finally:
        connection.may_read.set()


async def _leave_input_unread(stream: trio.abc.Stream, connection: Connection) -> None:
    await stream.receive_some(1)  # so the upload has begun
    await connection.send(stream, REPLY)


async def _be_cancelled_at_random(stream: trio.abc.Stream, connection: Connection) -> None:
    rng = connection.random("server")
    connection.cancel_after(rng.uniform(0, RANDOM_CANCEL_AFTER))
    while True:
        size = rng.randrange(1, RANDOM_SIZE)
        if rng.random() < 0.5:
            await connection.send(stream, size)
        else:
            await stream.receive_some(size)


RETURN = Case("returns normally", _return, _only_read)
CANCELLED_READING = Case("cancelled while reading", _be_cancelled_reading, _only_read)

CASES = (
    RETURN,
    Case("raises an exception", _raise, _only_read),
    CANCELLED_READING,
    Case("cancelled while sending", _be_cancelled_sending, _stall),
    Case("leaves input unread", _leave_input_unread, _upload),
    Case("cancelled at random", _be_cancelled_at_random, _upload_at_random),
)
