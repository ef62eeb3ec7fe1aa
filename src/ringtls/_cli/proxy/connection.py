"""One connection of ``ringtls proxy``: from its client to a backend, and what becomes of both.

Rules:

1. ``ringtls.relay`` has both ends once a backend is there, and keeps its rules (R1 to R6 of
   docs/contract.md). Whatever goes wrong before is a reset for the client: nobody may take it for
   an end.
2. A backend that can't be connected to is passed over, while there is another, and so is one of its
   addresses. To be connected to is to have made the handshake, where there is one. For the client
   that finds none there is one line in the log, which says why for each.
3. Of the bytes before TLS only those that belong to a header of the PROXY protocol are received:
   what follows is for TLS to receive. A client whose bytes can't become a header is reset.
4. Every connection to a backend is one of a client's. So nothing is sent to a backend but what the
   client sends, behind the header that announces it.
5. A process that is killed ends nothing: its connections without TLS are reset, those with TLS miss
   their close_notify.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import trio

from ringtls import SocketStream, TlsStream
from ringtls._connecting import Target, connect_to_any
from ringtls._streams.relay import relay_watched

from ..server import SHORTAGES, Connection, Metrics, Service, Wait
from ..server.identities import common_name_of
from ..server.timeouts import HANDSHAKE, Timeout
from .access import Accounts
from .backends import LEAST_SHARE, Backend, Routes
from .encryption import Encryption
from .header import MOST, BadHeaderError, Endpoint, Endpoints, Header, Tls, Version, format_header
from .header import parse as parse_header

__all__ = ["Options", "ProxyService"]

logger = logging.getLogger("ringtls.server")

#: Alerts for a client that asks for a name that leads nowhere (RFC 6066, section 3), and for one
#: that asks for none where there are only names (RFC 8446, section 9.2).
UNRECOGNIZED_NAME = ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
MISSING_EXTENSION = 109

#: How often a connection to a backend is tried again when descriptors run short.
SHORTAGE_RETRIES = 10


@dataclass(frozen=True)
class Options:
    """What is done with a connection.

    Attributes:
      is_tls: clients speak TLS.
      encryption: towards the backends, if there is any.
      alpn: protocols: those offered to clients, or, if clients speak no TLS, to backends.
      accepts_header: a PROXY header comes first.
      sends_header: of which version, if any.
      connect_timeout: seconds that one backend may take, for its handshake too.
    """

    is_tls: bool
    encryption: Encryption | None
    alpn: tuple[str, ...]
    accepts_header: bool
    sends_header: Version | None
    connect_timeout: float


class UnreachableError(Exception):
    """There is no backend; the text says why for each."""


#: What is raised where something can't be connected to.
_FAILURES = (trio.TooSlowError, OSError, trio.BrokenResourceError)


class ProxyService(Service):
    """Relays every connection to a backend."""

    serves = "connection"
    timeouts: ClassVar[Mapping[Wait, Timeout]] = {
        Wait.HANDSHAKE: HANDSHAKE,
        Wait.NEXT_REQUEST: Timeout(
            "--idle-timeout", "how long a connection may move nothing, either way", 600.0
        ),
    }
    descriptors = 2
    https_compatible = False

    def __init__(self, options: Options, routes: Routes) -> None:
        self._options = options
        self._routes = routes
        self._accounts = Accounts()
        self.is_tls = options.is_tls
        self.has_preface = options.accepts_header or not options.is_tls
        self.scheme = "tls" if options.is_tls else "tcp"
        self.alpn = options.alpn if options.is_tls else ()
        if options.encryption is not None:
            self.files = options.encryption.files

    def load(self, contents: Sequence[bytes]) -> Callable[[], object]:
        encryption = self._options.encryption
        return super().load(contents) if encryption is None else encryption.load(contents)

    def add_metrics(self, metrics: Metrics) -> None:
        self._accounts.add_metrics(metrics, self._routes.backends)

    def refuse(self, name: str) -> int | None:
        if self._routes.leads_somewhere(name):
            return None
        return UNRECOGNIZED_NAME if name else MISSING_EXTENSION

    async def begin(self, connection: Connection) -> bool:
        if not self.is_tls:
            connection.transport.reset_if_killed()  # rule 5
        if not self._options.accepts_header:
            return True
        try:
            header = await receive_header(connection)
        except BadHeaderError as error:
            logger.warning("%s: no PROXY header: %s", connection.peer, error)
            connection.transport.close_unclean()
            return False
        if header is None:
            await connection.transport.aclose()
            return False
        if header.endpoints is not None:
            connection.data = header.endpoints
            connection.peer = str(header.endpoints[0])
        return True

    async def handle(self, connection: Connection) -> None:
        connection.begin(Wait.NOTHING)
        client = _client_of(connection)
        began = time.monotonic()
        try:
            backend, stream = await self._reach(connection)
        except UnreachableError as error:
            client.close_unclean()
            logger.warning("%s: no backend: %s", connection.peer, error)
            return
        except BaseException:
            client.close_unclean()
            raise
        backend.connections += 1
        try:
            outcome = await relay_watched(
                client, stream, lambda both: connection.watch(both, Wait.NEXT_REQUEST)
            )
        finally:
            backend.connections -= 1
        self._accounts.note(connection, backend, outcome, time.monotonic() - began)

    def turn_away(self, connection: Connection) -> None:
        _client_of(connection).close_unclean()  # rule 1

    async def _reach(self, connection: Connection) -> tuple[Backend, SocketStream | TlsStream]:
        """A backend, and a connection to it (rule 2).

        Raises:
          UnreachableError
        """
        failures: list[str] = []
        for backend in self._routes.backends_for(connection.server_name):
            try:
                stream = await self._open(connection, backend, failures)
            except _FAILURES as error:
                failures.append(f"{backend}: {_reason(error, self._options.connect_timeout)}")
            else:
                if failures:
                    logger.warning("%s: passed over %s", connection.peer, "; ".join(failures))
                return backend, stream
            backend.note_failure()
            self._accounts.note_failure(backend)
        raise UnreachableError("; ".join(failures))

    async def _open(
        self, connection: Connection, backend: Backend, failures: list[str]
    ) -> SocketStream | TlsStream:
        transport = _connect_now(backend)
        if transport is not None and self._options.encryption is None:
            return await self._prepare(connection, backend, transport)  # which waits for nobody
        with trio.fail_after(self._options.connect_timeout) as scope:
            if transport is not None:
                return await self._prepare(connection, backend, transport)
            return await self._open_any(connection, backend, failures, scope.deadline)

    async def _open_any(
        self, connection: Connection, backend: Backend, failures: list[str], deadline: float
    ) -> SocketStream | TlsStream:
        """Of its addresses that which answers (rule 5 of backends.py)."""
        targets = list(await backend.targets())
        while True:
            target, transport = await _connect(connection, targets)
            now = trio.current_time()
            share = max((deadline - now) / len(targets), LEAST_SHARE)
            try:
                with trio.fail_at(now + share):
                    stream = await self._prepare(connection, backend, transport)
            except _FAILURES as error:
                targets.remove(target)
                if not targets:
                    raise
                backend.pass_over(target)
                failures.append(f"{backend} at {target[1][0]}: {_reason(error, share)}")
            else:
                backend.prefer(target)
                return stream

    async def _prepare(
        self, connection: Connection, backend: Backend, transport: SocketStream
    ) -> SocketStream | TlsStream:
        """Say what the backend is to know first, and encrypt."""
        options = self._options
        transport.reset_if_killed()  # rule 5
        stream: SocketStream | TlsStream = transport
        try:
            if options.sends_header is not None:
                tls = tls_of(connection) if connection.is_tls else None
                header = format_header(options.sends_header, endpoints_of(connection), tls)
                await transport.send_all(header)
            if options.encryption is not None:
                alpn = options.alpn
                if connection.is_tls:
                    agreed = connection.stream.selected_alpn_protocol()
                    alpn = () if agreed is None else (agreed,)
                stream = options.encryption.wrap(transport, backend.place, alpn)
                await stream.do_handshake()
        except BaseException:
            stream.close_unclean()
            raise
        return stream


def _client_of(connection: Connection) -> SocketStream | TlsStream:
    return connection.stream if connection.is_tls else connection.transport


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {timeout:.3g} s"
    if not isinstance(error, OSError):
        return str(error)
    # That of the resolver has no number of the system's, that of the ring more text than is needed.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def receive_header(connection: Connection) -> Header | None:
    """Receive a header, and nothing else (rule 3). None if the client ends without a word, as a
    health check does.

    Raises:
      BadHeaderError: there is none.
      trio.BrokenResourceError: the connection broke.
    """
    transport, received = connection.transport, b""
    while True:
        peeked = await transport.peek(MOST - len(received))
        if not (peeked or received):
            return None
        if not peeked:
            raise BadHeaderError(f"the connection ended after {len(received)} bytes")
        header = parse_header(received + peeked)
        if header is not None:
            peeked = peeked[: header.size - len(received)]
        received += await _receive(transport, len(peeked))
        connection.preface = len(received)
        if header is not None:
            return header


async def _receive(transport: SocketStream, size: int) -> bytes:
    """Bytes that have come already."""
    data = b""
    while len(data) < size:
        data += await transport.receive_some(size - len(data))
    return data


def _connect_now(backend: Backend) -> SocketStream | None:
    """None, too, if descriptors run short."""
    try:
        return backend.connect_now()
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        return None


async def _connect(
    connection: Connection, targets: Sequence[Target]
) -> tuple[Target, SocketStream]:
    """Connect, with the patience that a shortage of descriptors asks for."""
    for _ in range(SHORTAGE_RETRIES):
        try:
            return await connect_to_any(targets)
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
        await connection.make_room()
    return await connect_to_any(targets)


def endpoints_of(connection: Connection) -> Endpoints | None:
    """What a balancer in front said, or what the socket knows."""
    if connection.data is not None:
        endpoints: Endpoints = connection.data
        return endpoints
    sock = connection.transport.socket
    try:
        source, destination = Endpoint.of(sock.getpeername()), Endpoint.of(sock.getsockname())
    except OSError:  # the client is gone
        return None
    return None if source is None or destination is None else (source, destination)


def tls_of(connection: Connection) -> Tls:
    """What there is to tell of a client's TLS."""
    stream = connection.stream
    version, cipher, certificate = stream.version(), stream.cipher(), stream.getpeercert()
    assert version is not None
    assert cipher is not None
    return Tls(
        version,
        cipher[0],
        stream.selected_alpn_protocol(),
        connection.server_name,
        None if certificate is None else common_name_of(certificate),
        bool(stream.session_reused),
    )
