"""examples/, as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .conftest import Contexts
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
