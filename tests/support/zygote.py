"""Commands from a process that has imported them already.

Nine tenths of what a command's start costs are imports, and the tests start hundreds. So a process
does them once, and forks one for each command. That is not quite what a shell starts. Tests that
want more of a process than arguments, environment and directory get one of those (Command in
server.py), and so that is tested, too.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

__all__ = ["Program"]

ROOT = Path(__file__).parents[2]

#: What commands import, early or late.
MODULES = (
    "ringtls._cli.serve",
    "ringtls._cli.proxy",
    "ringtls._cli.asgi.service",
    "ringtls._cli.server.names",
    "ringtls._cli.server.observation",
    "ringtls._cli.certificates",
)

#: Bytes of an order.
MOST = 128 * 1024


class Program:
    """A command that was started: of subprocess.Popen what tests use.

    Args:
      words: the command's, as ["serve", "--check"].
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdout: IO[Any] | int,
        stderr: IO[Any] | int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        environment = dict(os.environ if env is None else env)
        order = {"words": words, "env": environment, "cwd": os.fspath(cwd or Path.cwd())}
        descriptors = [f if isinstance(f, int) else f.fileno() for f in (stdout, stderr)]
        socket.send_fds(_zygote(), [json.dumps(order).encode()], descriptors)
        self.pid = int(_zygote().recv(MOST))
        self.returncode: int | None = None
        self._end = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit code, or None."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], timeout)[0]:
            _zygote().send(json.dumps({"wait": self.pid}).encode())
            self.returncode = int(_zygote().recv(MOST))
            os.close(self._end)
        return self.returncode


@cache
def _zygote() -> socket.socket:
    """The channel to it. It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(channel: socket.socket) -> list[str]:
    """Obey, until the other side is gone: []. In a process that was forked the command's words."""
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, MOST, 2)
        if not data:
            return []
        order = json.loads(data)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            channel.close()
            for number, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(order["env"])
            words: list[str] = order["words"]
            return words
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


def _main() -> int:
    for name in MODULES:
        with suppress(ModuleNotFoundError):  # without an extra: its own commands say so
            importlib.import_module(name)
    from ringtls._cli import main

    gc.collect()
    gc.freeze()
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    return main(words) if words else 0


if __name__ == "__main__":
    sys.exit(_main())
