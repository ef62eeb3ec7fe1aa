"""What is told of connections that were relayed: a line in the access log, and figures."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ringtls import RelayDirection, RelayEnd, RelayOutcome

from ..server import Connection, Metrics, is_logging
from ..server.access import log_line, now, printable
from .backends import Backend

__all__ = ["Accounts"]


class Accounts:
    """Of one process."""

    def add_metrics(self, metrics: Metrics, backends: Iterable[Backend]) -> None:
        ends = [end.value for end in RelayEnd]
        self._ends = metrics.counter(
            "ringtls_relay_ends",
            "Directions of connections that were relayed, by who spoke and how that ended.",
            of=("client", "backend"),
            end=ends,
        )
        self._bytes = metrics.counter(
            "ringtls_relay_bytes", "Bytes that were relayed.", of=("client", "backend")
        )
        self._failures = metrics.counter(
            "ringtls_backend_failures",
            "Connections to backends that could not be made.",
            backend=[_label(each) for each in backends],
        )

    def note_failure(self, backend: Backend) -> None:
        self._failures.add(_label(backend))

    def note(
        self, connection: Connection, backend: Backend, outcome: RelayOutcome, seconds: float
    ) -> None:
        """A connection has ended, so many seconds after its handshake."""
        for of, direction in (("client", outcome.a_to_b), ("backend", outcome.b_to_a)):
            self._ends.add(of, direction.end.value)
            self._bytes.add(of, count=direction.bytes)
        if is_logging():
            _log(connection, backend, outcome, seconds)


def _label(backend: Backend) -> str:
    """As UTF-8 can say it, which a path need not be."""
    return os.fsencode(str(backend)).decode(errors="backslashreplace")


def _log(connection: Connection, backend: Backend, outcome: RelayOutcome, seconds: float) -> None:
    version, cipher = None, None
    if connection.is_tls:
        version, cipher = connection.stream.version(), connection.stream.cipher()
    fields = {
        "peer": connection.peer,
        "identity": connection.identity,
        "server_name": connection.server_name,
        "version": version,
        "cipher": cipher and cipher[0],
        "backend": str(backend),
        "received": outcome.a_to_b.bytes,
        "sent": outcome.b_to_a.bytes,
        "seconds": round(seconds, 3),
        "client_end": _end(outcome.a_to_b),
        "backend_end": _end(outcome.b_to_a),
    }
    log_line(
        '%s [%s] "%s" %s %s %s %d %d %.3f "%s" "%s"',
        connection.peer,
        now(),
        printable(connection.server_name.encode()) or "-",
        version or "-",
        fields["cipher"] or "-",
        backend,
        outcome.a_to_b.bytes,
        outcome.b_to_a.bytes,
        seconds,
        fields["client_end"],
        fields["backend_end"],
        fields=fields,
    )


def _end(direction: RelayDirection) -> str:
    reason = "" if direction.reason is None else f": {direction.reason}"
    return f"{direction.end.value}{reason}"
