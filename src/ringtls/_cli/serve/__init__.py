"""``ringtls serve``: the files of a directory over HTTPS/1.1."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..server import add_options, run_server
from .connection import FileService
from .files import Policy

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
    parser.add_argument(
        "--no-listing",
        action="store_true",
        help="do not list directories that have no index.html (default: list them)",
    )
    parser.add_argument(
        "--hidden",
        action="store_true",
        help="serve names that begin with a dot (default: none but .well-known)",
    )
    parser.add_argument(
        "--precompressed",
        action="store_true",
        help="send NAME.br or NAME.gz, where it is beside a file, to clients that understand it",
    )
    parser.add_argument(
        "--spa",
        action="store_true",
        help="answer with /index.html what leads to no file, as a single-page application wants it",
    )
    parser.add_argument(
        "--cache-control",
        type=_field_value,
        default="",
        metavar="VALUE",
        help="the Cache-Control of all files, as 'max-age=3600'",
    )
    add_options(parser, FileService)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
      OSError: the server can't start.
    """
    policy = Policy(
        hidden=arguments.hidden,
        listing=not arguments.no_listing,
        precompressed=arguments.precompressed,
        spa=arguments.spa,
        cache_control=arguments.cache_control,
    )
    return run_server(arguments, FileService(arguments.directory, policy))


def _field_value(text: str) -> str:
    if not (text.isascii() and text.isprintable() and text == text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} can't be the value of a header")
    return text
