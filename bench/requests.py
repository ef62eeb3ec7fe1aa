"""Small requests in great number: what they cost, and how long their answers take.

1. What wrk asks for is measured between two snapshots. The first is made when all connections
   are in use: wrk opens its connections at the start, and their handshakes are no part of
   keep-alive. The load goes on until after the second.
2. Where there are many connections, wrk sends nothing until all are open. Else the first to be
   open would keep a server that accepts one at a time from accepting the others. If the wait
   turns out to be too short, it is tried again with a longer one.
3. Percentiles are wrk's, of its whole run. It counts from the request on, so without handshake.
4. System calls are counted by perf, which does not slow the server down. Under strace each call
   takes so long that more requests come together, and one call does for more of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .load import LoadError, Wrk, program
from .server import Server, Snapshot
from .settings import Figures, Settings

__all__ = ["PERF", "churn", "keep_alive", "system_calls"]

#: Requests that each connection has on average had answered before the measurement, and how long
#: that may take, in seconds.
WARM_UP_REQUESTS = 5
WARM_UP_TIMEOUT = 120

#: Seconds in which at least one is to be answered.
ANSWER_TIMEOUT = 60

#: Seconds between two looks at a server.
POLL = 0.1

#: More connections than these are many. For each of them opening takes so many seconds at most.
FEW_CONNECTIONS = 64
PAUSE_PER_CONNECTION = 2e-3

#: Connections at once that are each used for one request.
CHURN_CONNECTIONS = 32

PERF = "perf"

#: What perf runs: its beginning and its end are the limits between which calls are counted.
UNTIL_TOLD = ("sh", "-c", "echo begin; read line")


def keep_alive(server: Server, settings: Settings, *, connections: int, path: str = "") -> Figures:
    with _kept_alive(server, connections, path) as wrk:
        figures = _between_snapshots(server, settings)
        result = wrk.stop()
    return {**figures, "p50": result.p50, "p99": result.p99}


def churn(server: Server, settings: Settings) -> Figures:
    """Each request has a connection of its own, which the server closes."""
    with Wrk.running(server, CHURN_CONNECTIONS, headers=["Connection: close"]) as wrk:
        _warm_up(server, CHURN_CONNECTIONS)
        figures = _between_snapshots(server, settings)
        wrk.stop()
    return figures


def system_calls(server: Server, settings: Settings, *, connections: int) -> Figures:
    counter = ["perf", "stat", "--field-separator=,", "--event=raw_syscalls:sys_enter"]
    pids = ",".join(map(str, server.pids))
    with (
        _kept_alive(server, connections),
        program(*counter, f"--pid={pids}", *UNTIL_TOLD) as perf,
    ):
        assert perf.stdout
        began = perf.stdout.readline()
        before, after = _snapshots(server, settings)
        output, _ = perf.communicate("\n")
    count, *_ = output.split(",")
    if not count.isdecimal():
        raise LoadError(f"perf can't count system calls here: {(began + output).strip()}")
    return {"system_calls_per_request": int(count) / (after.requests - before.requests)}


@contextmanager
def _kept_alive(server: Server, connections: int, path: str = "") -> Iterator[Wrk]:
    """wrk, when it uses so many connections."""
    pause = PAUSE_PER_CONNECTION * connections if connections > FEW_CONNECTIONS else 0
    while pause < WARM_UP_TIMEOUT:
        with Wrk.running(server, connections, path, pause=pause) as wrk:
            start = time.monotonic() + pause
            if _comes(lambda: server.snapshot().connections >= connections, pause or 1):
                time.sleep(max(0, start - time.monotonic()))
                _warm_up(server, connections)
                yield wrk
                return
        _comes(lambda: server.snapshot().connections == 0, WARM_UP_TIMEOUT)
        pause = 2 * (pause or 1)
    raise LoadError(f"{connections} connections could not be opened in {pause / 2:.0f} seconds")


def _warm_up(server: Server, connections: int) -> None:
    enough = server.snapshot().requests + WARM_UP_REQUESTS * connections
    if not _comes(lambda: server.snapshot().requests >= enough, WARM_UP_TIMEOUT):
        raise LoadError(f"the load was not under way within {WARM_UP_TIMEOUT} seconds")


def _between_snapshots(server: Server, settings: Settings) -> Figures:
    before, after = _snapshots(server, settings)
    requests = after.requests - before.requests
    return {
        "cpu_per_request": (after.cpu - before.cpu) / requests,
        "requests_per_second": requests / (after.time - before.time),
    }


def _snapshots(server: Server, settings: Settings) -> tuple[Snapshot, Snapshot]:
    """So long apart as is set; where the machine has other work, until a request is answered."""
    before = server.snapshot()
    time.sleep(settings.seconds)
    if not _comes(lambda: server.snapshot().requests > before.requests, ANSWER_TIMEOUT):
        raise LoadError(f"no request was answered within {ANSWER_TIMEOUT} seconds")
    return before, server.snapshot()


def _comes(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until it is true, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
