"""Connecting to one address by the ring: no name is resolved, and no other address raced.

It takes a fraction of what trio.open_tcp_stream does, and is for addresses that are known: numeric
ones, and local sockets (unix(7)).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from ._drivers.trio import TrioDriver
from ._engine.handle import Handle
from ._streams.socket import SocketStream

if TYPE_CHECKING:
    from ._engine.address import Address

__all__ = ["connect"]


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
        return SocketStream(sock)
