"""Uses streams where io_uring is forbidden, and checks that they are on epoll; and that to force
io_uring is the typed error.

Run by script/test-container under profiles that refuse io_uring.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys

import trio

import ringtls


def open_ring() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ringtls.SocketStream(ours).close_unclean()


async def main() -> None:
    open_ring()
    if (engine := ringtls.statistics().engine) != "epoll":
        sys.exit(f"the engine is {engine}: this profile allows io_uring")


async def force() -> None:
    try:
        open_ring()
    except ringtls.RingUnavailableError as error:
        refusal = error
    else:
        sys.exit("an io_uring was opened")
    if refusal.errno not in (errno.EPERM, errno.ENOSYS) or "seccomp" not in str(refusal):
        sys.exit(f"not the error that was expected: {refusal!r}")
    print(f"{type(refusal).__name__}, {errno.errorcode[refusal.errno]}: {refusal}")


logging.basicConfig(stream=sys.stdout, level=logging.INFO)
trio.run(main)
os.environ["RINGTLS_ENGINE"] = "io_uring"
trio.run(force)
