"""The connections of one process, and what each waits for.

Rules:

1. Nothing waits for a peer without a limit. A connection says what it waits for, which notes a
   time; a sweep over all connections cuts those whose time has passed. So a request costs no
   cancel scope and no timer, and a limit is kept to within SWEEP_INTERVAL. What says nothing, as a
   relay, or a peer that takes in what was sent, is looked at LOOKS times within its limit, and has
   time again whenever it has moved. So it may take a quarter more. That holds for a peer that owes
   something, too: it may still be taking in what it has to answer.
2. A connection is cut by cancelling its scope, once. What was received by then is not answered.
   What was sent is not torn, and the stream ends in order. ``cut`` has the reason.
3. While the server drains, a connection that waits for a request is cut, and so is one that
   begins to. Others end after what they do now.
4. In a shortage (of descriptors, or of connections that are allowed), the connections that have
   waited longest for their peer give way. They are looked for only then.
"""

from __future__ import annotations

import enum
import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ringtls._accepting import SHORTAGE_PAUSE

from .peers import taken_in

if TYPE_CHECKING:
    from ringtls import SocketStream, TlsStream

__all__ = ["Activity", "Connection", "Connections", "Cut", "Limits", "Wait"]

#: Seconds; see rule 1.
SWEEP_INTERVAL = 0.5

#: See rule 1.
LOOKS = 4

#: How many give way at once when descriptors run short; see rule 4.
GIVE_WAY = 32

NEVER = float("inf")


class Wait(enum.IntEnum):
    """What a connection waits for."""

    HANDSHAKE = 0
    """With what comes before it."""
    FIRST_REQUEST = 1
    REQUEST = 2
    """The rest of a request that has begun to come."""
    NEXT_REQUEST = 3
    ROOM = 4
    """For the peer to take in what was sent."""
    OWED = 5
    """For what only the peer can go on with: more of a request's body, room for an answer."""
    NOTHING = 6


#: Rule 3.
_IDLE = (Wait.HANDSHAKE, Wait.FIRST_REQUEST, Wait.NEXT_REQUEST)

#: Rule 1.
_MAY_TAKE_IN = (Wait.ROOM, Wait.OWED)

#: Rule 4.
_GIVES_WAY = (*_IDLE, Wait.REQUEST)


class Cut(enum.Enum):
    """Why a connection was cut."""

    TIMEOUT = "it took too long"
    DRAIN = "the server ends"
    SHORTAGE = "it gave way to another"


