"""``ringtls serve``: the files of a directory over HTTPS/1.1.

A first SIGINT or SIGTERM drains: no connection is accepted any more, idle ones end, and requests
that are being served have the graceful timeout to finish. A second one, or the end of that time,
cancels what is left. Every connection ends with close_notify all the same.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import shlex
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from ringtls import RingUnavailableError, SocketListener, TlsListener, open_tls_over_tcp_listeners

from ..certificates import cached_certificate, server_context
from .connection import Drain, access_logger, serve_connection

__all__ = ["Address", "add_parser", "parse_address", "run"]

logger = logging.getLogger("ringtls.serve")


class StartError(OSError):
    """The server can't start; the text says why, in one line."""


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_ADDRESS = Address("127.0.0.1", 8443)


def parse_address(text: str) -> Address:
    """HOST:PORT, or [HOST]:PORT for IPv6.

    Raises:
      argparse.ArgumentTypeError
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"put the IPv6 address in brackets: [{host}]:{port}")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Address(host, int(port))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


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
        type=parse_address,
        action="append",
        metavar="HOST:PORT",
        help="where to listen; may be given several times, [HOST]:PORT for IPv6, port 0 for any "
        f"that is free (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--certfile",
        type=Path,
        metavar="FILE",
        help="certificate chain in PEM form (default: a development certificate, made when needed)",
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
    context, ca = _context(arguments.certfile, arguments.keyfile)
    _set_up_logging(arguments.access_log)
    trio.run(
        partial(
            _serve,
            root,
            arguments.bind or [DEFAULT_ADDRESS],
            context,
            ca,
            arguments.graceful_timeout,
        )
    )
    return 0


# Starting


def _directory(directory: Path) -> Path:
    try:
        root = directory.resolve(strict=True)
        next(root.iterdir(), None)
    except OSError as error:
        raise StartError(f"can't serve the directory {directory}: {error.strerror}") from error
    return root


def _context(certificate: Path | None, key: Path | None) -> tuple[ssl.SSLContext, Path | None]:
    """The context, and the development certificate's authority if that is used."""
    if certificate is None:
        if key is not None:
            raise StartError("--keyfile needs --certfile")
        development = cached_certificate()
        context = server_context(development.certificate, development.key)
        ca = development.ca
    else:
        context, ca = _given_context(certificate, key), None
    context.set_alpn_protocols(["http/1.1"])
    return context, ca


def _given_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    for path in filter(None, (certificate, key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise StartError(f"can't read {path}: {error.strerror}") from error
    try:
        return server_context(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"the key in {key} is not that of {certificate}") from error
        files = f"{certificate} and {key}" if key else certificate
        raise StartError(f"no certificate with its key in {files}: {error}") from error


def _set_up_logging(access_log: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    if access_log:
        access_logger.addHandler(logging.StreamHandler(sys.stdout))
        access_logger.setLevel(logging.INFO)
        access_logger.propagate = False


async def _listen(address: Address, context: ssl.SSLContext) -> list[TlsListener]:
    try:
        return await open_tls_over_tcp_listeners(
            address.port, context, host=address.host, https_compatible=True
        )
    except RingUnavailableError as error:
        raise StartError(error.strerror) from error
    except OSError as error:
        raise StartError(
            f"can't listen on {address}: {error.strerror}; choose another with --bind"
        ) from error


def _bound_address(listener: TlsListener) -> Address:
    assert isinstance(listener.transport_listener, SocketListener)
    host, port = listener.transport_listener.socket.getsockname()[:2]
    return Address(host, port)


def _announce(addresses: list[Address], ca: Path | None) -> None:
    for address in addresses:
        print(f"Running on https://{address} (CTRL + C to quit)", flush=True)
    if ca is not None:
        ip = ipaddress.ip_address(addresses[0].host)
        host = "localhost" if ip.is_loopback or ip.is_unspecified else socket.gethostname()
        url = f"https://{host}:{addresses[0].port}/"
        print(f"Try: curl --cacert {shlex.quote(str(ca))} {url}", flush=True)


# Serving


async def _serve(
    root: Path,
    addresses: list[Address],
    context: ssl.SSLContext,
    ca: Path | None,
    graceful_timeout: float,
) -> None:
    drain = Drain()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        listeners: list[TlsListener] = []
        for address in addresses:
            for listener in await _listen(address, context):
                listeners.append(await stack.enter_async_context(listener))
        watch = await stack.enter_async_context(trio.open_nursery())
        async with trio.open_nursery() as connections:
            accepting = trio.CancelScope()
            watch.start_soon(
                _drain_at_signal, signals, drain, accepting, connections, graceful_timeout
            )
            _announce([_bound_address(listener) for listener in listeners], ca)
            with accepting:
                await trio.serve_listeners(
                    partial(serve_connection, root, drain),
                    listeners,
                    handler_nursery=connections,
                )
        watch.cancel_scope.cancel()


async def _drain_at_signal(
    signals: AsyncIterator[int],
    drain: Drain,
    accepting: trio.CancelScope,
    connections: trio.Nursery,
    graceful_timeout: float,
) -> None:
    name = signal.Signals(await anext(signals)).name
    logger.info("%s: finishing what is being served, for at most %g s", name, graceful_timeout)
    accepting.cancel()
    drain.start()
    with trio.move_on_after(graceful_timeout):
        await anext(signals)
    if left := len(connections.child_tasks):
        logger.warning("%d %s cut short", left, "connection is" if left == 1 else "connections are")
    connections.cancel_scope.cancel()
