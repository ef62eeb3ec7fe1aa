"""Socket addresses as the kernel knows them: a struct sockaddr (see sockaddr(3type))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TypeAlias

__all__ = ["Address", "packed"]

#: (host, port); (host, port, flowinfo, scope_id); a path, or a name that begins with NUL. The
#: host is numeric.
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

#: Bytes of sun_path in struct sockaddr_un (unix(7)).
_LONGEST_PATH = 108


def packed(family: int, address: Address) -> bytes:
    """An address, as the socket module has it, for connect(2).

    Raises:
      OSError: the path is too long (ENAMETOOLONG), or the family is not one of AF_INET, AF_INET6
        and AF_UNIX (EAFNOSUPPORT).
      ValueError: the host is not numeric, or a number is out of its range.
      TypeError: this is no address of that family.
    """
    if family == socket.AF_UNIX:
        return _packed_path(address)
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, f"can't connect to an address of family {family}")
    if not isinstance(address, tuple):
        raise TypeError(f"expected (host, port), not {address!r}")
    host, port, *rest = address
    try:
        number = socket.inet_pton(family, host)
    except OSError:
        raise ValueError(f"{host!r} is not a numeric address; resolve it first") from None
    try:
        if family == socket.AF_INET:
            return struct.pack("=H", family) + struct.pack(">H4s8x", port, number, *rest)
        flowinfo, scope_id = rest or (0, 0)
        head = struct.pack("=H", family) + struct.pack(">HI16s", port, flowinfo, number)
        return head + struct.pack("=I", scope_id)
    except struct.error:
        raise ValueError(f"{address!r} is out of range") from None


def _packed_path(address: Address) -> bytes:
    if isinstance(address, tuple):
        raise TypeError(f"expected a path, not {address!r}")
    path = os.fsencode(address)
    if len(path) >= _LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), address)
    return struct.pack("=H", socket.AF_UNIX) + path
