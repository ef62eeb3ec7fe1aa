"""A server that is measured, as the harness sees it: a process with figures.

1. The server runs on one CPU, and everything else on another.
2. CPU time is the kernel's count for the processes that serve (user and system, all their threads
   that are or were, in nanoseconds): clock_getcpuclockid(3).
3. Requests are counted by the server, so that a part of its life can be measured: the Python
   servers count in shared memory, nginx is asked for its stub_status on a port without TLS, and
   ``ringtls serve`` for its metrics.
4. A terminator has nginx behind it, which counts for it, on the CPU for the load.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ringtls._cli.certificates import Certificate
from ringtls._cli.demo.interruptions import interruptions_held

from .candidates import Candidate
from .counters import Counters

__all__ = ["HOST", "Server", "ServerError", "Snapshot", "load_cpu", "running", "server_cpu"]

HOST = "127.0.0.1"

#: Seconds within which a server is to start, and to end.
START_TIMEOUT = 60
STOP_TIMEOUT = 10

#: Seconds between two tries to reach it.
POLL = 0.05

#: In the directory of a program, what it says of errors.
STDERR = "stderr"

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
    def pids(self) -> list[int]:
        """The processes that serve: with nginx's master its worker."""
        return _family(self._pid)

    @property
    def memory(self) -> int:
        """Bytes of resident memory that are these processes' alone, or their share (PSS)."""
        return sum(map(_memory, self.pids))

    @property
    def close_durations(self) -> list[float]:
        """Seconds that closing took, as the server saw it; of nginx nothing is known."""
        return self._counters.close_durations

    def _cpu(self) -> float:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)

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
    common = (certificate.certificate, certificate.key, str(tickets))
    if candidate.terminator is None:
        with _program(candidate.title, candidate.name, common, server_cpu()) as started:
            yield Server(started.directory, certificate, started.pid, started.ports)
        return
    with _program("nginx", "backend", common, load_cpu()) as backend:
        port, status_port = backend.ports
        arguments = (*common, candidate.terminator.name, str(port), candidate.engine)
        with _program(candidate.title, "terminator", arguments, server_cpu()) as started:
            started.wait_until_it_listens()
            ports = [*started.ports, status_port]
            yield Server(started.directory, certificate, started.pid, ports)


@dataclass(frozen=True)
class _Started:
    title: str
    directory: Path
    process: subprocess.Popen[bytes]
    ports: list[int]

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_it_listens(self) -> None:
        """A terminator makes its socket itself, after it has told its port.

        Raises:
          ServerError: it does not.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as sock:
                if sock.connect_ex((HOST, self.ports[0])) == 0:
                    return
            time.sleep(POLL)
        raise ServerError(f"{self.title} did not start: {_errors(self.directory)}")


@contextmanager
def _program(
    title: str, module: str, arguments: Sequence[str | Path], cpu: int
) -> Iterator[_Started]:
    """A module of bench.servers that runs as a program on one CPU, with a directory of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        with (directory / STDERR).open("wb") as stderr, interruptions_held():
            process = subprocess.Popen(
                [sys.executable, "-m", f"bench.servers.{module}", directory, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=Path(__file__).parents[1],
                process_group=0,  # ^C is for the harness
                preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
            )
            stack.callback(_stop, process)
        ports = _ready_ports(process)
        if ports is None:
            raise ServerError(f"{title} did not start: {_errors(directory)}")
        yield _Started(title, directory, process, ports)
        if process.poll() is not None:
            raise ServerError(f"{title} has ended: {_errors(directory)}")


def _errors(directory: Path) -> str:
    return (directory / STDERR).read_text(errors="replace").strip()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ServerError("the kernel does not tell the server's PSS")


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
