"""What is measured, and what it needs to be there."""

from __future__ import annotations

import enum
import importlib.util
import shutil
from dataclasses import dataclass

from ringtls._cli.demo.proxy.terminators import TERMINATORS, Terminator

__all__ = ["CANDIDATES", "Candidate", "Kind"]


class Kind(enum.Enum):
    """What a work asks of a candidate."""

    HANDLER = enum.auto()
    """To answer requests with the handler that all have."""
    FILES = enum.auto()
    """To answer them with files."""
    RELAY = enum.auto()
    """To have a server behind it answer them: a TLS terminator."""


@dataclass(frozen=True)
class Candidate:
    """A kind of server.

    Attributes:
      name: the program's, a module of bench.servers; that of a terminator is always the same.
      package, program: a Python package or a program that it needs, if any; a terminator has nginx
        behind it.
      note: what is not as with the others.
      kinds: those of the works that it has.
      terminator: what it is, if it is one.
      engine: the engine of ringtls that it is to use, if it has a choice.
    """

    name: str
    title: str
    package: str = ""
    program: str = ""
    note: str = ""
    kinds: frozenset[Kind] = frozenset((Kind.HANDLER,))
    terminator: Terminator | None = None
    engine: str = ""

    def missing(self) -> str:
        """What is missing and how to install it, or nothing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install {self.package}"
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not installed: sudo apt-get install nginx-light"
        if self.terminator is not None and not self.terminator.is_installed:
            package = self.terminator.package
            return f"{package} is not installed: sudo apt-get install {package}"
        return ""


_BY_NAME = {terminator.name: terminator for terminator in TERMINATORS}


def _terminator(name: str, title: str, *, engine: str = "") -> Candidate:
    relays = frozenset((Kind.RELAY,))
    terminator = _BY_NAME[title.partition(" (")[0]]
    return Candidate(
        name, title, program="nginx", kinds=relays, terminator=terminator, engine=engine
    )


CANDIDATES = (
    Candidate("ringtls", "ringtls"),
    Candidate("ringtls_epoll", "ringtls (epoll)"),
    Candidate("trio", "trio.SSLStream"),
    Candidate("asyncio_streams", "asyncio streams"),
    Candidate("uvloop_streams", "uvloop streams", package="uvloop"),
    Candidate("uvloop_protocol", "uvloop protocol", package="uvloop"),
    Candidate(
        "nginx",
        "nginx",
        program="nginx",
        note="nginx sends a download from a file in the page cache, the others from memory. It "
        "answers an upload before it has read it, and then reads it and throws it away.",
        kinds=frozenset((Kind.HANDLER, Kind.FILES)),
    ),
    Candidate("ringtls_serve", "ringtls serve", kinds=frozenset((Kind.FILES,))),
    _terminator("ringtls_proxy", "ringtls proxy", engine="io_uring"),
    _terminator("ringtls_proxy_epoll", "ringtls proxy (epoll)", engine="epoll"),
    _terminator("hitch", "hitch"),
    _terminator("haproxy", "haproxy"),
    _terminator("stunnel", "stunnel"),
    _terminator("nginx_stream", "nginx (stream)"),
)
