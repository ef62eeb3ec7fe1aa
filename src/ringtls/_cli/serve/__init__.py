"""``ringtls serve``: the files of a directory over HTTPS/1.1.

Without ``--workers`` this process serves (``serving``); with it, it supervises those that do
(``supervisor``).
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

import trio

from .connection import access_logger
from .credentials import Credentials
from .errors import StartError
from .listening import Address, open_sockets, parse_bind
from .serving import own_signals, serve
from .supervisor import PassedSignals, supervise

__all__ = ["add_parser", "run"]

logger = logging.getLogger("ringtls.serve")

DEFAULT_ADDRESS = Address("127.0.0.1", 8443)

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


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


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments of this command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve the files of a directory over HTTPS",
        description="Serve the files of a directory over HTTPS.",
    )
    parser.add_argument(
        "-d",
        "--directory",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="what to serve (default: the current directory)",
    )
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
      OSError: the server can't start.
    """
    root = _directory(arguments.directory)
    credentials = Credentials(arguments.certfile, arguments.keyfile)
    _set_up_logging(arguments.access_log)

    def serve_here(
        sockets: list[socket.socket],
        signals: AbstractContextManager[AsyncIterator[int]],
        on_ready: Callable[[], object],
    ) -> None:
        timeout = arguments.graceful_timeout
        trio.run(serve, root, credentials, timeout, sockets, signals, on_ready)

    def work(
        number: int,
        sockets: list[socket.socket],
        signals: PassedSignals,
        on_ready: Callable[[], object],
    ) -> None:
        _name_in_log(f"worker {number}")
        serve_here(sockets, nullcontext(signals), on_ready)

    with ExitStack() as stack:
        shares = open_sockets(arguments.bind or [DEFAULT_ADDRESS], arguments.workers or 1, stack)
        announce = partial(_announce, [_address(sock) for sock in shares[0]], credentials.ca)
        if arguments.workers is not None:
            return supervise(shares, work, credentials.reload, announce)
        serve_here(shares[0], own_signals(), announce)
    return 0


# Starting


def _directory(directory: Path) -> Path:
    try:
        root = directory.resolve(strict=True)
        next(root.iterdir(), None)
    except OSError as error:
        raise StartError(f"can't serve the directory {directory}: {error.strerror}") from error
    return root


def _set_up_logging(access_log: bool) -> None:
    logging.basicConfig(format=LOG_FORMAT, stream=sys.stderr)
    logger.setLevel(logging.INFO)
    if access_log:
        access_logger.addHandler(logging.StreamHandler(sys.stdout))
        access_logger.setLevel(logging.INFO)
        access_logger.propagate = False


def _name_in_log(name: str) -> None:
    """Begin each message of this process with a name."""
    form = LOG_FORMAT.replace("%(message)s", f"{name}: %(message)s")
    logging.basicConfig(format=form, stream=sys.stderr, force=True)


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
