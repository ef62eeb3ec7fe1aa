"""Servers that others wrote, in processes of their own, with the application of the tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = ["hypercorn", "uvicorn"]

APPLICATION = "tests.support.application:application"


ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def _running(sock: socket.socket, log: Path, *arguments: str) -> Iterator[Any]:
    """A server that inherits a listening socket, whose address is the value.

    Clients may connect at once; if it fails they are refused.
    """
    command = [sys.executable, "-W", "ignore", *arguments]
    with sock, log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, pass_fds=[sock.fileno()], cwd=ROOT
        )
        address = sock.getsockname()
    try:
        yield address
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def uvicorn(
    contexts: Contexts, log: Path, *, path: str = "", plain: bool = False, **options: Any
) -> Iterator[int]:
    """uvicorn, on asyncio, at a port or a path. The value is its port."""
    sock = _listening(path)
    options |= {"fd": sock.fileno(), "loop": "asyncio", "log_level": "warning"}
    if not plain:
        options |= {"ssl_certfile": str(contexts.certificate), "ssl_keyfile": str(contexts.key)}
    code = f"import uvicorn; uvicorn.run({APPLICATION!r}, **{options!r})"
    with _running(sock, log, "-c", code) as address:
        yield 0 if path else address[1]


@contextlib.contextmanager
def hypercorn(contexts: Contexts, log: Path) -> Iterator[int]:
    """hypercorn, on trio, with HTTP/2. The value is its port."""
    sock = _listening()
    options = ["--bind", f"fd://{sock.fileno()}", "--worker-class", "trio", "--workers", "0"]
    options += ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
    with _running(sock, log, "-m", "hypercorn", *options, APPLICATION) as address:
        yield address[1]


def _listening(path: str = "") -> socket.socket:
    if not path:
        return socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock
