"""What a command adds to the server: it derives from Service.

A server calls its methods in this order: ``load``, and again at SIGHUP; ``add_metrics`` and
``prepare``; in each process ``running``. For each connection it calls ``begin`` before TLS,
``refuse`` in the handshake, and ``handle``; or ``turn_away`` instead, if it is not to be handled.
When one is cut that was slow with a request, ``say_last``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from .connections import Connection, Wait
from .metrics import Metrics
from .timeouts import OF_REQUESTS, Timeout

__all__ = ["Service"]


class Service:
    """What a command does with connections. All else is the server's.

    Attributes:
      serves: what clients ask for, one at a time.
      timeouts: those that the command has. What is not there has no limit; without Wait.ROOM
        ``handle`` ends each stream, so that none is left to be taken in (rule 2 of handling.py).
      descriptors: how many a connection takes.
      alpn: protocols that are offered to clients, the preferred first.
      files: what is read with the certificates, at the start and at SIGHUP.
      has_preface: whether ``begin`` is to be called.
      is_tls: whether clients speak TLS.
      scheme: of the URLs at which it is reached.
      https_compatible: see TlsStream.
    """

    serves: ClassVar[str] = "request"
    timeouts: ClassVar[Mapping[Wait, Timeout]] = OF_REQUESTS
    descriptors: ClassVar[int] = 1
    alpn: tuple[str, ...] = ()
    files: Sequence[Path] = ()
    has_preface = False
    is_tls = True
    scheme = "https"
    https_compatible = True

    def load(self, contents: Sequence[bytes]) -> Callable[[], object]:
        """Make something of what ``files`` hold; what is returned has it used from then on.

        Raises:
          StartError: it can't be used.
        """
        return lambda: None

    def prepare(self) -> None:
        """Open what is needed; called once, before there are workers.

        Raises:
          StartError: this can't be served.
        """

    def add_metrics(self, metrics: Metrics) -> None:
        """Name what is counted; called once, before ``prepare``."""

    def running(self) -> AbstractAsyncContextManager[object]:
        """A context in which the connections of one process are served."""
        return nullcontext()

    def refuse(self, name: str) -> int | None:
        """The alert that refuses a client which asks for this name ("" if for none); None if it
        is served."""
        return None

    async def begin(self, connection: Connection) -> bool:
        """Take what comes before TLS. False if the connection has been reset."""
        raise NotImplementedError

    async def handle(self, connection: Connection) -> None:
        """Serve one connection, after its handshake. It is ended when this returns.

        ``connection.begin`` says what the peer is waited for, so that limits are kept. When the
        connection is cut, trio.Cancelled comes out of this. trio.BrokenResourceError and other
        errors may be left to the caller: they are logged.
        """
        raise NotImplementedError

    def turn_away(self, connection: Connection) -> None:
        """End one that is not handled (rule 4 of handling.py). What is left open ends in order."""

    async def say_last(self, connection: Connection) -> None:
        """Send something to a connection that was cut for being slow with a request.

        Cancelled if it waits for the peer, as it does where too much is unsent.
        """
