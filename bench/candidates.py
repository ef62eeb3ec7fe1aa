"""What is measured, and what it needs to be there."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass

__all__ = ["CANDIDATES", "Candidate"]


@dataclass(frozen=True)
class Candidate:
    """A kind of server.

    Attributes:
      name: the program's, a module of bench.servers.
      package, program: a Python package or a program that it needs, if any.
      note: what is not as with the others.
      serves_files: has the works with files.
      has_handler: has the works of a handler.
    """

    name: str
    title: str
    package: str = ""
    program: str = ""
    note: str = ""
    serves_files: bool = False
    has_handler: bool = True

    def missing(self) -> str:
        """What is missing and how to install it, or nothing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install {self.package}"
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not installed: sudo apt-get install nginx-light"
        return ""


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
        serves_files=True,
    ),
    Candidate("ringtls_serve", "ringtls serve", serves_files=True, has_handler=False),
)
