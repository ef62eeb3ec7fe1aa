"""One connection of a server, from its handshake to its end.

Rules:

1. Whatever a peer does, it ends no connection but its own, and causes one line in the log. The
   line is at level DEBUG for a peer that ends without having said anything, as a health check
   does; a PROXY header, which comes before TLS, is nothing said.
2. The end of a stream has little time, and can't be cut short. So once a connection was handled,
   the server first waits until the peer has all that it was sent (``_until_taken``), which can be
   cut short, and then ends it.
3. A connection has a task from its handshake on, or when it is cut: a client that only connects
   costs none. Where something comes before TLS, it has one from the start.
4. A connection that was cut before it could be handled, or whose client is not allowed, is turned
   away: the service says how, and nothing more is waited for. One whose handshake failed ends with
   the alert that says why.
"""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from ringtls import SocketStream, TlsStream
from ringtls._streams.handshakes import begin_handshake, is_shaken, is_silent

from .connections import Connection, Connections, Cut, Wait
from .credentials import Credentials
from .figures import Figures
from .identities import identity_of
from .peers import taken_in
from .service import Service

__all__ = ["Handler", "begin_connection", "limit_end"]

logger = logging.getLogger("ringtls.server")

#: Seconds that the end of a stream may take while the server drains.
DRAIN_CLOSE_TIMEOUT = 1.0

#: The same where another connection waits for its descriptor, or its time was over before that.
HURRIED_CLOSE_TIMEOUT = 0.1

#: Seconds that ``say_last`` may wait for the peer.
LAST_WORDS_TIMEOUT = 0.1


@dataclass(frozen=True)
class Handler:
    """What becomes of connections.

    Attributes:
      allowed: subjects or names of those clients that are served, of those with certificates; if
        there are none, all are.
    """

    service: Service
    credentials: Credentials
    connections: Connections
    figures: Figures
    allowed: frozenset[str] = frozenset()


def begin_connection(handler: Handler, transport: SocketStream, nursery: trio.Nursery) -> None:
    """Serve it until it ends, by a task of the nursery (rules 1 and 3). Does not wait."""
    service = handler.service
    connection = Connection(transport, _peer_name(transport.socket), handler.connections)
    connection.starts_by(partial(nursery.start_soon, _serve, handler, connection))
    handler.connections.add(connection)
    connection.begin(Wait.HANDSHAKE)
    if not service.is_tls or service.has_preface or connection.cut is not None:
        connection.start()
        return
    try:
        _encrypt(handler, connection)
        begin_handshake(connection.stream, connection.start)
    except Exception:  # the task meets it, too
        connection.start()


async def _serve(handler: Handler, connection: Connection) -> None:
    connections = handler.connections
    try:
        try:
            await _serve_until_cut(handler, connection)
        except trio.BrokenResourceError as error:
            logger.info("%s: %s", connection.peer, error)
        except Exception:
            logger.exception("%s: unexpected error", connection.peer)
        finally:
            await _end(handler, connection)
    finally:
        connections.remove(connection)


async def _end(handler: Handler, connection: Connection) -> None:
    if not connection.is_admitted and not _handshake_has_failed(connection):
        handler.service.turn_away(connection)
    if not connection.is_tls:
        await connection.transport.aclose()
        return
    limit_end(connection)
    if connection.stream.close_outcome is None:  # else it has ended, and need not be waited for
        await connection.stream.aclose()


def limit_end(connection: Connection) -> None:
    """Say how long the end of its stream may take (rule 2)."""
    if connection.cut is Cut.SHORTAGE or (connection.cut and not connection.is_admitted):
        connection.stream.shutdown_timeout = HURRIED_CLOSE_TIMEOUT
    elif connection.draining:
        connection.stream.shutdown_timeout = DRAIN_CLOSE_TIMEOUT


def _handshake_has_failed(connection: Connection) -> bool:
    return connection.is_tls and connection.cut is None and not is_shaken(connection.stream)


