"""How a direction of a relay ends, and what its target then gets: a table.

    end           source                                  target
    ORDERLY       close_notify, or FIN of a plain one     END        close_notify, or FIN
    RESET         RST, or the network is gone             BREAK_OFF  what came, then a reset
    TRUNCATED     FIN without close_notify                BREAK_OFF  what came, then a reset
    TLS_ERROR     no TLS, or a fatal alert                BREAK_OFF  what came, then a reset
    UNDELIVERED   goes on, or was cut                     BREAK_OFF  takes no more itself
    TIMED_OUT     said nothing, and so did the target     RESET      a reset, at once
    CANCELLED     whatever                                RESET      a reset, at once
    CRASHED       something raised in here                RESET      a reset, at once

When a direction has ended is for relay_directions.py to say.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

__all__ = ["ANSWERS", "Answer", "RelayDirection", "RelayEnd", "RelayOutcome"]


class RelayEnd(enum.Enum):
    """How one direction of a relay ended."""

    if not TYPE_CHECKING:  # a type checker can't read it
        # Enum's is Python, and these are looked up for each connection.
        __hash__ = object.__hash__

    ORDERLY = "orderly"
    """The source ended in order, by close_notify, or by FIN if it has no TLS, and so did the
    target's side."""

    RESET = "reset"
    """The source's connection broke: its peer, or the network, did that."""

    TRUNCATED = "truncated"
    """The source's connection ended without close_notify."""

    TLS_ERROR = "TLS error"
    """The source broke TLS, or sent a fatal alert."""

    UNDELIVERED = "undelivered"
    """The target broke, or did not take in the rest in its shutdown timeout. The source may have
    had more to say."""

    TIMED_OUT = "timed out"
    """Nothing was said in either direction for ``idle_timeout`` seconds."""

    CANCELLED = "cancelled"
    """The relay was cancelled or interrupted."""

    CRASHED = "crashed"
    """Something raised inside ringtls, as where memory is short."""


class Answer(enum.Enum):
    """What becomes of a target when the direction to it has ended."""

    END = enum.auto()
    BREAK_OFF = enum.auto()
    RESET = enum.auto()


ANSWERS = {
    RelayEnd.ORDERLY: Answer.END,
    RelayEnd.RESET: Answer.BREAK_OFF,
    RelayEnd.TRUNCATED: Answer.BREAK_OFF,
    RelayEnd.TLS_ERROR: Answer.BREAK_OFF,
    RelayEnd.UNDELIVERED: Answer.BREAK_OFF,
    RelayEnd.TIMED_OUT: Answer.RESET,
    RelayEnd.CANCELLED: Answer.RESET,
    RelayEnd.CRASHED: Answer.RESET,
}


@dataclass(frozen=True, slots=True)
class RelayDirection:
    """What became of one direction of a relay."""

    bytes: int
    """Bytes that were passed on, without TLS around them."""

    end: RelayEnd

    reason: str | None = None
    """What the kernel, or OpenSSL, calls the error: "ECONNRESET", "HTTP_REQUEST"."""


@dataclass(frozen=True, slots=True)
class RelayOutcome:
    """What ``relay(a, b)`` has passed on, and how each direction ended."""

    a_to_b: RelayDirection
    b_to_a: RelayDirection

    @property
    def is_orderly(self) -> bool:
        """True if both directions ended in order."""
        return self.a_to_b.end is self.b_to_a.end is RelayEnd.ORDERLY
