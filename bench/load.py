"""Programs that put a load on a server, each in a process of its own on the CPU for the load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ringtls._cli.demo.interruptions import interruptions_held

from .server import HOST, Server

__all__ = ["LoadError", "Wrk", "WrkResult", "curl", "missing_programs", "program"]

SCRIPT = Path(__file__).with_name("wrk.lua")

PROGRAMS = ("wrk", "curl")

#: wrk counts answers that take longer as errors. With thousands of connections the first take long.
WRK_TIMEOUT = 60

Argument = str | os.PathLike[str]


class LoadError(Exception):
    """A load did not go as it should."""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def program(*arguments: Argument) -> Iterator[subprocess.Popen[str]]:
    """A program that runs, with pipes to its input and from its output, errors among it.

    It is killed if it is left before it ends.
    """
    with ExitStack() as stack:
        with interruptions_held():
            process = stack.enter_context(
                subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    process_group=0,  # ^C is for the harness
                )
            )
            stack.callback(process.kill)
        yield process


@dataclass(frozen=True)
class WrkResult:
    """What wrk says of a run, from its first request to its last.

    Attributes:
      p50, p99: seconds from a request to its answer.
    """

    p50: float
    p99: float


class Wrk:
    """wrk while it runs: until it is stopped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def running(
        cls,
        server: Server,
        connections: int,
        path: str = "",
        *,
        pause: float = 0,
        headers: Sequence[str] = (),
    ) -> Iterator[Wrk]:
        """Start it.

        Args:
          pause: seconds until requests are sent. Connections are opened at once.
        """
        arguments: list[Argument] = ["wrk", "-t1", f"-c{connections}", "-d1h"]
        arguments += [f"--timeout={WRK_TIMEOUT}s", "-s", SCRIPT]
        for header in headers:
            arguments += ["-H", header]
        arguments += [f"https://{HOST}:{server.port}/{path}", "--", f"{pause * 1000}"]
        with program(*arguments) as process:
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
                case ["RESULT", p50, p99, "0"]:
                    return WrkResult(int(p50) / 1e6, int(p99) / 1e6)
        raise LoadError(f"wrk saw errors: {output.strip()}")


def curl(server: Server, *arguments: Argument, write_out: str) -> list[str]:
    """Run curl, and return what it writes for each transfer.

    Raises:
      LoadError: curl failed.
    """
    options: list[Argument] = ["--silent", "--show-error", "--fail", "--output", "/dev/null"]
    options += ["--cacert", server.certificate.ca, "--write-out", write_out + "\\n"]
    with program("curl", *options, *arguments) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise LoadError(f"curl failed: {output.strip()}")
    return output.split()
