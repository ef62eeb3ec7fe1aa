"""The command ``ringtls``: servers, a proxy, a demonstration, and a look at this machine.

Each module here that is a command has ``add_parser(subparsers)``, which names its arguments,
and ``run(arguments)``, which returns the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from .._engine.choice import forced

__all__ = ["main"]

#: Modules of this package.
COMMANDS = ("serve", "proxy", "asgi", "demo", "doctor")

#: What ``ringtls[server]`` installs; not all commands need it.
EXTRA = {"cryptography", "httptools", "prometheus_client"}

INSTALLATION = "pip install 'ringtls[server]'"

#: The exit status of a program that SIGINT ended, as shells give it.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ringtls", description="TLS that always ends with close_notify, on io_uring or epoll."
    )
    parser.add_argument("--version", action="version", version=f"ringtls {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    if argv is None:
        argv = sys.argv[1:]
    named = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS  # importing all takes a while
    for command in named:
        try:
            importlib.import_module(f".{command}", __package__).add_parser(subparsers)
        except ModuleNotFoundError as error:
            if error.name not in EXTRA:
                raise
            subparsers.add_parser(command, help=f"needs {error.name}: {INSTALLATION}")
            if argv[:1] == [command]:
                text = f"{command} needs {error.name}, which is not installed: {INSTALLATION}"
                print(f"ringtls: {text}", file=sys.stderr)
                return 1
    arguments = parser.parse_args(argv)
    try:
        forced()
    except ValueError as error:
        print(f"ringtls: {error}", file=sys.stderr)
        return 2
    try:
        status: int = arguments.run(arguments)
    except OSError as error:
        print(f"ringtls: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return INTERRUPTED
    return status
