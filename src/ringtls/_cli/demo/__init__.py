"""``ringtls demo``: how the peer sees the ends of ringtls, next to those of trio.SSLStream."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

import trio

from .cases import CASES
from .comparison import SERVERS, Comparison, compare
from .measure import RINGTLS
from .peer import End
from .progress import Progress

__all__ = ["add_parser", "render", "run"]

CONNECTIONS = 200
PROXY_CONNECTIONS = 20

#: These columns are always in the table; the others only if there is something in them.
USUAL_ENDS = (End.CLEAN, End.TRUNCATED, End.RESET)

TOTAL = "total"
GAP = "    "


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="count how connections end, on ringtls and on trio.SSLStream",
        description="End connections of ringtls and of trio.SSLStream in several ways, and count "
        "how a blocking client of the ssl module sees the ends. "
        "Exit status 0 if all those of ringtls were clean.",
    )
    parser.add_argument(
        "-n",
        "--connections",
        type=_positive,
        metavar="N",
        help=f"connections for each case and server (default: {CONNECTIONS})",
    )
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="compare what ringtls proxy, and other TLS terminators that are installed, make of "
        f"ends (default: {PROXY_CONNECTIONS} connections for each)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.proxy:
        from . import proxy

        connections = arguments.connections or PROXY_CONNECTIONS
        return 0 if proxy.compare(connections, sys.stdout) else 1
    connections = arguments.connections or CONNECTIONS
    per_case = connections * len(SERVERS)
    progress = Progress(sys.stderr, per_case * len(CASES), per_case)
    comparison = trio.run(compare, connections, progress.connection_ended)
    print(render(comparison))
    return 0 if comparison.all_clean(RINGTLS.name) else 1


def render(comparison: Comparison) -> str:
    """The figures as a table, and what they mean."""
    totals = {server.name: comparison.total(server.name) for server in SERVERS}
    shown = [
        end for end in End if end in USUAL_ENDS or any(total[end] for total in totals.values())
    ]
    label_width = max(len(name) for name in (*(case.name for case in CASES), TOTAL))

    def row(label: str, ends: dict[str, Counter[End]]) -> str:
        groups = (
            "  ".join(f"{ends[server.name][end]:>{len(end.value)}}" for end in shown)
            for server in SERVERS
        )
        return GAP.join((f"{label:{label_width}}", *groups))

    group_header = "  ".join(end.value for end in shown)
    names = (f"{server.name:{len(group_header)}}" for server in SERVERS)
    rows = [
        row(case.name, {server.name: comparison.ends[case.name, server.name] for server in SERVERS})
        for case in CASES
    ]
    return "\n".join(
        (
            f"How the peers saw the ends of {comparison.connections} connections for each case:",
            "",
            GAP.join((" " * label_width, *names)).rstrip(),
            GAP.join((" " * label_width, *(group_header for _ in SERVERS))),
            *rows,
            row(TOTAL, totals),
            "",
            *_conclusion(totals),
        )
    )


def _conclusion(totals: dict[str, Counter[End]]) -> list[str]:
    unclean = ", ".join(
        f"{server} {total.total() - total[End.CLEAN]} of {total.total()}"
        for server, total in totals.items()
    )
    return [
        "Only close_notify tells an end from a truncation attack (RFC 8446, section 6.1).",
        f"Connections whose end was not clean: {unclean}.",
    ]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
