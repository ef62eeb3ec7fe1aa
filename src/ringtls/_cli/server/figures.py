"""What every server counts."""

from __future__ import annotations

from collections.abc import Iterable

import ringtls
from ringtls import CloseOutcome, TlsStream

from ..._statistics import reason_of
from .metrics import Metrics

__all__ = ["Figures"]

_VERSIONS = ("TLSv1.2", "TLSv1.3")

#: OpenSSL's names of what handshakes fail for, most often; and ours.
_REASONS = (
    "CALLBACK_FAILED",
    "HTTP_REQUEST",
    "NO_SHARED_CIPHER",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
    "NO_APPLICATION_PROTOCOL",
    "UNEXPECTED_EOF_WHILE_READING",
    "CERTIFICATE_VERIFY_FAILED",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "TLSV1_ALERT_UNKNOWN_CA",
    "connection",
    "not allowed",
    "silent",
    "timeout",
)


class Figures:
    """The server's own families of ``metrics``.

    Args:
      ciphers: the names of those that a connection may have.
    """

    def __init__(self, metrics: Metrics, ciphers: Iterable[str]) -> None:
        self._open = metrics.gauge("ringtls_connections_open", "Connections that are served.")
        self._closing = metrics.gauge(
            "ringtls_connections_closing", "Connections whose end has begun."
        )
        self._ends = metrics.counter(
            "ringtls_ends",
            "Connections that ended, by how.",
            outcome=[outcome.value for outcome in CloseOutcome],
        )
        self._handshakes = metrics.counter(
            "ringtls_handshakes",
            "Handshakes that succeeded.",
            version=_VERSIONS,
            cipher=ciphers,
            resumed=("yes", "no"),
        )
        self.failures = metrics.counter(
            "ringtls_handshake_failures", "Handshakes that failed, by why.", reason=_REASONS
        )
        self._sent = metrics.counter("ringtls_sent_bytes", "Bytes that the kernel took.")
        self._received = metrics.counter("ringtls_received_bytes", "Bytes that came.")
        self._in_flight = metrics.gauge(
            "ringtls_operations_in_flight", "Operations that the ring waits for."
        )
        self._submitted = metrics.counter(
            "ringtls_operations_submitted", "Operations that the ring was given."
        )
        self._retried = metrics.counter(
            "ringtls_operations_retried", "Operations issued again after a shortage."
        )

    def count_handshake(self, stream: TlsStream) -> None:
        cipher = stream.cipher()
        self._handshakes.add(
            stream.version() or "",
            cipher[0] if cipher else "",
            "yes" if stream.session_reused else "no",
        )

    def count_failure(self, error: BaseException | None) -> None:
        self.failures.add(reason_of(error))

    def sample(self) -> None:
        """Take over what the streams of this run count."""
        now = ringtls.statistics()
        self._open.set(now.connections_open)
        self._closing.set(now.connections_closing)
        for outcome, count in now.closings.items():
            self._ends.set(count, outcome.value)
        self._sent.set(now.bytes_sent)
        self._received.set(now.bytes_received)
        self._in_flight.set(now.operations_in_flight)
        self._submitted.set(now.operations_submitted)
        self._retried.set(now.operations_retried)
