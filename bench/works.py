"""The works: what the servers have to do in each measurement.

1. Each measurement has a server that was just started.
2. wrk resumes sessions for as long as it is given tickets. So the work with full handshakes has
   servers that give none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import bulk, connections, requests
from .candidates import Kind
from .server import Server
from .settings import Figures, Settings

__all__ = ["TICKETS", "WORKS", "Work"]

#: Session tickets that a client gets: the default of OpenSSL.
TICKETS = 2

#: The connections at which system calls are counted.
TYPICAL = 64

#: Descriptors that a terminator has for each connection.
OF_A_PAIR = 2

RELAYED = (
    "Terminators: CPU time and memory are those of all processes of the terminator. nginx behind "
    "it, which answers, has the other CPU, with the load."
)


@dataclass(frozen=True)
class Work:
    """Something for a server to do.

    Attributes:
      measure: has it done once.
      tickets: how many session tickets the server gives.
      once: no round but the first has it.
      program: what it needs, if that is not always there, and the package it is in.
      note: what is to be known about its figures.
      kind: which candidates have it.
    """

    name: str
    title: str
    measure: Callable[[Server, Settings], Figures]
    tickets: int = TICKETS
    once: bool = False
    program: str = ""
    note: str = ""
    kind: Kind = Kind.HANDLER


def _keep_alive(count: int) -> Work:
    measure = partial(requests.keep_alive, connections=count)
    return Work(f"keep-alive-{count}", f"keep-alive, connections: {count:,}", measure)


def _files(name: str, title: str, path: str, count: int) -> Work:
    measure = partial(requests.keep_alive, connections=count, path=path)
    return Work(name, title, measure, kind=Kind.FILES)


def _relay(
    name: str,
    title: str,
    measure: Callable[[Server, Settings], Figures],
    *,
    tickets: int = TICKETS,
    once: bool = False,
) -> Work:
    return Work(f"proxy-{name}", title, measure, tickets, once, note=RELAYED, kind=Kind.RELAY)


WORKS = (
    _keep_alive(1),
    _keep_alive(TYPICAL),
    _keep_alive(512),
    _keep_alive(4096),
    Work(
        "handshakes",
        "handshake, request, close",
        requests.churn,
        tickets=0,
        note="No server gives session tickets here, as wrk would resume the sessions.",
    ),
    Work("resumed", "resumed handshake, request, close", requests.churn),
    Work("bulk-down", "bulk download", bulk.download),
    Work("bulk-up", "bulk upload", bulk.upload),
    Work(
        "idle",
        "idle connections",
        connections.idle,
        once=True,
        note="Memory is the server process's (PSS). The kernel's is not counted: buffers of "
        "sockets, and the requests of io_uring.",
    ),
    Work(
        "close",
        "closing a connection",
        connections.close,
        note="Closing ends for asyncio when the client has answered close_notify, for ringtls when "
        "the kernel has all that is to be sent, for trio when close_notify is sent. nginx does "
        "not tell.",
    ),
    Work(
        "system-calls",
        f"system calls, connections: {TYPICAL}",
        partial(requests.system_calls, connections=TYPICAL),
        program=requests.PERF,
        note="System calls are counted by perf, which needs root or the right to trace.",
    ),
    _files("serve-small", "a small file", "files/small", TYPICAL),
    _files("serve-100k", "a file of 100 KiB", "files/100k", TYPICAL),
    _files("serve-10m", "a file of 10 MiB", "files/10m", 8),
    _relay(
        f"keep-alive-{TYPICAL}",
        f"keep-alive through a terminator, connections: {TYPICAL}",
        partial(requests.keep_alive, connections=TYPICAL),
    ),
    _relay("churn", "handshake, connect, request, close", requests.churn, tickets=0),
    _relay("bulk-down", "bulk download through a terminator", bulk.download),
    _relay("bulk-up", "bulk upload through a terminator", bulk.upload),
    _relay(
        "idle",
        "idle connections through a terminator",
        partial(connections.idle, descriptors=OF_A_PAIR),
        once=True,
    ),
)
