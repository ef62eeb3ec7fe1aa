"""``ringtls asgi``: an ASGI or WSGI application over HTTP/1.1, HTTP/2 and WebSocket."""

from __future__ import annotations

import argparse

from ..server import Service, StartError, add_options, run_server

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Name the arguments of this command."""
    parser = subparsers.add_parser(
        "asgi",
        help="serve an ASGI or WSGI application over HTTPS",
        description="Serve an ASGI or WSGI application over HTTPS: HTTP/1.1, HTTP/2, WebSocket.",
    )
    parser.add_argument(
        "application",
        type=_application,
        metavar="MODULE:NAME",
        help="where the application is, as 'main:app'; modules are looked for in the current "
        "directory, too",
    )
    add_options(parser, Service)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
      OSError: the server can't start.
    """
    try:
        from .service import ApplicationService
    except ModuleNotFoundError as error:
        if error.name != "hypercorn":
            raise
        text = "asgi needs hypercorn, which is not installed: pip install 'ringtls[asgi]'"
        raise StartError(text) from error
    return run_server(arguments, ApplicationService(*arguments.application))


def _application(text: str) -> tuple[str, str]:
    module, _, name = text.partition(":")
    if not module or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:NAME")
    return module, name
