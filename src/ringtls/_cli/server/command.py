"""What runs a server of the command line.

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
from .credentials import Bundle, Credentials, names_in
from .figures import Figures
from .listening import Address, Local, open_sockets, take_inherited
from .metrics import Metrics
from .notify import notify
from .options import DEFAULT_ADDRESS, client_certificates_of, files_of, limits_of
from .reloading import Reloader
from .service import Service
from .serving import Orders, Server, own_signals, serve
from .supervisor import supervise
from .workers import PassedSignals

__all__ = ["run_server"]

#: New objects until the garbage collector looks for cycles among them. A connection makes some
#: hundred, and leaves none; with Python's 700 the collector takes 5 % of a busy proxy's time.
GARBAGE_THRESHOLD = 20_000


def run_server(arguments: argparse.Namespace, service: Service) -> int:
    """Serve until a signal ends it; the exit status.

    Raises:
      OSError: the server can't start.
    """
    _complete_standard_files()
    files = files_of(arguments, service)
    client_certificates = client_certificates_of(arguments)
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
            limits_of(arguments, service),
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
        binds = arguments.bind or [DEFAULT_ADDRESS]
        observed = [] if arguments.metrics is None else [arguments.metrics]
        inherited = take_inherited([*binds, *observed], stack)
        observation = None
        if observed:
            from .observation import Observation  # it imports much

            [observing] = open_sockets(observed, inherited, 1, stack)
            observation = Observation(observing, metrics, figures)
        shares = open_sockets(binds, inherited, arguments.workers or 1, stack)
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
