"""How connections end, in one word each."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

__all__ = ["CloseOutcome"]


class CloseOutcome(enum.Enum):
    """How a connection ended, as far as this side can know."""

    if not TYPE_CHECKING:  # a type checker can't read it
        # Enum's is Python, and these are looked up for each connection.
        __hash__ = object.__hash__

    CLEAN = "clean"
    """All that was accepted, close_notify and FIN were handed to the kernel."""

    PEER_RESET = "peer reset"
    """The connection broke first: the peer, or the network, did that."""

    UNACKNOWLEDGED = "unacknowledged"
    """As CLEAN, but when the shutdown timeout was over the peer's TCP had not acknowledged it all.
    A peer that sends meanwhile meets a reset, and may lose the rest. An outcome that was CLEAN when
    the stream was closed can turn into this: see ``wait_acknowledged``. Of a connection that
    is not on the ring this is not told, and CLEAN stays CLEAN: the stream below TLS closes it."""

    TIMED_OUT = "timed out"
    """The peer did not take in the rest within the timeout; the connection was reset."""

    BEFORE_HANDSHAKE = "before handshake"
    """FIN only: without a handshake there is nothing to notify."""

    DURING_RENEGOTIATION = "during a renegotiation"
    """OpenSSL sends no close_notify while a handshake message has come only in part; what was
    accepted was sent, and then the connection was reset."""

    BROKEN_OFF = "broken off"
    """The stream was left by an exception and has ``reset_on_error``: what was accepted was sent,
    and then the connection was reset, without close_notify."""

    AFTER_FATAL_ALERT = "after fatal alert"
    """A TLS error had ended the session; its alert was sent, then FIN."""

    UNCLEAN = "unclean on request"
    """``close_unclean`` reset the connection."""

    CRASHED = "crashed"
    """Something raised inside ringtls, as where memory is short; the connection was reset."""
