"""A connection that has met itself, where nobody listens.

Rules:

1. For a connection to a port of this machine the kernel may choose that very port as its own. Its
   SYN then comes back to it, and both ends open at once (RFC 9293, section 3.5): the caller would
   read its own words as an answer.
2. That is a refusal, because nobody is there.
3. It is broken off at once and leaves no TIME_WAIT behind: the server that should listen there can
   come back.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from .._transports.base import RESET_AT_CLOSE

if TYPE_CHECKING:
    import trio

__all__ = ["refuse_itself"]


def refuse_itself(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a socket that has just been connected, if it was to itself.

    Raises:
      ConnectionRefusedError: it was.
    """
    try:
        is_itself = sock.getsockname() == sock.getpeername()
    except OSError:  # its peer has broken it off already
        return
    if is_itself:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        sock.close()
        reason = f"{os.strerror(errno.ECONNREFUSED)}: the connection met itself"
        raise ConnectionRefusedError(errno.ECONNREFUSED, reason)
