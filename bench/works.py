"""The works: what the servers have to do, and how what it costs is measured.

1. What wrk asks for is measured between two snapshots. The first is made when all connections
   are in use: wrk opens its connections at the start, and their handshakes are no part of
   keep-alive. The load goes on until after the second.
2. Where there are many connections, wrk waits on each of them before its first request. Else the
   first to be open would keep a server that accepts one at a time from accepting the others.
3. Percentiles are wrk's, of its whole run. It counts from the request on, so without handshake.
4. wrk resumes sessions for as long as it is given tickets. So a work with full handshakes has
   servers that give none.
5. Each measurement has a server that was just started, and has answered some requests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from .load import LoadError, Wrk, curl
from .server import HOST, Server
from .servers.http import BULK_SIZE

__all__ = ["WORKS", "Settings", "Work"]

#: Requests that each connection has on average had answered before the measurement, and how long
#: that may take, in seconds.
WARM_UP_REQUESTS = 5
WARM_UP_TIMEOUT = 120

#: Seconds between two looks at a server that warms up.
POLL = 0.1

#: More connections than these are many, and wait for so many seconds for each of them.
FEW_CONNECTIONS = 64
PAUSE_PER_CONNECTION = 2e-3

#: Connections at once that are each used for one request.
CHURN_CONNECTIONS = 32

#: Transfers of BULK_SIZE for each second of the settings.
TRANSFERS_PER_SECOND = 4

MEGABYTE = 1e6
TICKETS = 2


@dataclass(frozen=True)
class Settings:
    """How thorough a run is.

    Attributes:
      seconds: how long a work is measured in each round.
    """

    seconds: float


Measure = Callable[[Server, Settings], Mapping[str, float]]


@dataclass(frozen=True)
class Work:
    """Something for a server to do.

    Attributes:
      measure: does it once, and returns figures by the names of metrics.
      tickets: how many session tickets the server gives.
      once: no round but the first has it.
    """

    name: str
    title: str
    measure: Measure
    tickets: int = TICKETS
    once: bool = False


def _keep_alive(server: Server, settings: Settings, *, connections: int) -> Mapping[str, float]:
    pause = PAUSE_PER_CONNECTION * connections if connections > FEW_CONNECTIONS else 0
    with Wrk.running(server, connections, pause=pause) as wrk:
        _wait_until(lambda: server.snapshot().connections >= connections)
        time.sleep(pause)
        figures = _between_snapshots(server, settings, WARM_UP_REQUESTS * connections)
        result = wrk.stop()
    return {**figures, "p50": result.p50, "p99": result.p99}


def _churn(server: Server, settings: Settings) -> Mapping[str, float]:
    headers = ["Connection: close"]
    with Wrk.running(server, CHURN_CONNECTIONS, headers=headers) as wrk:
        figures = _between_snapshots(server, settings, WARM_UP_REQUESTS * CHURN_CONNECTIONS)
        wrk.stop()
    return figures


def _between_snapshots(server: Server, settings: Settings, warm_up: int) -> Mapping[str, float]:
    """What requests cost when so many more have been answered."""
    first = server.snapshot().requests + warm_up
    _wait_until(lambda: server.snapshot().requests >= first)
    before = server.snapshot()
    time.sleep(settings.seconds)
    after = server.snapshot()
    requests = after.requests - before.requests
    if not requests:
        raise LoadError("no request was answered")
    return {
        "cpu_per_request": (after.cpu - before.cpu) / requests,
        "requests_per_second": requests / (after.time - before.time),
    }


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WARM_UP_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise LoadError(f"the load was not under way within {WARM_UP_TIMEOUT} seconds")
        time.sleep(POLL)


def _bulk(
    server: Server, settings: Settings, *, path: str, direction: str, options: list[str]
) -> Mapping[str, float]:
    transfers = max(1, round(TRANSFERS_PER_SECOND * settings.seconds))
    url = f"https://{HOST}:{server.port}{path}?[1-{transfers}]"
    before = server.snapshot()
    lines = curl(server, *options, url, write_out=f"%{{size_{direction}}}")
    after = server.snapshot()
    sizes = [int(size) for [size] in lines]
    if sizes != [BULK_SIZE] * transfers:
        raise LoadError(f"{transfers} times {BULK_SIZE} bytes were wanted; curl says {sizes}")
    megabytes = sum(sizes) / MEGABYTE
    return {
        "cpu_per_megabyte": (after.cpu - before.cpu) / megabytes,
        "megabytes_per_second": megabytes / (after.time - before.time),
    }


def _bulk_down(server: Server, settings: Settings) -> Mapping[str, float]:
    options = ["--output", "/dev/null"]
    return _bulk(server, settings, path="/bulk", direction="download", options=options)


def _bulk_up(server: Server, settings: Settings) -> Mapping[str, float]:
    file = server.directory / "upload"
    file.touch()
    os.truncate(file, BULK_SIZE)
    options = ["--output", "/dev/null", "--header", "Expect:", "--upload-file", str(file)]
    return _bulk(server, settings, path="/upload", direction="upload", options=options)


WORKS = (
    *(
        Work(
            f"keep-alive-{connections}",
            f"keep-alive, connections: {connections:,}",
            partial(_keep_alive, connections=connections),
        )
        for connections in (1, 64, 512, 4096)
    ),
    Work("handshakes", "handshake, request, close", _churn, tickets=0),
    Work("resumed", "resumed handshake, request, close", _churn),
    Work("bulk-down", "bulk download", _bulk_down),
    Work("bulk-up", "bulk upload", _bulk_up),
)
