"""What a trio run's streams have done so far, in figures."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._outcome import CloseOutcome

__all__ = ["Statistics", "Tally", "reason_of"]


def reason_of(error: BaseException | None) -> str:
    """Why a handshake failed, given the cause: see Statistics.handshake_failures."""
    return (isinstance(error, ssl.SSLError) and error.reason) or "connection"


@dataclass(slots=True)
class Tally:
    """What is counted as it happens; bytes of the ring are counted by it."""

    bytes_sent: int = 0
    bytes_received: int = 0
    orphans_adopted: int = 0
    closings: Counter[CloseOutcome] = field(default_factory=Counter)
    handshakes: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    handshake_failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one trio run, since its start where they are not of this moment."""

    engine: str | None
    """``"io_uring"`` or ``"epoll"``: what moves the bytes. None without a ring."""

    connections_open: int
    """Streams whose end has not begun."""

    connections_closing: int
    """Connections whose end has begun and whose socket is not closed yet."""

    closings: Mapping[CloseOutcome, int]
    """How many connections ended how. They count neither as open nor as closing any more, so that
    none turns out later to have ended in another way."""

    handshakes: Mapping[tuple[str, str, bool], int]
    """How many handshakes succeeded, by the version, the cipher's name, and whether a session was
    resumed: ("TLSv1.3", "TLS_AES_256_GCM_SHA384", False)."""

    handshake_failures: Mapping[str, int]
    """How many handshakes failed, by why: OpenSSL's name of the reason, as
    "CERTIFICATE_VERIFY_FAILED", or "UNEXPECTED_EOF_WHILE_READING" for a peer that went;
    "connection" where that broke."""

    orphans_adopted: int
    """Streams that nobody closed, and that were closed in the background."""

    bytes_sent: int
    """Bytes that the kernel, or the stream below, took."""

    bytes_received: int

    operations_in_flight: int
    """What the ring has submitted and not completed; 0 without a ring."""

    operations_submitted: int
    """Submission queue entries that the kernel took, cancellations and deadlines included."""

    operations_retried: int
    """Operations issued again after a passing shortage, as when the receive pool was empty."""

    buffers_in_use: int
    """Buffers of the receive pool that hold data which is being passed on."""

    completion_queue_overflows: int
