"""``ringtls serve`` under everything that goes wrong, at once: an honest client is served on, and
nothing is left of the others.

RINGTLS_FAULTS is the number of rounds. With ``-s`` the slowest honest answer is printed.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from .conftest import Contexts
from .support.server import MIB, TEXT, WORKERS, Server, Start, head, is_alive, starting
from .support.waiting import wait_until

ROUNDS = int(os.environ.get("RINGTLS_FAULTS", "3"))

#: Hostile connections of each kind that a round begins, and rounds for which they stay.
EACH = 8
STAY = 3

#: Requests that are sent at once, and of which no answer is read.
FLOOD = head("/text.txt") * 4096


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    root.mkdir()
    (root / "text.txt").write_bytes(TEXT)
    with (root / "large").open("wb") as file:
        file.truncate(64 * MIB)
    return root


@pytest.fixture
def start(contexts: Contexts, site: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(contexts, site, tmp_path) as start:
        yield start


# What hostile clients do. Each leaves its connection as it is, until the round is over.


def slow_head(sock: ssl.SSLSocket) -> None:
    sock.sendall(b"GET /text.txt HTT")


def slow_reader(sock: ssl.SSLSocket) -> None:
    sock.sendall(head("/large"))


def flood(sock: ssl.SSLSocket) -> None:
    sock.setblocking(False)
    sock.send(FLOOD)


def silent(sock: socket.socket) -> None:
    """Not even a handshake."""


def half_a_handshake(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")


def no_tls(sock: socket.socket) -> None:
    sock.sendall(os.urandom(4096))


OVER_TLS: tuple[Callable[[ssl.SSLSocket], None], ...] = (slow_head, slow_reader, flood)
OVER_TCP: tuple[Callable[[socket.socket], None], ...] = (silent, half_a_handshake, no_tls)


def attack(server: Server) -> ExitStack:
    """Begin all of it. What a killed worker had is reset, and its clients don't mind."""
    stack = ExitStack()
    for _ in range(EACH):
        for act_over_tls in OVER_TLS:
            with suppress(OSError):
                act_over_tls(stack.enter_context(server.tls(receive_buffer=4096)))
        for act in OVER_TCP:
            with suppress(OSError):
                act(stack.enter_context(server.tcp()))
    return stack


def kill_one(server: Server) -> None:
    """Kill the oldest worker. Returns when it is dead, and not when it has a successor."""
    worker = min(server.workers())
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))


def sockets_of(worker: int) -> int:
    links = []
    for name in os.listdir(f"/proc/{worker}/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{worker}/fd/{name}"))
    return sum(link.startswith("socket:") for link in links)


def test_an_honest_client_is_served_through_all_faults_at_once(start: Start) -> None:
    server = start(*WORKERS)
    assert server.works()
    wait_until(lambda: len(set(map(sockets_of, server.workers()))) == 1)  # both idle again
    before = sockets_of(server.workers()[0])
    supervisors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    slowest = 0.0
    with ExitStack() as stack:
        attacks: deque[ExitStack] = deque()
        for _ in range(ROUNDS):
            attacks.append(stack.enter_context(attack(server)))
            server.process.send_signal(signal.SIGHUP)
            kill_one(server)
            for _ in range(EACH):
                began = time.monotonic()
                assert server.works()
                slowest = max(slowest, time.monotonic() - began)
            if len(attacks) == STAY:
                attacks.popleft().close()
            wait_until(lambda: len(server.workers()) == 2)
    print(f"slowest honest answer: {slowest:.3f} s")
    wait_until(lambda: list(map(sockets_of, server.workers())) == [before] * 2)
    wait_until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) == supervisors)
    assert server.works()
    assert server.stop() == 0
    assert "unexpected error" not in server.log()
