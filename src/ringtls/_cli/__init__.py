"""The command ``ringtls``: servers, a proxy, a demonstration, and a look at this machine.

Each module here that is a command has ``add_parser(subparsers)``, which names its arguments,
and ``run(arguments)``, which returns the exit status.

Commands start often, and most of that is imports. So a command is imported when it is asked for,
and a library that only one option needs when that option is given.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from .._engine.availability import EXTENSION
from .._engine.choice import forced
from .leaves import leaves

__all__ = ["main"]

#: Modules of this package, and the extra with which each is installed.
COMMANDS = {"serve": "server", "proxy": "server", "asgi": "asgi", "demo": "server", "doctor": None}

#: What ``ringtls[server]`` installs, and the others that are named above.
EXTRA = ("cryptography", "httptools", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    It ends by SIGINT (``__main__``) after a KeyboardInterrupt. A reader of what is printed that
    has gone away, as head(1) does, knows that, and is told nothing.
    """
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit:
            _flush()
            raise
        _flush()
    except (OSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        failures = leaves(error)
        if all(isinstance(failure, KeyboardInterrupt) for failure in failures):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _flush_or_discard()
            signal.raise_signal(signal.SIGINT)
        if not all(isinstance(failure, OSError) for failure in failures):
            raise
        told = [failure for failure in failures if not isinstance(failure, BrokenPipeError)]
        for text in dict.fromkeys(map(str, told)):
            print(f"ringtls: {text}", file=sys.stderr)
        _flush_or_discard()
        return 1
    return status


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ringtls", description="TLS that always ends with close_notify, on io_uring or epoll."
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    named = argv[:1] if argv and argv[0] in COMMANDS else [*COMMANDS]  # importing all takes a while
    missing = next((name for name in EXTRA if importlib.util.find_spec(name) is None), None)
    for command in named:
        extra = COMMANDS[command]
        if missing is None or extra is None:
            try:
                module = importlib.import_module(f".{command}", __package__)
            except ImportError as error:
                if error.name != EXTENSION:
                    raise
                print(f"ringtls: {error}", file=sys.stderr)
                return 1
            module.add_parser(subparsers)
            continue
        installation = f"pip install 'ringtls[{extra}]'"
        subparsers.add_parser(command, help=f"needs {missing}: {installation}")
        if argv[:1] == [command]:
            text = f"{command} needs {missing}, which is not installed: {installation}"
            print(f"ringtls: {text}", file=sys.stderr)
            return 1
    arguments = parser.parse_args(argv)
    if argv[:1] != ["doctor"]:  # it tells this among all else
        try:
            forced()
        except ValueError as error:
            print(f"ringtls: {error}", file=sys.stderr)
            return 2
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # the imports are over
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status: int = arguments.run(arguments)
    return status


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _flush_or_discard() -> None:
    """What can't be written would fail at the exit, too."""
    try:
        _flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _Version(argparse.Action):
    """``--version``. The installation is asked only then, as that imports much."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        text = "show program's version number and exit"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import __version__

        print(f"ringtls {__version__}")
        parser.exit()
