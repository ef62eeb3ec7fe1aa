"""Connecting to one address by the ring: no name is resolved, and no other address raced.

It takes a fraction of what trio.open_tcp_stream does, and is for addresses that are known: numeric
ones, and local sockets (unix(7)). Within this machine a connection is mostly made by the call that
asks for it: over loopback the kernel answers itself before connect(2) returns. Then there is
nothing to wait for, and no ring is needed.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from ._drivers.trio import TrioDriver
from ._engine.handle import Handle
from ._streams.self_connection import refuse_itself
from ._streams.socket import SocketStream
from ._transports.owned_socket import OwnedSocket

if TYPE_CHECKING:
    from ._engine.address import Address

__all__ = ["connect", "connect_now"]

#: What connect(2) says where it has not come to an end: over TCP, and to a local socket whose
#: listener has no room.
_UNFINISHED = {errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN}


@enable_ki_protection
async def connect(family: socket.AddressFamily, address: Address) -> SocketStream:
    """Connect to an address, as the socket module has it. If cancelled, there is no connection.

    Raises:
      OSError: connect(2) failed, or no descriptor is left for the socket.
      RingUnavailableError: io_uring is forced, and there is none here.
      ValueError, TypeError: the host is not numeric, or the address not of this family.
    """
    driver = TrioDriver.current()
    ring = driver.ring
    with socket.socket(family) as sock:
        sock.setblocking(True)  # the ring waits (socket.setdefaulttimeout may say otherwise)
        await driver.wait(Handle(ring, ring.connect(sock.fileno(), family, address)))
        refuse_itself(sock)
        return SocketStream(sock)


@enable_ki_protection
def connect_now(family: socket.AddressFamily, address: Address) -> SocketStream | None:
    """Connect to an address of this machine, if that takes no time: to a local socket, or over
    loopback. None if it would, or does; then nothing is left of it.

    Raises:
      OSError: connect(2) failed, or no descriptor is left for the socket.
      RingUnavailableError: io_uring is forced, and there is none here.
    """
    if not _is_here(address):
        return None
    driver = TrioDriver.current()
    driver.ring  # noqa: B018  if there is none, nothing has happened
    sock = OwnedSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        failure = sock.connect_ex(address)
        if failure == errno.EINPROGRESS:  # also where the connection was made meanwhile
            failure = sock.connect_ex(address)
        if failure in _UNFINISHED:
            sock.close()
            return None
        if failure:
            raise OSError(failure, os.strerror(failure))
        refuse_itself(sock)
        if family is not socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        return SocketStream._of_own(driver, sock)
    except BaseException:
        sock.close()
        raise


def _is_here(address: Address) -> bool:
    return not isinstance(address, tuple) or address[0] == "::1" or address[0].startswith("127.")
