"""The README's server and client, run as they stand there but for the port."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .conftest import Contexts

README = Path(__file__).parent.parent / "README.md"


def example(name: str, port: int) -> str:
    found = re.search(rf"```python\n(# {name}\n.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1].replace("8443", str(port))


def test_server_and_clients(contexts: Contexts, tmp_path: Path) -> None:
    for source, name in (
        (contexts.ca, "ca.pem"),
        (contexts.certificate, "certificate.pem"),
        (contexts.key, "key.pem"),
    ):
        shutil.copy(source, tmp_path / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", example("server.py", port)], cwd=tmp_path)
    try:
        wait_until_it_listens(port)
        outputs = [
            subprocess.run(
                [sys.executable, "-c", example(client, port)],
                cwd=tmp_path,
                capture_output=True,
                timeout=30,
                check=True,
            ).stdout.decode()
            for client in ("client.py", "blocking_client.py")
        ]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    assert outputs == ["b'hello'\nCloseOutcome.CLEAN\n"] * 2


def wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("localhost", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
