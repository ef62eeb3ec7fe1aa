"""How long peers may take, and the options that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .connections import Wait

__all__ = ["HANDSHAKE", "OF_REQUESTS", "Timeout"]


@dataclass(frozen=True)
class Timeout:
    """An option of the command line.

    Attributes:
      seconds: the limit, if it is not given.
    """

    option: str
    help: str
    seconds: float


HANDSHAKE = Timeout("--handshake-timeout", "how long a handshake may take", 10.0)

_HEAD = Timeout("--head-timeout", "how long a request's head may take", 20.0)
_IDLE = Timeout("--idle-timeout", "how long a connection may wait for its next request", 75.0)
_SEND = Timeout(
    "--send-timeout",
    "how long a client may take in nothing, or not go on with its requests",
    60.0,
)

#: Those of a server that answers requests.
OF_REQUESTS: Mapping[Wait, Timeout] = {
    Wait.HANDSHAKE: HANDSHAKE,
    Wait.FIRST_REQUEST: _HEAD,
    Wait.REQUEST: _HEAD,
    Wait.NEXT_REQUEST: _IDLE,
    Wait.ROOM: _SEND,
    Wait.OWED: _SEND,
}
