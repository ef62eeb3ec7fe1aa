"""Connecting by the ring to addresses that are known: no name is resolved.

It takes a fraction of what trio.open_tcp_stream does, and is for addresses that are known: numeric
ones, and local sockets (unix(7)). Within this machine a connection is mostly made by the call that
asks for it: over loopback the kernel answers itself before connect(2) returns. Then there is
nothing to wait for, and no ring is needed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import trio
from trio.lowlevel import enable_ki_protection

from ._accepting import SHORTAGES
from ._drivers.trio import TrioDriver
from ._engine.handle import Handle
from ._errors import taken_out, without_frames
from ._highlevel import HAPPY_EYEBALLS_DELAY
from ._streams.self_connection import refuse_itself
from ._streams.socket import SocketStream
from ._transports.owned_socket import OwnedSocket

if TYPE_CHECKING:
    from ._engine.address import Address

__all__ = ["Target", "connect", "connect_now", "connect_to_any"]

#: A family, and an address of it as the socket module has it.
Target: TypeAlias = "tuple[socket.AddressFamily, Address]"

#: What connect(2) says where it has not come to an end: over TCP, and to a local socket whose
#: listener has no room.
_UNFINISHED = {errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN}


@enable_ki_protection
async def connect(family: socket.AddressFamily, address: Address) -> SocketStream:
    """Connect to an address, as the socket module has it. If cancelled, there is no connection.

    Raises:
      OSError: connect(2) failed, or no descriptor is left for the socket.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      ValueError, TypeError: the host is not numeric, or the address not of this family.
    """
    driver = TrioDriver.current()
    ring = driver.ring
    with socket.socket(family) as sock:
        sock.setblocking(True)  # the ring waits (socket.setdefaulttimeout may say otherwise)
        await driver.wait(Handle(ring, ring.connect(sock.fileno(), family, address)))
        refuse_itself(sock)
        return SocketStream(sock)


async def connect_to_any(targets: Sequence[Target]) -> tuple[Target, SocketStream]:
    """Connect to the first of these that answers; with which of them that is.

    One is tried after the other has failed, or has not answered for HAPPY_EYEBALLS_DELAY seconds;
    that goes on being waited for (RFC 8305, section 5). If cancelled, there is no connection.

    Raises:
      OSError: none could be connected to. That of the one that failed last, or where something ran
        short here (SHORTAGES), that; the cause is an ExceptionGroup of all.
      RingUnavailableError, ValueError, TypeError: as for ``connect``.
    """
    *first, last = targets
    if not first:
        return last, await connect(*last)
    winners: list[tuple[Target, SocketStream]] = []
    failures: list[OSError] = []

    async def attempt(target: Target, failed: trio.Event) -> None:
        try:
            winners.append((target, await connect(*target)))
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for target in targets:
                failed = trio.Event()
                nursery.start_soon(attempt, target, failed)
                with trio.move_on_after(HAPPY_EYEBALLS_DELAY):
                    await failed.wait()
    except BaseException:
        for _, stream in winners:
            stream.close_unclean()
        raise
    if not winners:
        told = next((each for each in failures if each.errno in SHORTAGES), failures[-1])
        group = ExceptionGroup("no address could be connected to", taken_out(failures))
        raise without_frames(told) from group
    winner, *others = winners
    for _, stream in others:
        stream.close_unclean()
    return winner


@enable_ki_protection
def connect_now(family: socket.AddressFamily, address: Address) -> SocketStream | None:
    """Connect to an address of this machine, if that takes no time: to a local socket, or over
    loopback. None if it would, or does; then nothing is left of it.

    Raises:
      OSError: connect(2) failed, or no descriptor is left for the socket.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
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
