"""The part of a command line that all servers share, and what runs them.

Without ``--workers`` this process serves (``serving``); with it, it supervises those that do
(``supervisor``).
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import os
import resource
import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path

import trio

from . import logs
from .connections import Limits
from .credentials import Bundle, ClientCertificates, Credentials, Files, names_in
from .errors import StartError
from .figures import Figures
from .handling import Service
from .listening import Address, Local, open_sockets, parse_bind
from .metrics import Metrics
from .notify import notify
from .reloading import Reloader
from .serving import Orders, Server, own_signals, serve
from .supervisor import supervise
from .workers import PassedSignals

__all__ = ["add_options", "run_server", "seconds"]

DEFAULT_ADDRESS = Address("127.0.0.1", 8443)

#: Of the descriptors that there may be, so much is for connections if nobody says otherwise.
CONNECTIONS_SHARE = 3 / 4

#: New objects until the garbage collector looks for cycles among them. A connection makes some
#: hundred, and leaves none; with Python's 700 the collector takes 5 % of a busy proxy's time.
GARBAGE_THRESHOLD = 20_000


def seconds(text: str) -> float:
    """The type of an argument: a length of time."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes nor 'auto'")
    return int(text)


def add_options(parser: argparse.ArgumentParser, service: type[Service]) -> None:
    """Name the arguments that ``run_server`` knows, as far as this kind of service has them."""
    listening = parser.add_argument_group("where and how to listen")
    listening.add_argument(
        "--bind",
        type=parse_bind,
        action="append",
        metavar="HOST:PORT",
        help="where to listen; may be given several times, [HOST]:PORT for IPv6, port 0 for any "
        "that is free, unix:PATH for a local socket, fd://NUMBER for a listening socket that is "
        f"inherited, as from systemd (default: {DEFAULT_ADDRESS})",
    )
    listening.add_argument(
        "--workers",
        type=_workers,
        metavar="NUMBER",
        help="serve in this many processes, which are started again if they crash; 'auto' for one "
        "for each CPU (default: serve in this process alone)",
    )
    listening.add_argument(
        "--graceful-timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help=f"how long {service.serves}s may go on after SIGINT or SIGTERM (default: 10)",
    )
    certificates = parser.add_argument_group("certificates, loaded anew at SIGHUP")
    certificates.add_argument(
        "--certfile",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="certificate chain in PEM form; with several, the client's SNI decides, and the first "
        "is for those that name no other (default: a development certificate, made when needed)",
    )
    certificates.add_argument(
        "--keyfile",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="private key in PEM form, one for each --certfile in the same order (default: in the "
        "file of the certificate)",
    )
    certificates.add_argument(
        "--cert-dir",
        type=Path,
        metavar="DIR",
        help="more certificates: NAME.pem or NAME.crt, with the key inside or in NAME.key, and "
        "directories as certbot (fullchain.pem, privkey.pem) and Kubernetes (tls.crt, tls.key) "
        "have them",
    )
    certificates.add_argument(
        "--client-ca",
        type=Path,
        metavar="FILE",
        help="ask clients for a certificate that one of these authorities has signed",
    )
    certificates.add_argument(
        "--client-cert",
        choices=("optional", "required"),
        help="with --client-ca: whether a client must have one (default: required); with optional, "
        "those without are served, too",
    )
    certificates.add_argument(
        "--client-crl", type=Path, metavar="FILE", help="certificates of clients that are revoked"
    )
    certificates.add_argument(
        "--client-allow",
        action="append",
        default=[],
        metavar="NAME",
        help="of clients with a certificate, serve only those with this subject (CN=...,O=..., "
        "escaped as RFC 4514 has it), common name or alternative name; may be given several times",
    )
    limits = parser.add_argument_group("limits for clients")
    limits.add_argument(
        "--max-connections",
        type=_positive,
        metavar="NUMBER",
        help="for each worker; beyond it those give way that have waited longest for their client "
        "(default: as many as take three quarters of the descriptors that there may be)",
    )
    for timeout in dict.fromkeys(service.timeouts.values()):
        limits.add_argument(
            timeout.option,
            type=seconds,
            default=timeout.seconds,
            metavar="SECONDS",
            help=f"{timeout.help} (default: {timeout.seconds:g})",
        )
    watching = parser.add_argument_group("watching it")
    watching.add_argument(
        "--metrics",
        type=parse_bind,
        metavar="HOST:PORT",
        help="serve /metrics, for Prometheus, and /healthz there, over plain HTTP; as for --bind",
    )
    watching.add_argument(
        "--access-log",
        action="store_true",
        help=f"write a line for each {service.serves} to stdout",
    )
    watching.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="of all logs (default: text)"
    )
    watching.add_argument(
        "--check",
        action="store_true",
        help="see whether options and certificates are good, and exit",
    )


