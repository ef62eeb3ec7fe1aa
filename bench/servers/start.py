"""What the servers in Python have in common: their arguments, context and first words."""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path

from ringtls._cli.certificates import server_context

from ..counters import Counters

__all__ = ["BACKLOG", "HOST", "Arguments", "Setup", "announce", "parse_arguments", "set_up"]

HOST = "127.0.0.1"
BACKLOG = 4096


@dataclass(frozen=True)
class Arguments:
    """What the harness tells a server.

    Attributes:
      directory: for files of the server's own. The harness removes it.
      certificate, key: PEM files.
      tickets: how many session tickets a client gets.
      terminator: which one to become, if any: with the port of what is behind it, and the engine
        of ringtls that is to be used ("": no matter which).
    """

    directory: Path
    certificate: Path
    key: Path
    tickets: int
    terminator: str
    backend_port: int
    engine: str


@dataclass(frozen=True)
class Setup:
    context: ssl.SSLContext
    counters: Counters


def parse_arguments() -> Arguments:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("certificate", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("tickets", type=int)
    parser.add_argument("terminator", nargs="?", default="")
    parser.add_argument("backend_port", type=int, nargs="?", default=0)
    parser.add_argument("engine", nargs="?", default="")
    return Arguments(**vars(parser.parse_args()))


def set_up() -> Setup:
    """Do as the command line says."""
    arguments = parse_arguments()
    context = server_context(arguments.certificate, arguments.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = arguments.tickets
    return Setup(context, Counters(arguments.directory / "counters"))


def announce(*ports: int) -> None:
    """Tell the harness that connections to these ports are accepted."""
    print("ready", *ports, flush=True)
