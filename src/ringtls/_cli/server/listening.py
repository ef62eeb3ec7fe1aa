"""Where a server listens: at addresses, at paths, and on sockets that it inherits.

Rules:

1. Each worker has sockets of its own. At an address these are separate sockets with SO_REUSEPORT,
   over which the kernel spreads the connections. An inherited socket, or one at a path, is one
   queue that all workers take from.
2. A port that is in use is an error, even if its user has set SO_REUSEPORT, as another server with
   workers does. So the first socket of an address binds and listens without that option.
3. Inherited sockets are looked at first: a socket that is opened takes the lowest free number,
   which may be the one that was to be inherited and was not.
4. A socket that is left over at a path, where nobody listens, is removed. At the end the path is
   removed, unless somebody else's socket is there by then.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from .errors import StartError

__all__ = ["Address", "Bind", "Inherited", "Local", "open_sockets", "parse_bind", "take_inherited"]

#: As trio has it: what the kernel can take, which is less (net.core.somaxconn).
BACKLOG = 65535

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


@dataclass(frozen=True)
class Address:
    """A host and a port to listen at."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Inherited:
    """The descriptor of a listening socket that this process was started with."""

    descriptor: int

    def __str__(self) -> str:
        return f"fd://{self.descriptor}"


@dataclass(frozen=True)
class Local:
    """A path to listen at: a socket of unix(7)."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Bind = Address | Inherited | Local


def parse_bind(text: str) -> Bind:
    """HOST:PORT, [HOST]:PORT for IPv6, unix:PATH or fd://NUMBER.

    Raises:
      argparse.ArgumentTypeError
    """
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not (number.isascii() and number.isdigit()) or int(number) >= 1 << 31:
            raise argparse.ArgumentTypeError(f"{text!r} is not fd://NUMBER")
        return Inherited(int(number))
    if text.startswith("unix:"):
        if text == "unix:" or "\0" in text:
            raise argparse.ArgumentTypeError(f"{text!r} is not unix:PATH")
        return Local(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"put the IPv6 address in brackets: [{host}]:{port}")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Address(host, int(port))


def take_inherited(binds: list[Bind], stack: ExitStack) -> dict[Bind, socket.socket]:
    """The sockets of those that are inherited, which the stack closes (rule 3).

    Raises:
      StartError
    """
    descriptors = [bind for bind in binds if isinstance(bind, Inherited)]
    if len(set(descriptors)) < len(descriptors):
        raise StartError("the same inherited socket is given twice with --bind or --metrics")
    return {bind: stack.enter_context(_inherited(bind)) for bind in descriptors}


def open_sockets(
    binds: list[Bind], inherited: dict[Bind, socket.socket], workers: int, stack: ExitStack
) -> list[list[socket.socket]]:
    """Listen. For each worker its sockets, which the stack closes.

    Raises:
      StartError
    """
    queues = [inherited[bind] for bind in binds if isinstance(bind, Inherited)]
    queues += [_local(bind, stack) for bind in binds if isinstance(bind, Local)]
    shares = [
        [sock, *(stack.enter_context(sock.dup()) for _ in range(workers - 1))] for sock in queues
    ]
    for bind in binds:
        if isinstance(bind, Address):
            shares += _bound(bind, workers, stack)
    return [list(own) for own in zip(*shares, strict=True)]


def _inherited(bind: Inherited) -> socket.socket:
    try:
        sock = socket.socket(fileno=bind.descriptor)
    except OSError as error:
        what = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise _unusable(bind, what) from error
    is_stream = sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM
    if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise _unusable(bind, "does not listen" if is_stream else "is not a TCP or local socket")
    return sock


def _unusable(bind: Inherited, what: str) -> StartError:
    return StartError(
        f"can't listen on {bind}: this descriptor {what}; have it be a listening TCP socket when "
        "ringtls starts, as systemd does for ListenStream="
    )


def _local(bind: Local, stack: ExitStack) -> socket.socket:
    """See rule 4."""
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        try:
            sock.bind(bind.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(bind.path):
                raise
            os.unlink(bind.path)
            sock.bind(bind.path)
        sock.listen(BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"can't listen on {bind}: {reason}; choose another with --bind") from error
    stack.callback(_remove, bind.path, os.stat(bind.path).st_ino, os.getpid())
    return sock


def _is_left_behind(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(os.lstat(path).st_mode)
        except OSError:  # as EAGAIN, if as many wait there as may (unix(7))
            return False
    return False


def _remove(path: str, inode: int, process: int) -> None:
    with suppress(OSError):
        if os.getpid() == process and os.lstat(path).st_ino == inode:
            os.unlink(path)


def _bound(address: Address, workers: int, stack: ExitStack) -> list[list[socket.socket]]:
    """For each address that the host's name stands for, a socket for each worker."""
    shares = []
    try:
        for family, *_, name in socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            if _is_supported(family):
                shares.append(_share(family, name, workers, stack))
    except socket.gaierror as error:
        raise _unavailable(address, str(error.strerror)) from error
    except OSError as error:  # its own text has more in it than is needed
        raise _unavailable(address, os.strerror(error.errno or 0)) from error
    except UnicodeError as error:
        raise _unavailable(address, "this can't be the name of a host") from error
    if not shares:
        raise _unavailable(address, os.strerror(errno.EAFNOSUPPORT))
    return shares


def _is_supported(family: int) -> bool:
    """False for IPv6 where it is switched off."""
    try:
        socket.socket(family).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return False
    return True


def _share(
    family: int, name: tuple[Any, ...], workers: int, stack: ExitStack
) -> list[socket.socket]:
    first = stack.enter_context(socket.create_server(name, family=family, backlog=BACKLOG))
    if workers == 1:
        return [first]
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # rule 2
    name = first.getsockname()
    return [first] + [
        stack.enter_context(
            socket.create_server(name, family=family, backlog=BACKLOG, reuse_port=True)
        )
        for _ in range(workers - 1)
    ]


def _unavailable(address: Address, reason: str) -> StartError:
    return StartError(f"can't listen on {address}: {reason}; choose another with --bind")
