"""What a newcomer does after docs/frameworks.md, as that says it, with a home of its own.

python tests/newcomer.py ASGI HTTPX ANYIO

The arguments are virtual environments, each with ringtls and the extra of that name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["do_what_the_page_says"]

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"welcome"})
"""

#: As the docstring of ringtls.anyio has it.
ANYIO_PROGRAM = """
import anyio, ringtls.anyio

async def main():
    async with await ringtls.anyio.connect_tcp("localhost", PORT, tls=True) as stream:
        await stream.send(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        async for piece in stream:
            print(piece.decode())

anyio.run(main, backend="trio")
"""


def _blocks() -> list[str]:
    """The page's programs and commands: what is indented."""
    found = re.findall(r"(?m)(?:^(?:    .*)?\n)+", PAGE.read_text())
    return [re.sub(r"(?m)^    ", "", block).strip() for block in found if block.strip()]


def do_what_the_page_says(asgi: Path, httpx: Path, anyio: Path) -> None:
    """Serve an application by one command, and ask it by httpx and by anyio's streams."""
    (command,) = (block for block in _blocks() if block.startswith("ringtls asgi "))
    (program,) = (block for block in _blocks() if block.startswith("import httpx"))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "main.py").write_text(APPLICATION)
        own = {"HOME": directory, "XDG_CACHE_HOME": ""}
        path = f"{asgi / 'bin'}:{os.environ['PATH']}"
        server = subprocess.Popen(
            [*command.split(), "--bind", "127.0.0.1:0"],
            env={**os.environ, **own, "PATH": path},
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            _, _, _, ca, url = server.stdout.readline().split()  # Try: curl --cacert CA URL
            assert Path(ca).is_relative_to(directory), ca
            own["SSL_CERT_FILE"] = ca
            port = url.strip("/").rpartition(":")[2]
            for environment, source in (
                (httpx, program.replace("https://www.example.org", url)),
                (anyio, ANYIO_PROGRAM.replace("PORT", port)),
            ):
                shown = subprocess.run(
                    [environment / "bin" / "python", "-c", source],
                    env={**os.environ, **own},
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert "welcome" in shown.stdout, shown
        finally:
            server.terminate()
            server.communicate()
        assert server.returncode == 0


if __name__ == "__main__":
    do_what_the_page_says(*map(Path, sys.argv[1:]))
    print("what docs/frameworks.md says works")