class Activity(Protocol):
    """Something that goes on, and is given up when it no longer moves (rule 1)."""

    def moved(self) -> object:
        """Something that changes when it does."""

    def time_out(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Limits:
    """Bounds of what peers may take.

    Attributes:
      timeouts: seconds, for each thing that is waited for no longer.
      connections: how many may be open at once.
    """

    timeouts: Mapping[Wait, float]
    connections: float = NEVER


@dataclass(eq=False, slots=True)
class Connection:
    """A connection, for the handler that serves it.

    Attributes:
      transport: what is below TLS, or all there is.
      peer: its address, for log lines.
      preface: bytes that came before TLS, and do not belong to it.
      stream: after its handshake.
      server_name: what the client asked for (SNI), if it did.
      identity: the subject of the certificate that the client gave, if any.
      is_admitted: its handshake is complete, and its client allowed.
      cut: why it was cut, if it was.
    """

    transport: SocketStream
    peer: str
    _table: Connections
    preface: int = 0
    stream: TlsStream = field(init=False)
    is_tls: bool = False
    server_name: str = ""
    identity: str = ""
    is_admitted: bool = False
    cut: Cut | None = None
    waits_for: Wait = Wait.NOTHING
    deadline: float = NEVER
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    data: Any = None  # the handler's own
    _start: Callable[[], object] | None = None
    _activity: Activity | None = None
    _limit: float = NEVER
    _seen: object = None
    _seen_at: float = NEVER

    def starts_by(self, start: Callable[[], object]) -> None:
        """``start`` starts its task, which it has none of yet."""
        self._start = start

    def start(self) -> None:
        """Start its task, if that has not happened."""
        start, self._start = self._start, None
        if start is not None:
            start()

    def begin(self, wait: Wait) -> None:
        """Wait for something from now on; ``Wait.NOTHING`` is without a limit."""
        self.waits_for = wait
        self.deadline = time.monotonic() + self._table.first_looks[wait]
        self._seen = None
        if self._table.draining and wait in _IDLE:
            self.end(Cut.DRAIN)

    def watch(self, activity: Activity, limit: Wait) -> None:
        """Let this go on as long as it moves, until the connection ends."""
        self._activity = activity
        self._limit = self._table.timeouts[limit]
        self.deadline = time.monotonic() + self._limit / LOOKS

    def expire(self, now: float) -> None:
        """Its deadline is over."""
        if self._activity is not None:
            if self._is_still(self._activity.moved(), self._limit, now):
                self.deadline = NEVER
                self._activity.time_out()
        elif self.waits_for not in _MAY_TAKE_IN or self._is_still(
            taken_in(self.stream), self.timeout_of(self.waits_for), now
        ):
            self.end(Cut.TIMEOUT)

    def _is_still(self, seen: object, limit: float, now: float) -> bool:
        """True if nothing has changed for so long. Else it will be looked at again (rule 1)."""
        self.deadline = now + limit / LOOKS
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now >= self._seen_at + limit

    def end(self, reason: Cut) -> None:
        """Cut it."""
        if self.cut is None:
            self.cut = reason
            self.scope.cancel()
            self.start()

    def timeout_of(self, wait: Wait) -> float:
        """Seconds that it may wait for something."""
        return self._table.timeouts[wait]

    async def make_room(self) -> None:
        """Have other connections give way, since descriptors run short; then try again."""
        self._table.make_room()
        await trio.sleep(SHORTAGE_PAUSE)

    @property
    def draining(self) -> bool:
        """True if there is to be no other request."""
        return self._table.draining


class Connections:
    """Those that are open now."""

    def __init__(self, limits: Limits) -> None:
        self.timeouts = [limits.timeouts.get(wait, NEVER) for wait in Wait]  # they are its indexes
        #: Seconds until a connection that waits is looked at (rule 1).
        self.first_looks = list(self.timeouts)
        for wait in _MAY_TAKE_IN:
            self.first_looks[wait] /= LOOKS
        self._limit = limits.connections
        self._open: set[Connection] = set()
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self.draining = False

    @property
    def uncut(self) -> int:
        """How many have not been told to end."""
        return sum(connection.cut is None for connection in self._open)

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        if len(self._open) > self._limit:
            self._give_way(1)

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._waiting_for_room.unpark_all()

    def has_room(self) -> bool:
        """Whether another connection may be accepted."""
        return len(self._open) <= self._limit

    async def until_there_is_room(self) -> None:
        """Several tasks, each of a listener, may wait at once."""
        while not self.has_room():
            await self._waiting_for_room.park()

    def drain(self) -> None:
        """See rule 3."""
        self.draining = True
        for connection in list(self._open):
            if connection.waits_for in _IDLE:
                connection.end(Cut.DRAIN)

    def make_room(self) -> None:
        """Descriptors run short (rule 4). Those that give way already will leave theirs."""
        self._give_way(GIVE_WAY - sum(each.cut is Cut.SHORTAGE for each in self._open))

    def _give_way(self, count: int) -> None:
        waiting = (
            connection
            for connection in self._open
            if connection.cut is None and connection.waits_for in _GIVES_WAY
        )
        for connection in heapq.nsmallest(count, waiting, key=_waiting_since):
            connection.end(Cut.SHORTAGE)

    async def sweep(self) -> None:
        """Keep rule 1, for ever."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            now = time.monotonic()
            for connection in list(self._open):
                if connection.deadline < now:
                    connection.expire(now)


def _waiting_since(connection: Connection) -> float:
    return connection.deadline - connection.timeout_of(connection.waits_for)