def run_server(arguments: argparse.Namespace, service: Service) -> int:
    """Serve until a signal ends it; the exit status.

    Raises:
      OSError: the server can't start.
    """
    _complete_standard_files()
    files = _files(arguments, service)
    client_certificates = _client_certificates(arguments)
    bundle = files.read()
    credentials = Credentials(
        bundle, service.alpn, client_certificates, service.refuse, service.load
    )
    if arguments.check:
        service.prepare()
        _tell_of(bundle)
        return 0
    metrics = Metrics()
    ciphers = [cipher["name"] for cipher in credentials.context.get_ciphers()]
    figures = Figures(metrics, ciphers)
    service.add_metrics(metrics)

    def serve_here(
        sockets: list[socket.socket],
        orders: AbstractContextManager[Orders],
        on_ready: Callable[[], object],
    ) -> None:
        server = Server(
            service,
            credentials,
            reloader,
            _limits(arguments, service),
            arguments.graceful_timeout,
            figures,
            frozenset(arguments.client_allow),
            observation,
        )
        gc.freeze()  # what there is by now stays
        gc.set_threshold(GARBAGE_THRESHOLD)
        trio.run(serve, server, sockets, orders, on_ready)

    def work(
        number: int,
        sockets: list[socket.socket],
        signals: PassedSignals,
        on_ready: Callable[[], object],
    ) -> None:
        _set_up_logging(arguments, f"worker {number}")
        os.environ.pop("NOTIFY_SOCKET", None)  # the supervisor speaks for all
        metrics.begin(number - 1)
        serve_here(sockets, nullcontext(signals), on_ready)

    reloader = Reloader(files, credentials)
    metrics.share(arguments.workers or 1)
    with ExitStack() as stack:
        # The inherited first; see listening.
        observation = None
        if arguments.metrics is not None:
            from .observation import Observation  # it imports much

            [observing] = open_sockets([arguments.metrics], 1, stack)
            observation = Observation(observing, metrics, figures)
        shares = open_sockets(arguments.bind or [DEFAULT_ADDRESS], arguments.workers or 1, stack)
        # From here on descriptors are taken that might have been meant to be inherited.
        _raise_file_limit()
        service.prepare()
        _set_up_logging(arguments)
        announce = partial(
            _announce,
            service.scheme,
            [_bound_to(sock) for sock in shares[0]],
            [_bound_to(sock) for sock in observation.sockets] if observation else [],
            credentials.development_ca,
        )
        if arguments.workers is not None:
            timeout = arguments.graceful_timeout
            return supervise(shares, work, reloader, timeout, announce)
        serve_here(shares[0], own_signals(), announce)
    return 0


def _tell_of(bundle: Bundle) -> None:
    """What ``--check`` says of a configuration with which the server would start."""
    from .dates import out_of_date  # it imports much

    names = f" Certificates for: {', '.join(names_in(bundle))}" if bundle.pairs else ""
    warnings = out_of_date(bundle)
    for warning in warnings:
        print(f"ringtls: {warning}", file=sys.stderr)
    print(f"The configuration {'would be served all the same' if warnings else 'is good'}.{names}")


# Starting


def _complete_standard_files() -> None:
    """Open those that are missing: what is opened next would take their numbers, and be sent what
    is meant for them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= logs.STDERR:
        pass
    os.close(descriptor)


def _files(arguments: argparse.Namespace, service: Service) -> Files:
    certificates, keys = arguments.certfile, arguments.keyfile
    if keys and not certificates:
        raise StartError("--keyfile needs --certfile")
    if keys and len(keys) != len(certificates):
        raise StartError("give as many --keyfile as --certfile, or none")
    for name in ("client_cert", "client_crl", "client_allow"):
        if getattr(arguments, name) and arguments.client_ca is None:
            raise StartError(f"--{name.replace('_', '-')} needs --client-ca")
    return Files(
        list(zip(certificates, keys or [None] * len(certificates), strict=True)),
        arguments.cert_dir,
        arguments.client_ca,
        arguments.client_crl,
        are_needed=service.is_tls,
        others=service.files,
    )


def _client_certificates(arguments: argparse.Namespace) -> ClientCertificates:
    if arguments.client_ca is None:
        return ClientCertificates.NONE
    return ClientCertificates[(arguments.client_cert or "required").upper()]


def _limits(arguments: argparse.Namespace, service: Service) -> Limits:
    timeouts = {
        wait: getattr(arguments, timeout.option.removeprefix("--").replace("-", "_"))
        for wait, timeout in service.timeouts.items()
    }
    connections = arguments.max_connections
    if connections is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = int(descriptors * CONNECTIONS_SHARE / service.descriptors)
    return Limits(timeouts, connections)


def _set_up_logging(arguments: argparse.Namespace, worker: str = "") -> None:
    logs.set_up(arguments.log_format, worker)
    logging.getLogger("ringtls.server").setLevel(logging.INFO)
    if arguments.access_log:
        logs.access_logger.setLevel(logging.INFO)


def _raise_file_limit() -> None:
    """Have as many descriptors as this process may take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # more than fs.nr_open, once it was lowered
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bound_to(sock: socket.socket) -> Address | Local:
    name = sock.getsockname()
    if isinstance(name, tuple):
        return Address(*name[:2])
    return Local(os.fsdecode(name).replace("\0", "@"))


def _announce(
    scheme: str, places: list[Address | Local], observed: list[Address | Local], ca: Path | None
) -> None:
    lines = []
    for place in sorted(places, key=lambda place: isinstance(place, Local)):
        at = f"{scheme}://{place}" if isinstance(place, Address) else place
        lines.append(f"Running on {at} (CTRL + C to quit)")
    for place in observed:
        at = f"http://{place}/metrics" if isinstance(place, Address) else place
        lines.append(f"Metrics on {at}")
    addresses = [place for place in places if isinstance(place, Address)]
    if ca is not None and addresses:
        ip = ipaddress.ip_address(addresses[0].host)
        host = "localhost" if ip.is_loopback or ip.is_unspecified else socket.gethostname()
        url = f"https://{host}:{addresses[0].port}/"
        lines.append(f"Try: curl --cacert {shlex.quote(str(ca))} {url}")
    logs.say(lines)
    notify("READY=1")
