"""The options that all servers share, and what they say."""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path

from . import logs
from .connections import Limits
from .credentials import ClientCertificates, Files
from .errors import StartError
from .listening import Address, parse_bind
from .service import Service

__all__ = [
    "DEFAULT_ADDRESS",
    "add_options",
    "client_certificates_of",
    "files_of",
    "limits_of",
    "seconds",
]

DEFAULT_ADDRESS = Address("127.0.0.1", 8443)

#: Of the descriptors that there may be, so much is for connections if nobody says otherwise.
CONNECTIONS_SHARE = 3 / 4


def seconds(text: str) -> float:
    """The type of an argument: a length of time."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _positive(text: str) -> int:
    if not _is_positive(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0))
    if not _is_positive(text):
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


# What they say


def files_of(arguments: argparse.Namespace, service: Service) -> Files:
    """What files the server reads.

    Raises:
      StartError: options that do not fit together.
    """
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


def client_certificates_of(arguments: argparse.Namespace) -> ClientCertificates:
    """Whether clients are asked for a certificate."""
    if arguments.client_ca is None:
        return ClientCertificates.NONE
    return ClientCertificates[(arguments.client_cert or "required").upper()]


def limits_of(arguments: argparse.Namespace, service: Service) -> Limits:
    """What peers may take, with as many descriptors as there may be now."""
    timeouts = {
        wait: getattr(arguments, timeout.option.removeprefix("--").replace("-", "_"))
        for wait, timeout in service.timeouts.items()
    }
    connections = arguments.max_connections
    if connections is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = int(descriptors * CONNECTIONS_SHARE / service.descriptors)
    return Limits(timeouts, connections)
