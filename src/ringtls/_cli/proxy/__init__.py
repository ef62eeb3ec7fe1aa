"""``ringtls proxy``: a TLS terminator that tells the truth about ends."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..server import StartError, add_options, run_server, seconds
from .backends import Routes, parse_host, parse_place, parse_route
from .connection import Options, ProxyService
from .encryption import Encryption
from .header import Version

__all__ = ["add_parser", "run"]

#: Seconds.
CONNECT_TIMEOUT = 5.0

#: What a plain connection has no use for.
_OF_TLS = ("certfile", "keyfile", "cert_dir", "client_ca", "client_crl", "client_allow", "route")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments of this command."""
    parser = subparsers.add_parser(
        "proxy",
        help="put TLS in front of any server, and pass on how connections end",
        description="Take TLS connections and relay each to a backend. An end is passed on as an "
        "end, and everything else as a reset: a crash of the backend never reads as the end of "
        "its answer, nor a truncated upload as a whole one.",
    )
    backends = parser.add_argument_group("where connections go")
    backends.add_argument(
        "--backend",
        type=parse_place,
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where to; [HOST]:PORT for IPv6, unix:PATH for a local socket, which can't be reset: "
        "it reads every break as an end. With several, the one with the fewest connections is "
        "first, and the next if that can't be connected to",
    )
    backends.add_argument(
        "--route",
        type=parse_route,
        action="append",
        default=[],
        metavar="NAME=BACKEND",
        help="where to for clients that ask for this name (SNI), or for *.NAME; may be given "
        "several times, also for one name. Without --backend, other names are refused",
    )
    backends.add_argument(
        "--connect-timeout",
        type=seconds,
        default=CONNECT_TIMEOUT,
        metavar="SECONDS",
        help="how long a backend may take to be connected to, with its handshake if it has one "
        f"(default: {CONNECT_TIMEOUT:g})",
    )
    tls = parser.add_argument_group("TLS")
    kind = tls.add_mutually_exclusive_group()
    kind.add_argument(
        "--backend-tls",
        action="store_true",
        help="speak TLS to the backends, too; their certificates are verified",
    )
    kind.add_argument(
        "--originate",
        action="store_true",
        help="take plain connections, and speak TLS to the backends: for local clients that don't",
    )
    tls.add_argument(
        "--backend-ca",
        type=Path,
        metavar="FILE",
        help="the authorities of the backends' certificates (default: those of this machine)",
    )
    tls.add_argument(
        "--backend-name",
        type=parse_host,
        metavar="NAME",
        help="which the backends' certificates must have (default: the host of each)",
    )
    tls.add_argument(
        "--alpn",
        type=_protocols,
        default=(),
        metavar="NAME,...",
        help="protocols to agree to with clients, the preferred first, as 'h2,http/1.1'; a backend "
        "that speaks TLS is offered what was agreed to. With --originate: what backends are "
        "offered",
    )
    headers = parser.add_argument_group("the PROXY protocol of haproxy: who the client is")
    headers.add_argument(
        "--proxy-protocol",
        type=Version,
        choices=tuple(Version),
        metavar="{v1,v2}",
        help="tell the backends; v2 also tells of TLS, the name and the client's certificate",
    )
    headers.add_argument(
        "--accept-proxy-protocol",
        action="store_true",
        help="have it from a balancer in front, before TLS; nobody else may reach this port then",
    )
    add_options(parser, ProxyService)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Relay until a signal ends it.

    Raises:
      OSError: the proxy can't start.
    """
    if not (arguments.backend or arguments.route):
        raise StartError("nowhere to go: give --backend HOST:PORT or --route NAME=BACKEND")
    if arguments.originate:
        for name in _OF_TLS:
            if getattr(arguments, name):
                option = name.replace("_", "-")
                raise StartError(f"--{option} is for TLS, which clients don't speak: --originate")
    routes = Routes(arguments.backend, arguments.route)
    encryption = None
    if arguments.backend_tls or arguments.originate:
        encryption = Encryption(arguments.backend_ca, arguments.backend_name, routes.backends)
    elif arguments.backend_ca is not None or arguments.backend_name is not None:
        option = "--backend-ca" if arguments.backend_ca is not None else "--backend-name"
        raise StartError(f"{option} needs --backend-tls or --originate")
    options = Options(
        is_tls=not arguments.originate,
        encryption=encryption,
        alpn=arguments.alpn,
        accepts_header=arguments.accept_proxy_protocol,
        sends_header=arguments.proxy_protocol,
        connect_timeout=arguments.connect_timeout,
    )
    return run_server(arguments, ProxyService(options, routes))


def _protocols(text: str) -> tuple[str, ...]:
    protocols = tuple(text.split(","))
    if not all(
        name.isascii() and name.isprintable() and 1 <= len(name) < 256 for name in protocols
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of protocols, as 'h2,http/1.1'")
    return protocols
