"""A server in a thread that plays a script with each of its connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .peer import Peer
from .waiting import LIMIT

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = ["Script", "playing"]

#: What becomes of one connection. The handshake has been made.
Script = Callable[[Peer], object]


@contextlib.contextmanager
def playing(contexts: Contexts, *scripts: Script) -> Iterator[int]:
    """A server that plays a script with each connection, in their order. The value is its port.

    At the end all scripts have been played. What one raises is raised here.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for script in scripts:
                sock, _ = listener.accept()
                with sock:
                    peer = Peer(sock, contexts, server_side=True)
                    peer.handshake()
                    script(peer)
        except BaseException as error:
            errors.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        except BaseException:
            listener.shutdown(socket.SHUT_RDWR)  # nobody else connects
            raise
        finally:
            thread.join()
    if errors:
        raise errors[0]
