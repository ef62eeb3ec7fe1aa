"""Pairs of connected streams, and what can be seen of this process's descriptors."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from ringtls import SocketStream, TlsStream
from ringtls._cli.demo.proxy.peers import bound_socket

if TYPE_CHECKING:
    from ..conftest import Contexts


def tcp_pair(buffer_size: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback; for the size see set_buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, address = listener.accept()
        while address != client.getsockname():  # who looks for a server that had this port before
            server.close()
            server, address = listener.accept()
    set_buffers(buffer_size, client, server)
    return client, server


@contextmanager
def refusing_port() -> Iterator[int]:
    """One of 127.0.0.1 at which nobody listens: meanwhile others are given other ports."""
    with bound_socket() as bound:
        yield bound.getsockname()[1]


@contextmanager
def tcp_pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """So many connections, closed at the end."""
    with ExitStack() as stack:
        pairs = [tcp_pair() for _ in range(count)]
        for pair in pairs:
            for sock in pair:
                stack.enter_context(sock)
        yield pairs


def set_buffers(size: int | None, *sockets: socket.socket) -> None:
    """Fix the kernel's buffers at ``size`` bytes; None leaves them to the kernel."""
    if size is not None:
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees RST. See SO_LINGER in socket(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def socket_streams(buffer_size: int | None = None) -> tuple[SocketStream, SocketStream]:
    client, server = tcp_pair(buffer_size)
    return SocketStream(client), SocketStream(server)


def tls_over(
    client: SocketStream, server: SocketStream, contexts: Contexts
) -> tuple[TlsStream, TlsStream]:
    return (
        TlsStream(client, contexts.client, server_hostname="localhost"),
        TlsStream(server, contexts.server, server_side=True),
    )


async def handshaken(
    contexts: Contexts, buffer_size: int | None = None
) -> tuple[TlsStream, TlsStream]:
    client, server = tls_over(*await socket_streams(buffer_size), contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


def open_sockets() -> set[str]:
    """The sockets of this process, each by what tells it from all that there ever were."""
    names = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was that of this look, or of another thread
            names.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in names if name.startswith("socket:")}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
