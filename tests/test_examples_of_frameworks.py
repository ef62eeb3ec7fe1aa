"""examples/, as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from ringtls.httpcore import transport

from .conftest import Contexts, contexts_of
from .support.server import Server
from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent


def test_a_client_and_an_application(contexts: Contexts, tmp_path: Path) -> None:
    subcommand = ["asgi", "examples.asgi_app:app"]
    server = Server(contexts, ROOT, tmp_path / "log", subcommand=subcommand, cwd=ROOT)
    try:
        shown = subprocess.run(
            [sys.executable, "examples/https_client.py", f"https://localhost:{server.port}"],
            env={**os.environ, "SSL_CERT_FILE": str(contexts.ca)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=ROOT,
        )
        assert shown.stdout == "HTTP/2 200\nhello, stranger\n", shown.stderr
        assert server.stop() == 0
    finally:
        server.end()


async def test_a_proxy(contexts: Contexts, tmp_path: Path) -> None:
    subcommand = ["asgi", "examples.asgi_app:app"]
    server = Server(contexts, ROOT, tmp_path / "log", subcommand=subcommand, cwd=ROOT)
    files = [str(contexts.certificate), str(contexts.key)]
    command = [sys.executable, "examples/connect_proxy.py", "0", *files]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        client = contexts_of(contexts.ca, contexts.certificate, contexts.key).client
        proxy = httpx.Proxy(url, ssl_context=contexts.client)
        async with httpx.AsyncClient(transport=transport(verify=client, proxy=proxy)) as session:
            response = await session.get(f"https://localhost:{server.port}", timeout=LIMIT)
            assert response.text == "hello, stranger"
        assert f"localhost:{server.port} RelayOutcome" in process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        server.end()
