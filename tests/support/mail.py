"""A real mail server, aiosmtpd, in a process of its own.

It says on its standard output which port it has, then of each connection: which messages it has
accepted, what lines it has received, and END.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = ["MailServer"]

PROJECT = Path(__file__).parents[2]


class MailServer:
    """The process, as the tests see it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lines = process.stdout
        self.port = int(self._lines.readline())

    @classmethod
    @contextmanager
    def running(cls, contexts: Contexts, *, begin: str = "tls") -> Iterator[MailServer]:
        """With TLS from the first byte, or with "starttls"."""
        files = map(str, (contexts.certificate, contexts.key))
        command = [sys.executable, "-m", __name__, *files, begin]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
            try:
                yield cls(process)
            finally:
                process.terminate()

    def seen(self) -> list[str]:
        """What it said of one connection, after its end."""
        seen = []
        for line in self._lines:
            seen.append(line.removesuffix("\n"))
            if "END" in line:  # behind half a line, or with an error
                return seen
        raise AssertionError("the mail server has ended")


async def serve(certificate: str, key: str, begin: str) -> None:
    from aiosmtpd.smtp import SMTP

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            print(f"accepted {envelope.content!r}")
            return "250 OK"

    class Connection(SMTP):
        """Notes what comes: once the client has gone, aiosmtpd looks at no more commands."""

        received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            super().data_received(data)

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            print(self.received.decode().replace("\r\n", "\n"), end="")
            print("END" if error is None else f"END {error!r}", flush=True)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    at_first, later = (context, None) if begin == "tls" else (None, context)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(Handler(), hostname="localhost", tls_context=later),
        "127.0.0.1",
        0,
        ssl=at_first,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
