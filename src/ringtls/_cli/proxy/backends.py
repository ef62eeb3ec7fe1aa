"""Where connections go: which backends there are for a client, and in which order they are tried.

Rules:

1. The backend with the fewest connections is tried first, then the others; of equals, the one that
   was named first. Each process counts its own.
2. A backend that could not be connected to is tried after all others, for FAILURE_PAUSE seconds.
   So one that is down, or that swallows connections, costs few clients their time.
3. A route is for a name that clients ask for (SNI), or for a wildcard in place of its first label.
   A client that asks for another name, or for none, goes to the backends without a route; if there
   are none, it is refused.
4. The ring connects to addresses and to local sockets. trio resolves names, in a thread; the
   addresses are remembered for RESOLUTION_AGE seconds, as long as one of them can be connected to.
   One that is on this machine, and the only one, is connected to without waiting, if it can be.
5. Of several addresses the next is tried when one has not answered for a moment, so one that
   swallows connections hides no other. One that accepts a connection and then makes no handshake
   has its share of the time: as much as each of those that have not been tried, but LEAST_SHARE
   seconds at least, as far as there are any: handshakes with one that is busy take some time. It is
   tried after all others for FAILURE_PAUSE seconds. The one that answered is the first for the next
   client.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, cast

import trio

from ringtls import SocketStream
from ringtls._connecting import Target, connect_now
from ringtls._streams.hostnames import ascii_hostname

from ..server.credentials import by_name
from ..server.listening import Address, Inherited, Local, parse_bind

__all__ = ["LEAST_SHARE", "Backend", "Place", "Routes", "parse_host", "parse_place", "parse_route"]

#: Seconds; see rules 2, 4 and 5.
FAILURE_PAUSE = 10.0
RESOLUTION_AGE = 5.0
LEAST_SHARE = 1.0

#: Characters, without a dot at the end: 255 octets in DNS (RFC 1035, section 2.3.4).
LONGEST_NAME = 253

Place: TypeAlias = Address | Local


def parse_place(text: str) -> Place:
    """HOST:PORT, [HOST]:PORT for IPv6 or unix:PATH.

    Raises:
      argparse.ArgumentTypeError
    """
    place = parse_bind(text)
    if isinstance(place, Inherited) or (isinstance(place, Address) and place.port == 0):
        raise argparse.ArgumentTypeError(f"can't connect to {text!r}")
    if isinstance(place, Address):
        parse_host(place.host)
    return place


def parse_route(text: str) -> tuple[str, Place]:
    """NAME=BACKEND, where NAME may be a wildcard.

    Raises:
      argparse.ArgumentTypeError
    """
    name, separator, place = text.partition("=")
    labels = name.removeprefix("*.")
    if not separator or "*" in labels:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BACKEND or *.NAME=BACKEND")
    labels = parse_host(labels).removesuffix(".").lower()
    return f"*.{labels}" if name.startswith("*.") else labels, parse_place(place)


def parse_host(text: str) -> str:
    """The name of a host, or its address, as resolvers have it, who refuse what has an empty label,
    or one that is too long, and a name that is.

    Raises:
      argparse.ArgumentTypeError
    """
    try:
        host = ascii_hostname(text).encode("idna").decode("ascii")
    except UnicodeError:
        host = ""
    if not 0 < len(host.removesuffix(".")) <= LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{text!r} can't be the name of a host")
    return host


class Backend:
    """One of them.

    Attributes:
      connections: how many this process has to it.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.connections = 0
        self._last_failure = -FAILURE_PAUSE
        targets = _targets_without_resolving(place)
        self._is_name = targets is None
        self._targets = targets or []
        self._resolve_at = 0.0
        self._passed_over: dict[Target, float] = {}  # addresses, and until when (rule 5)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def has_failed(self) -> bool:
        """True for a while after it did (rule 2)."""
        return time.monotonic() < self._last_failure + FAILURE_PAUSE

    def note_failure(self) -> None:
        """It could not be connected to."""
        self._last_failure = time.monotonic()
        self._resolve_at = 0.0

    def connect_now(self) -> SocketStream | None:
        """Connect, if that takes no time. None where ``connect`` may wait.

        Raises:
          OSError: its only address refuses.
        """
        if self._is_name or len(self._targets) != 1:
            return None
        return connect_now(*self._targets[0])

    async def targets(self) -> Sequence[Target]:
        """Its addresses, in the order in which they are to be tried (rules 4 and 5).

        Raises:
          OSError: its name can't be resolved.
        """
        if self._is_name and time.monotonic() >= self._resolve_at:
            assert isinstance(self.place, Address)
            found = await trio.socket.getaddrinfo(
                ascii_hostname(self.place.host), self.place.port, type=socket.SOCK_STREAM
            )
            self._targets = [cast("Target", (each[0], each[4])) for each in found]
            self._resolve_at = time.monotonic() + RESOLUTION_AGE
        now = time.monotonic()
        return sorted(self._targets, key=lambda each: now < self._passed_over.get(each, now))

    def prefer(self, target: Target) -> None:
        """It has answered."""
        self._targets = sorted(self._targets, key=target.__ne__)
        self._passed_over.pop(target, None)

    def pass_over(self, target: Target) -> None:
        """It could be connected to, and that was all."""
        now = time.monotonic()
        self._passed_over = {each: end for each, end in self._passed_over.items() if now < end}
        self._passed_over[target] = now + FAILURE_PAUSE


def _targets_without_resolving(place: Place) -> Sequence[Target] | None:
    """None for a name, and for an address with a zone, which the resolver knows."""
    if isinstance(place, Local):
        return [(socket.AF_UNIX, place.path)]
    try:
        address = ipaddress.ip_address(place.host)
    except ValueError:
        return None
    if address.version == 4:
        return [(socket.AF_INET, (str(address), place.port))]
    if address.scope_id:
        return None
    return [(socket.AF_INET6, (str(address), place.port))]


class Routes:
    """All backends, by the names that clients ask for.

    Args:
      others: where those go for whose name there is no route.
      named: names, and where they lead; several of the same name are alternatives.
    """

    def __init__(self, others: Iterable[Place], named: Iterable[tuple[str, Place]] = ()) -> None:
        known: dict[Place, Backend] = {}

        def backend(place: Place) -> Backend:
            return known.setdefault(place, Backend(place))

        self._others = [backend(place) for place in dict.fromkeys(others)]
        routes: dict[str, list[Backend]] = {}
        for name, place in dict.fromkeys(named):
            routes.setdefault(name, []).append(backend(place))
        self._named: Mapping[str, Sequence[Backend]] = routes
        self.backends = list(known.values())

    def leads_somewhere(self, name: str) -> bool:
        return bool(self._others) or by_name(self._named, name) is not None

    def backends_for(self, name: str) -> list[Backend]:
        """In the order in which they are to be tried (rules 1 and 2)."""
        found = by_name(self._named, name) or self._others
        return sorted(found, key=lambda backend: (backend.has_failed, backend.connections))
