"""What connections cost that are idle, and how long it takes to close one."""

from __future__ import annotations

import statistics
import sys
import time

from .client import ask, client_context
from .load import LoadError, program
from .server import Server
from .settings import Figures, Settings

__all__ = ["close", "idle"]

#: The server is at rest when it uses less CPU time than this in so many seconds.
REST_CPU = 1e-3
REST_SECONDS = 0.3

#: Seconds within which it is to come to rest.
REST_TIMEOUT = 60


def idle(server: Server, settings: Settings, *, descriptors: int = 1) -> Figures:
    """Memory, as the difference that connections make to a server that has served one before.

    Args:
      descriptors: how many the server has for each.
    """
    count = settings.idle // descriptors
    ask(server, client_context(server))
    _wait_for_rest(server)
    before = server.memory
    ca = server.certificate.ca
    with program(sys.executable, "-m", "bench.idle", str(server.port), ca, str(count)) as client:
        assert client.stdout
        said = client.stdout.readline()
        if said != "open\n":
            raise LoadError(f"connections could not be opened: {said}{client.stdout.read()}")
        _wait_for_rest(server)
        known = server.snapshot().connections
        if known < count:
            raise LoadError(f"of {count} idle connections the server knows {known}")
        after = server.memory
        client.communicate()
    return {"memory_per_connection": (after - before) / count}


def close(server: Server, settings: Settings) -> Figures:
    """How long closing keeps the server's task, with a client that answers at once."""
    context = client_context(server)
    for _ in range(settings.closes):
        ask(server, context)
    durations = server.close_durations
    return {"close_latency": statistics.median(durations)} if durations else {}


def _wait_for_rest(server: Server) -> None:
    deadline = time.monotonic() + REST_TIMEOUT
    now = server.snapshot().cpu
    while True:
        before = now
        time.sleep(REST_SECONDS)
        now = server.snapshot().cpu
        if now - before < REST_CPU:
            return
        if time.monotonic() > deadline:
            raise LoadError(f"the server is not at rest after {REST_TIMEOUT} seconds")
