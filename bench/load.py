"""Programs that put a load on a server, each in a process of its own on the CPU for the load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .server import HOST, Server

__all__ = ["LoadError", "Wrk", "WrkResult", "curl", "missing_programs"]

SCRIPT = Path(__file__).with_name("wrk.lua")

PROGRAMS = ("wrk", "curl")

#: wrk counts answers that take longer as errors. With thousands of connections the first take long.
WRK_TIMEOUT = 60


class LoadError(Exception):
    """A load did not go as it should."""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def _program(*arguments: str | os.PathLike[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that runs, and is killed if it is left before it ends."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class WrkResult:
    """What wrk says of a run, from its first request to its last.

    Attributes:
      p50, p99: seconds from a request to its answer.
    """

    requests: int
    p50: float
    p99: float


class Wrk:
    """wrk while it runs: until it is stopped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def running(
        cls, server: Server, connections: int, *, pause: float = 0, headers: Sequence[str] = ()
    ) -> Iterator[Wrk]:
        """Start it.

        Args:
          pause: seconds between a connection's opening and its first request.
        """
        arguments: list[str | os.PathLike[str]] = ["wrk", "-t1", f"-c{connections}"]
        arguments += ["-d1h", f"--timeout={WRK_TIMEOUT}s", "-s", SCRIPT]
        for header in headers:
            arguments += ["-H", header]
        arguments += [f"https://{HOST}:{server.port}/", "--", f"{connections}", f"{pause * 1000}"]
        with _program(*arguments) as process:
            yield cls(process)

    def stop(self) -> WrkResult:
        """End the load.

        Raises:
          LoadError: it failed, or some requests did.
        """
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate()
        for line in output.splitlines():
            match line.split():
                case ["RESULT", requests, p50, p99, "0"]:
                    return WrkResult(int(requests), int(p50) / 1e6, int(p99) / 1e6)
        raise LoadError(f"wrk saw errors:\n{output}")


def curl(server: Server, *arguments: str | os.PathLike[str], write_out: str) -> list[list[str]]:
    """Run curl, and return the words of the lines that it writes for each transfer.

    Raises:
      LoadError: curl failed.
    """
    with _program(
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--cacert",
        server.certificate.ca,
        "--write-out",
        write_out + "\\n",
        *arguments,
    ) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise LoadError(f"curl failed: {output.strip()}")
    return [line.split() for line in output.splitlines()]
