"""A server that is measured, as the harness sees it: a process with figures.

1. The server runs on one CPU, and everything else on another.
2. CPU time is the kernel's count for the process that serves (user and system, all its threads
   that are or were, in nanoseconds): clock_getcpuclockid(3).
3. Requests are counted by the server, so that a part of its life can be measured: the Python
   servers count in shared memory, nginx is asked for its stub_status on a port without TLS, and
   ``ringtls serve`` for its metrics.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ringtls._cli.certificates import Certificate

from .candidates import Candidate
from .counters import Counters
from .interruptions import interruptions_held

__all__ = ["HOST", "Server", "ServerError", "Snapshot", "load_cpu", "running", "server_cpu"]

HOST = "127.0.0.1"

#: Seconds within which a server is to start, and to end.
START_TIMEOUT = 20
STOP_TIMEOUT = 10

ALL_CPUS = sorted(os.sched_getaffinity(0))

#: In nginx's stub_status, and in the metrics of ringtls serve.
STATUS = re.compile(r"Active connections: (\d+)\D+\d+ \d+ (\d+)")
OPEN = re.compile(r"^ringtls_connections_open (\S+)$", re.MULTILINE)
ANSWERED = re.compile(r"^ringtls_requests_total\{.*\} (\S+)$", re.MULTILINE)


def server_cpu() -> int:
    return ALL_CPUS[0]


def load_cpu() -> int:
    return ALL_CPUS[-1]


class ServerError(Exception):
    """A server does not do what it should."""


@dataclass(frozen=True)
class Snapshot:
    """A server's figures at some moment.

    Attributes:
      time, cpu: seconds.
      requests: how many it has answered.
      connections: how many it has accepted that are still open.
    """

    time: float
    cpu: float
    requests: int
    connections: int


class Server:
    """A running server. Its only maker is ``running``."""

    def __init__(self, directory: Path, certificate: Certificate, pid: int, ports: list[int]):
        self.certificate = certificate
        self.directory = directory
        self.port = ports[0]
        self._pid = pid
        self._status_port = ports[1] if len(ports) > 1 else None
        self._counters = Counters(directory / "counters")

    def snapshot(self) -> Snapshot:
        requests, connections = self._counts()
        return Snapshot(time.perf_counter(), self._cpu(), requests, connections)

    @property
    def pid(self) -> int:
        """The process that serves: nginx's worker."""
        if self._status_port is None:
            return self._pid
        self._counts()  # so nginx has made its worker
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text()
        return int(children or self._pid)

    @property
    def memory(self) -> int:
        """Bytes of resident memory that are this process's alone, or its share (PSS)."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise ServerError("the kernel does not tell the server's PSS")

    @property
    def close_durations(self) -> list[float]:
        """Seconds that closing took, as the server saw it; of nginx nothing is known."""
        return self._counters.close_durations

    def _cpu(self) -> float:
        return time.clock_gettime((~self.pid << 3) | 2)

    def _counts(self) -> tuple[int, int]:
        """Requests answered, and connections that are open."""
        if self._status_port is None:
            return self._counters.requests, self._counters.connections
        with urllib.request.urlopen(f"http://{HOST}:{self._status_port}/metrics") as response:
            text = response.read().decode()
        if match := STATUS.search(text):
            ours = 1
            return int(match[2]), int(match[1]) - ours
        if match := OPEN.search(text):
            return int(sum(map(float, ANSWERED.findall(text)))), int(float(match[1]))
        raise ServerError(f"what the server says of itself is not understood: {text}")


@contextmanager
def running(candidate: Candidate, certificate: Certificate, *, tickets: int) -> Iterator[Server]:
    """A server that has just been started, and is ended afterwards.

    Args:
      tickets: how many session tickets a client is given.

    Raises:
      ServerError: it did not start, or ended before its time.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        errors = directory / "stderr"
        with errors.open("wb") as stderr, interruptions_held():
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"bench.servers.{candidate.name}",
                    directory,
                    certificate.certificate,
                    certificate.key,
                    str(tickets),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=Path(__file__).parents[1],
                process_group=0,  # ^C is for the harness
                preexec_fn=lambda: os.sched_setaffinity(0, {server_cpu()}),
            )
            stack.callback(_stop, process)
        ports = _ready_ports(process)
        if ports is None:
            raise ServerError(f"{candidate.title} did not start: {errors.read_text().strip()}")
        yield Server(directory, certificate, process.pid, ports)
        if process.poll() is not None:
            raise ServerError(f"{candidate.title} has ended: {errors.read_text().strip()}")


def _ready_ports(process: subprocess.Popen[bytes]) -> list[int] | None:
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_TIMEOUT):
            return None
    words = process.stdout.readline().split()
    return [int(word) for word in words[1:]] if words else None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout
    process.stdout.close()
