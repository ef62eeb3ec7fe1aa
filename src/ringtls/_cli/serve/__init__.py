"""``ringtls serve``: the files of a directory over HTTPS/1.1."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..server import add_options, run_server
from .connection import Files

__all__ = ["add_parser", "run"]


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
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
      OSError: the server can't start.
    """
    return run_server(arguments, Files(arguments.directory))