async def _serve_until_cut(handler: Handler, connection: Connection) -> None:
    service = handler.service
    with connection.scope:
        await trio.lowlevel.checkpoint_if_cancelled()  # the handshake may be complete since
        if service.has_preface and not await service.begin(connection):
            return
        if service.is_tls and not await _shake_hands(handler, connection):
            return
        connection.is_admitted = True
        await service.handle(connection)
    if connection.cut is Cut.TIMEOUT:
        _log_timeout(connection)
        if connection.waits_for is Wait.HANDSHAKE:
            handler.figures.failures.add("timeout")
        if connection.waits_for is Wait.REQUEST:
            with trio.move_on_after(LAST_WORDS_TIMEOUT):
                await service.say_last(connection)
    if (
        connection.is_tls
        and connection.is_admitted
        and connection.stream.close_outcome is None
        and connection.cut is not Cut.SHORTAGE
        and not _takes_nothing(connection)
    ):
        await _until_taken(connection)


def _takes_nothing(connection: Connection) -> bool:
    return connection.cut is Cut.TIMEOUT and connection.waits_for is Wait.ROOM


async def _shake_hands(handler: Handler, connection: Connection) -> bool:
    """True if it succeeded, and the client is allowed."""
    credentials = handler.credentials
    if not connection.is_tls:
        _encrypt(handler, connection)
    stream = connection.stream
    try:
        if not is_shaken(stream):
            await stream.do_handshake()
    except trio.BrokenResourceError as error:
        asked_for = credentials.asked_for.get(stream.ssl_object)
        connection.server_name = asked_for or ""
        if _is_silent(connection):
            handler.figures.failures.add("silent")
            level = logging.DEBUG
        else:
            handler.figures.count_failure(error.__cause__)
            level = logging.WARNING
        failure = _handshake_failure(asked_for, error)
        logger.log(level, "%s: handshake failed: %s", connection.peer, failure)
        return False
    connection.server_name = credentials.asked_for.get(stream.ssl_object, "")
    handler.figures.count_handshake(stream)
    if stream.context.verify_mode is not ssl.CERT_NONE and (given := stream.getpeercert()):
        connection.identity, names = identity_of(given)
        known = filter(None, (connection.identity, *names))
        if handler.allowed and handler.allowed.isdisjoint(known):
            handler.figures.failures.add("not allowed")
            who = connection.identity or "a certificate without a subject"
            logger.warning("%s: not allowed: %s", connection.peer, who)
            return False
    return True


def _encrypt(handler: Handler, connection: Connection) -> None:
    connection.stream = TlsStream(
        connection.transport,
        handler.credentials.context,
        server_side=True,
        https_compatible=handler.service.https_compatible,
    )
    connection.is_tls = True


def _handshake_failure(asked_for: str | None, error: trio.BrokenResourceError) -> str:
    # Only errors that OpenSSL itself raised have a reason.
    match getattr(error.__cause__, "reason", None):
        case "HTTP_REQUEST":
            return "plain HTTP sent to the TLS port"
        case "CALLBACK_FAILED" if asked_for is None:
            return "the name that it asks for is not ASCII"
        case "CALLBACK_FAILED":
            return f"nothing is served for the name {asked_for!r}"
    return str(error)


def _log_timeout(connection: Connection) -> None:
    peer, seconds = connection.peer, connection.timeout_of(connection.waits_for)
    match connection.waits_for:
        case Wait.HANDSHAKE:
            level = logging.DEBUG if _is_silent(connection) else logging.WARNING
            logger.log(level, "%s: handshake not complete after %g s", peer, seconds)
        case Wait.REQUEST:
            logger.info("%s: request not complete after %g s", peer, seconds)
        case Wait.OWED:
            logger.info("%s: does not go on with its requests, given up after %g s", peer, seconds)
        case Wait.ROOM:
            logger.info("%s: takes in nothing, given up after %g s", peer, seconds)


def _is_silent(connection: Connection) -> bool:
    """True if the peer has sent nothing (rule 1)."""
    return is_silent(connection.stream) if connection.is_tls else not connection.preface


async def _until_taken(connection: Connection) -> None:
    """Wait until the peer's kernel has taken all, or takes in nothing (rule 2)."""
    taken, before = taken_in(connection.stream), None
    with suppress(trio.ClosedResourceError):  # by the service, which broke it off
        while taken != before:
            with trio.move_on_after(connection.timeout_of(Wait.ROOM)):
                await connection.stream.wait_acknowledged()
                return
            taken, before = taken_in(connection.stream), taken


def _peer_name(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
