"""``python -m bench.asgi``: hypercorn's own trio worker and ``ringtls asgi``, side by side.

1. Both have the same application, on Starlette, the same certificate, HTTP/1.1, one process.
2. Ends are what a stock client of the stdlib's ssl sees (``ringtls._cli.demo.peer``).
3. The server has one CPU, the load another. What a request costs is CPU time of its process
   by requests that the application has counted, both as it tells them amid the load. The two
   take turns.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ringtls._cli.certificates import Certificate, client_context, make_certificate
from ringtls._cli.demo.peer import observe_end

from .load import program
from .server import HOST, load_cpu, server_cpu

__all__ = ["COMMANDS", "HYPERCORN", "RINGTLS", "app", "count_ends", "main"]

HYPERCORN, RINGTLS = "hypercorn's trio worker", "ringtls asgi"

COMMANDS = {
    HYPERCORN: (
        ["hypercorn", "--worker-class", "trio", "--workers", "1"],
        ["--keep-alive", "1", "--graceful-timeout", "0", "bench.asgi:app"],
    ),
    RINGTLS: (
        ["ringtls", "asgi"],
        ["--idle-timeout", "1", "--graceful-timeout", "0", "bench.asgi:app"],
    ),
}

#: Connections that send requests.
CONNECTIONS = 64

#: Seconds that a client waits for anything.
PATIENCE = 60.0

#: Seconds of load before it is measured.
WARM_UP = 2.0

PIECE = bytes(65536)


# The application

_requests = 0


async def _greet(request: Request) -> Response:
    global _requests
    _requests += 1
    return PlainTextResponse("hello")


async def _send_for_ever(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield PIECE

    return StreamingResponse(pieces())


async def _tell_figures(request: Request) -> Response:
    return PlainTextResponse(f"{_requests} {time.process_time_ns()}")


app = Starlette(
    routes=[
        Route("/", _greet),
        Route("/for-ever", _send_for_ever),
        Route("/figures", _tell_figures),
    ]
)


# Running one


@contextmanager
def _running(name: str, certificate: Certificate) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server, and its port."""
    command, options = COMMANDS[name]
    files = ["--certfile", str(certificate.certificate), "--keyfile", str(certificate.key)]
    with socket.create_server((HOST, 0), backlog=4096) as sock:
        port: int = sock.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--bind", f"fd://{sock.fileno()}", *files, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[sock.fileno()],
            preexec_fn=lambda: os.sched_setaffinity(0, {server_cpu()}),
        )
    try:
        _figures(port, certificate)  # it is there
        yield process, port
    finally:
        process.terminate()
        process.wait()


def _figures(port: int, certificate: Certificate) -> tuple[int, int]:
    """Requests that were answered, and nanoseconds of CPU time."""
    context = client_context(certificate.ca)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE)
    connection.request("GET", "/figures", headers={"Connection": "close"})
    requests, cpu = connection.getresponse().read().split()
    connection.close()
    return int(requests), int(cpu)


# Ends

Converse = Callable[[ssl.SSLSocket], object]


def _ask(client: ssl.SSLSocket, *, path: str = "/", header: str = "") -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())


CASES: dict[str, Converse] = {
    "after an answer": partial(_ask, header="Connection: close\r\n"),
    "idle": _ask,
    "after a bad request": lambda client: client.sendall(b"this is not HTTP\r\n\r\n"),
}


def count_ends(name: str, certificate: Certificate, count: int) -> dict[str, Counter[str]]:
    """How so many connections end, for each case."""
    context = client_context(certificate.ca)
    ends: dict[str, Counter[str]] = {}
    with _running(name, certificate) as (process, port), ThreadPoolExecutor(count) as threads:

        def observe(converse: Converse) -> Counter[str]:
            see = partial(observe_end, (HOST, port), context, converse, timeout=PATIENCE)
            observed = [threads.submit(see) for _ in range(count)]
            return Counter(each.result().end.value for each in observed)

        for case, converse in CASES.items():
            ends[case] = observe(converse)
        streaming: list[int] = []

        def begin(client: ssl.SSLSocket) -> None:
            try:
                _ask(client, path="/for-ever")
                client.recv(1)
            finally:  # one that has ended already must not keep the others waiting
                streaming.append(1)
                if len(streaming) == count:
                    process.send_signal(signal.SIGTERM)

        ends["amid an answer, at SIGTERM"] = observe(begin)
    return ends


# Costs


def _cost(name: str, certificate: Certificate, seconds: float) -> float:
    """Milliseconds of CPU time for a request."""
    load = ["wrk", "-t1", f"-c{CONNECTIONS}", "-d1h"]
    with _running(name, certificate) as (_, port), program(*load, f"https://{HOST}:{port}/"):
        time.sleep(WARM_UP)
        before = _figures(port, certificate)
        time.sleep(seconds)
        after = _figures(port, certificate)
    return (after[1] - before[1]) / (after[0] - before[0]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.asgi")
    parser.add_argument("--ends", type=int, default=20, help="connections for each case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load in each round")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {load_cpu()})
    with tempfile.TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory))
        for name in COMMANDS:
            print(name)
            for case, ends in count_ends(name, certificate, arguments.ends).items():
                print(f"  {case:30}", dict(ends))
        costs: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(arguments.rounds):
            for name in random.sample(list(COMMANDS), len(COMMANDS)):
                costs[name].append(_cost(name, certificate, arguments.seconds))
    for name, values in costs.items():
        print(f"{name}: {statistics.median(values):.3f} ms of CPU for a request", values)
    medians = [statistics.median(costs[name]) for name in (RINGTLS, HYPERCORN)]
    print(f"ratio: {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
