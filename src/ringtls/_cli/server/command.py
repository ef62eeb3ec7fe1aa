"""The part of a command line that all servers share, and what runs them.

Without ``--workers`` this process serves (``serving``); with it, it supervises those that do
(``supervisor``).
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import resource
import shlex
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path

import trio

from . import logs
from .connections import Limits, Wait
from .credentials import Credentials, Files
from .errors import StartError
from .handling import Service
from .listening import Address, open_sockets, parse_bind
from .notify import notify
from .reloading import Reloader
from .serving import Orders, Server, own_signals, serve
from .supervisor import PassedSignals, supervise

__all__ = ["add_options", "run_server"]

DEFAULT_ADDRESS = Address("127.0.0.1", 8443)

#: Seconds.
TIMEOUTS = {
    Wait.HANDSHAKE: 10.0,
    Wait.FIRST_REQUEST: 20.0,
    Wait.REQUEST: 20.0,
    Wait.NEXT_REQUEST: 75.0,
    Wait.ROOM: 60.0,
}


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes nor 'auto'")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the arguments that ``run_server`` knows."""
    parser.add_argument(
        "--bind",
        type=parse_bind,
        action="append",
        metavar="HOST:PORT",
        help="where to listen; may be given several times, [HOST]:PORT for IPv6, port 0 for any "
        "that is free, fd://NUMBER for a listening socket that is inherited, as from systemd "
        f"(default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        metavar="NUMBER",
        help="serve in this many processes, which are started again if they crash; 'auto' for one "
        "for each CPU (default: serve in this process alone)",
    )
    parser.add_argument(
        "--certfile",
        type=Path,
        metavar="FILE",
        help="certificate chain in PEM form, loaded anew at SIGHUP (default: a development "
        "certificate, made when needed)",
    )
    parser.add_argument(
        "--keyfile",
        type=Path,
        metavar="FILE",
        help="private key in PEM form (default: in the file of the certificate)",
    )
    parser.add_argument(
        "--graceful-timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long requests may go on after SIGINT or SIGTERM (default: 10)",
    )
    parser.add_argument(
        "--access-log", action="store_true", help="write a line for each request to stdout"
    )


def run_server(arguments: argparse.Namespace, service: Service) -> int:
    """Serve until a signal ends it; the exit status.

    Raises:
      OSError: the server can't start.
    """
    files = _files(arguments)
    credentials = Credentials(files.read(), service.alpn)
    server = Server(
        service,
        credentials,
        Reloader(files, credentials),
        Limits(TIMEOUTS),
        arguments.graceful_timeout,
    )

    def serve_here(
        sockets: list[socket.socket],
        orders: AbstractContextManager[Orders],
        on_ready: Callable[[], object],
    ) -> None:
        trio.run(serve, server, sockets, orders, on_ready)

    def work(
        number: int,
        sockets: list[socket.socket],
        signals: PassedSignals,
        on_ready: Callable[[], object],
    ) -> None:
        _set_up_logging(arguments, f"worker {number}")
        serve_here(sockets, nullcontext(signals), on_ready)

    with ExitStack() as stack:
        shares = open_sockets(arguments.bind or [DEFAULT_ADDRESS], arguments.workers or 1, stack)
        # From here on descriptors are taken that might have been meant to be inherited.
        _raise_file_limit()
        service.prepare()
        _set_up_logging(arguments)
        addresses = [_address(sock) for sock in shares[0]]
        announce = partial(_announce, addresses, credentials.development_ca)
        if arguments.workers is not None:
            timeout = arguments.graceful_timeout
            return supervise(shares, work, server.reloader, timeout, announce)
        serve_here(shares[0], own_signals(), announce)
    return 0


# Starting


def _files(arguments: argparse.Namespace) -> Files:
    if arguments.certfile is None:
        if arguments.keyfile is not None:
            raise StartError("--keyfile needs --certfile")
        return Files()
    return Files([(arguments.certfile, arguments.keyfile)])


def _set_up_logging(arguments: argparse.Namespace, worker: str = "") -> None:
    logs.set_up("text", worker)
    logging.getLogger("ringtls.server").setLevel(logging.INFO)
    if arguments.access_log:
        logs.access_logger.setLevel(logging.INFO)


def _raise_file_limit() -> None:
    """Have as many descriptors as this process may take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # more than fs.nr_open, once it was lowered
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def _announce(addresses: list[Address], ca: Path | None) -> None:
    for address in addresses:
        print(f"Running on https://{address} (CTRL + C to quit)", flush=True)
    if ca is not None:
        ip = ipaddress.ip_address(addresses[0].host)
        host = "localhost" if ip.is_loopback or ip.is_unspecified else socket.gethostname()
        url = f"https://{host}:{addresses[0].port}/"
        print(f"Try: curl --cacert {shlex.quote(str(ca))} {url}", flush=True)
    notify("READY=1")
