"""Two hosts on one machine: network namespaces with a cable, a veth pair, between them.

The namespaces have no names: each lives as long as the thread that made it and the sockets
in it. So they are gone when the test is, however it ends, and the cable with them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .streams import set_buffers

CLONE_NEWNET = 0x40000000

#: Addresses for examples (RFC 5737): they are nobody's.
OUR_ADDRESS = "192.0.2.1"
THEIR_ADDRESS = "192.0.2.2"

DEVICE = "cable"

Result = TypeVar("Result")


class Host:
    """A network namespace.

    Raises:
      PermissionError: making one needs root (CAP_SYS_ADMIN).
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        try:
            self.thread_id = self.call(self._enter)
        except BaseException:
            self.shut_down()
            raise

    @staticmethod
    def _enter() -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, f"unshare(CLONE_NEWNET): {os.strerror(error)}")
        return threading.get_native_id()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function returns when called on this host; a socket it makes is there."""
        return self._thread.submit(function, *arguments).result()

    def ip(self, command: str) -> None:
        """Run ip(8) here."""
        self.call(lambda: subprocess.run(["ip", *command.split()], check=True))

    def plug_in(self, address: str) -> None:
        """Give the end of the cable that is here this address, and bring it up."""
        self.ip(f"address add {address}/24 dev {DEVICE}")
        self.ip(f"link set {DEVICE} up")

    def shut_down(self) -> None:
        self._thread.shutdown()


class Hosts:
    """Our host and theirs, connected.

    Raises:
      FileNotFoundError: there is no ip(8).
      PermissionError: making hosts needs root.
    """

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise FileNotFoundError("there is no ip: install the package iproute2")
        self.ours = Host()
        self.theirs = Host()
        try:
            peer = f"name {DEVICE} netns {self.theirs.thread_id}"
            self.ours.ip(f"link add {DEVICE} type veth peer {peer}")
            self.ours.plug_in(OUR_ADDRESS)
            self.theirs.plug_in(THEIR_ADDRESS)
        except BaseException:
            self.shut_down()
            raise

    def tcp_pair(self, buffer_size: int | None = None) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection from our host to theirs; for the size see set_buffers."""
        with self.theirs.call(socket.create_server, (THEIR_ADDRESS, 0)) as listener:
            client = self.ours.call(socket.create_connection, listener.getsockname())
            server, _ = listener.accept()
        set_buffers(buffer_size, client, server)
        return client, server

    def shut_down(self) -> None:
        self.ours.shut_down()
        self.theirs.shut_down()
