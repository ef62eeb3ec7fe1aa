"""Opens a stream where io_uring is forbidden, and checks that the refusal is the typed error.

Run by script/test-container under the engine's default seccomp profile.
"""

from __future__ import annotations

import errno
import socket
import sys

import trio

import ringtls


async def main() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ringtls.SocketStream(ours)
        except ringtls.RingUnavailableError as error:
            refusal = error
        else:
            sys.exit("a ring was opened: this profile allows io_uring")
    if refusal.errno not in (errno.EPERM, errno.ENOSYS) or "seccomp" not in str(refusal):
        sys.exit(f"not the error that was expected: {refusal!r}")
    print(f"{type(refusal).__name__}, {errno.errorcode[refusal.errno]}: {refusal}")


trio.run(main)
