"""A running ``ringtls proxy``, and backends for it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..conftest import Contexts
from .server import PATIENCE, Command

__all__ = ["Backend", "Proxy", "StartProxy", "starting_proxies"]


class Backend:
    """A plain listener, at an address or at a path, whose connections the test has."""

    def __init__(
        self, path: Path | None = None, address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        if path is None:
            self.listener = socket.create_server(address, backlog=128)
            self.name = "{}:{}".format(*self.listener.getsockname())
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(path))
            self.listener.listen()
            self.name = f"unix:{path}"
        self.listener.settimeout(PATIENCE)

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE)
        return sock

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.listener.close()


class Proxy(Command):
    """``ringtls proxy``."""

    def __init__(
        self,
        contexts: Contexts,
        log: Path,
        *arguments: str,
        certificates: bool = True,
        **options: Any,
    ) -> None:
        files = ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
        words = [*(files if certificates else ()), *arguments]
        super().__init__(contexts, log, "proxy", *words, **options)


StartProxy = Callable[..., Proxy]


@contextlib.contextmanager
def starting_proxies(contexts: Contexts, log_directory: Path) -> Iterator[StartProxy]:
    """A function that starts proxies, which all end with the context."""
    proxies: list[Proxy] = []

    def start(*arguments: str, **options: Any) -> Proxy:
        log = log_directory / f"stderr-{len(proxies)}"
        proxies.append(Proxy(contexts, log, *arguments, **options))
        return proxies[-1]

    try:
        yield start
    finally:
        for proxy in proxies:
            proxy.end()
