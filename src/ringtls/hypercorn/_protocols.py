"""The protocol that a connection speaks.

Rules:

1. A connection says farewell: GOAWAY for HTTP/2 (RFC 9113, section 6.8), so that its client knows
   what to send again; before it, Close for each WebSocket that is open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

from ._http1 import Http1
from ._http2 import Http2

__all__ = ["Protocols"]


class Protocols(ProtocolWrapper):
    """The one that a connection speaks: hypercorn's choice, each of our kind."""

    def __init__(self, read_ahead: Callable[[], Awaitable[None]], *arguments: Any) -> None:
        self._read_ahead = read_ahead
        super().__init__(*arguments)

    @property
    def protocol(self) -> Http1 | Http2:
        return self._protocol

    @protocol.setter
    def protocol(self, chosen: H11Protocol | H2Protocol) -> None:
        make = partial(Http1, self._read_ahead) if isinstance(chosen, H11Protocol) else Http2
        self._protocol: Http1 | Http2 = make(
            chosen.app,
            chosen.config,
            chosen.context,
            chosen.task_group,
            chosen.connection_state,
            chosen.ssl,
            chosen.client,
            chosen.server,
            chosen.send,
        )

    @property
    def is_cut_short(self) -> bool:
        """True if the end of the connection would make a part of an answer look whole."""
        return isinstance(self._protocol, Http1) and self._protocol.is_cut_short

    def last_words(self) -> bytes:
        """What the client is to hear at the end (rule 1); nothing if asked again."""
        return self._protocol.last_words()
