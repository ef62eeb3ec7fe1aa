"""Handshakes by callbacks, for servers: a task is needed only for what comes after them.

1. OpenSSL goes on with the handshake in the call that brings its input. Nothing else uses the
   stream meanwhile, except to close it.
2. What does not go its usual way, as an error, an end, or much input, is left to ``do_handshake``,
   by which the task then begins: it can tell what was wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tls import TlsStream

__all__ = ["begin_handshake", "is_shaken", "is_silent"]


def begin_handshake(stream: TlsStream[Any], on_over: Callable[[], object]) -> None:
    """Make the handshake of a server's stream as its input comes. Does not wait.

    ``on_over`` is called once, in a callback of the ring, when the handshake is complete or can't
    go on like this (rule 2).
    """
    transport = stream._transport

    def go_on() -> None:
        if not _goes_on(stream):
            transport.announce_input(None)
            on_over()

    transport.announce_input(go_on)
    go_on()


def is_shaken(stream: TlsStream[Any]) -> bool:
    """True if the handshake is complete."""
    return stream._session.handshake_done


def is_silent(stream: TlsStream[Any]) -> bool:
    """True if the peer has sent nothing for the handshake."""
    return stream._session.peer_is_silent


def _goes_on(stream: TlsStream[Any]) -> bool:
    if stream._closing.started or not stream._transport.is_receiving:
        return False
    try:
        if not stream._shake_hands(for_reading=False):
            return True
    except trio.BrokenResourceError:  # which ``do_handshake`` raises again
        return False
    stream._acknowledge_handshake()
    return False
