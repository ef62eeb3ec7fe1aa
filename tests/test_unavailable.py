"""Where io_uring is refused there is one clear error, and the socket is not lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringtls._engine import availability as _availability
from ringtls._engine.availability import remedy, unavailable

ROOT = Path(__file__).parent.parent

USE_REFUSED = """
import socket, sys, trio, ringtls
from tests.support.seccomp import forbid_io_uring
forbid_io_uring(int(sys.argv[1]))
async def main():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ringtls.SocketStream(ours)
        except ringtls.RingUnavailableError as error:
            print(error.errno, error)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await stream.send_all(b"not lost")
        assert theirs.recv(100) == b"not lost"
trio.run(main)
"""

WORDS = {
    errno.EPERM: "seccomp",
    errno.ENOSYS: "seccomp",
    errno.EINVAL: "Linux 6.1 or newer",
    errno.ENOMEM: "ulimit -l",
    errno.EMFILE: "ulimit -n",
}


@pytest.mark.parametrize("error", WORDS)
def test_refused(error: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE_REFUSED, str(error)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout == f"{error} {unavailable(error)}\n"
    assert WORDS[error] in done.stdout


@pytest.mark.parametrize(
    ("error", "disabled", "version", "words"),
    [
        (errno.EPERM, 1, (6, 6), "privileged processes only"),
        (errno.EPERM, 2, (6, 6), "sysctl -w kernel.io_uring_disabled=0"),
        (errno.EPERM, 0, (6, 6), "seccomp"),
        (errno.ENOSYS, 0, (5, 0), "newer"),
        (errno.EIO, 0, (6, 6), "io_uring_setup(2)"),
    ],
)
def test_the_remedy_fits_the_cause(
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    disabled: int,
    version: tuple[int, int],
    words: str,
) -> None:
    monkeypatch.setattr(_availability, "io_uring_disabled", lambda: disabled)
    monkeypatch.setattr(_availability, "kernel_version", lambda: version)
    assert words in remedy(error)
    assert os.strerror(error) in str(unavailable(error))
