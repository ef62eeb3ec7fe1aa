"""How connections end, in one word each."""

from __future__ import annotations

import enum

__all__ = ["CloseOutcome"]


class CloseOutcome(enum.Enum):
    """How a connection ended, as far as this side can know."""

    CLEAN = "clean"
    """All that was accepted, close_notify and FIN were handed to the kernel."""

    PEER_RESET = "peer reset"
    """The connection broke first: the peer, or the network, did that."""

    TIMED_OUT = "timed out"
    """The peer did not take in the rest within the timeout; the connection was reset."""

    BEFORE_HANDSHAKE = "before handshake"
    """FIN only: without a handshake there is nothing to notify."""

    DURING_RENEGOTIATION = "during a renegotiation"
    """OpenSSL sends no close_notify during a handshake; the connection was reset."""

    AFTER_FATAL_ALERT = "after fatal alert"
    """A TLS error had ended the session; its alert was sent, then FIN."""

    UNCLEAN = "unclean on request"
    """``close_unclean`` reset the connection."""
