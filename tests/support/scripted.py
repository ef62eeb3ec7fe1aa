"""A server in a thread that plays a script with each of its connections."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .peer import Peer
from .waiting import LIMIT

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = ["Begin", "Script", "playing", "replaying"]

#: What becomes of one connection, from where it was begun.
Script = Callable[[Peer], object]

#: Begins one.
Begin = Callable[[socket.socket, "Contexts"], Peer]


def shake_hands(sock: socket.socket, contexts: Contexts) -> Peer:
    peer = Peer(sock, contexts, server_side=True)
    peer.handshake()
    return peer


@contextlib.contextmanager
def playing(contexts: Contexts, *scripts: Script, begin: Begin = shake_hands) -> Iterator[int]:
    """A server that plays a script with each connection, in their order. The value is its port.

    At the end all scripts have been played. What one raises is raised here.
    """

    def run(listener: socket.socket) -> None:
        for script in scripts:
            sock, _ = listener.accept()
            with sock:
                script(begin(sock, contexts))

    with _running(run, ends_by_itself=True) as port:
        yield port


@contextlib.contextmanager
def replaying(contexts: Contexts, script: Script) -> Iterator[int]:
    """The same with one script, for as many connections as come, one after the other."""

    def run(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno != errno.EINVAL:  # which says that this is the end
                    raise
                return
            with sock:
                script(shake_hands(sock, contexts))

    with _running(run, ends_by_itself=False) as port:
        yield port


@contextlib.contextmanager
def _running(run: Callable[[socket.socket], None], *, ends_by_itself: bool) -> Iterator[int]:
    """A thread that has a listening socket, whose port is the value."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run(listener)
        except BaseException as error:
            errors.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        thread = threading.Thread(target=guarded)
        thread.start()
        try:
            yield listener.getsockname()[1]
        except BaseException:
            ends_by_itself = False  # nobody else connects
            raise
        finally:
            if not ends_by_itself:
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    if errors:
        raise errors[0]
