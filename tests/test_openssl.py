"""openssl's own programs as peers: how they see our ends, and what they can do during one."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TlsStream, open_tls_over_tcp_listeners, open_tls_over_tcp_stream

from .conftest import Contexts

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

CLOSE_NOTIFY = rb"SSL3 alert read:warning:close notify"


@contextmanager
def openssl(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of openssl's programs, its input open and its output in one pipe."""
    with subprocess.Popen(
        ["openssl", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def output_of(process: subprocess.Popen[bytes]) -> bytes:
    """All it prints until it ends by itself. (At the end of its input it would end too early.)"""
    assert process.stdout is not None
    with trio.fail_after(20):
        return await in_thread(process.stdout.read, abandon_on_cancel=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def s_server(contexts: Contexts, port: int, *more: str) -> list[str]:
    files = ["-cert", str(contexts.certificate), "-key", str(contexts.key)]
    return ["s_server", "-accept", str(port), "-naccept", "1", "-state", *files, *more]


async def connect(port: int, contexts: Contexts) -> TlsStream:
    """Connect to a server that is starting."""
    with trio.fail_after(20):
        while True:
            try:
                return await open_tls_over_tcp_stream(
                    "localhost", port, ssl_context=contexts.client
                )
            except OSError:
                await trio.sleep(0.05)


async def test_c1_s_server(versioned_contexts: Contexts) -> None:
    port = free_port()
    with openssl(*s_server(versioned_contexts, port)) as server:
        async with await connect(port, versioned_contexts) as stream:
            await stream.send_all(b"hello, openssl\n")
        output = await output_of(server)
    assert b"hello, openssl" in output
    assert re.search(CLOSE_NOTIFY, output)


@pytest.mark.parametrize("command", [b"", b"K\n", b"k\n"], ids=["plain", "update both", "update"])
async def test_c1_s_client(contexts: Contexts, command: bytes) -> None:
    """K and k are key updates: the close comes with one of them just received."""
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    port = listener.transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
    with openssl("s_client", "-connect", f"127.0.0.1:{port}", "-state") as client:
        assert client.stdin is not None
        async with await listener.accept() as stream:
            await stream.do_handshake()
            for line in filter(None, (command, b"hello, ringtls\n")):
                client.stdin.write(line)
                client.stdin.flush()
                await trio.sleep(0.2)  # a command is one that comes alone
            received = b""
            while b"ringtls" not in received:
                received += await stream.receive_some()
            await stream.send_all(b"hello, openssl\n")
        output = await output_of(client)
    await listener.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert b"hello, openssl" in output
    assert re.search(CLOSE_NOTIFY, output)


async def test_c1_a_renegotiation_that_does_not_end(contexts: Contexts) -> None:
    """OpenSSL sends no close_notify during a handshake: the end is a reset, and says so."""
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_2)
    port = free_port()
    with openssl(*s_server(contexts, port)) as server:
        assert server.stdin is not None
        stream = await connect(port, contexts)
        await stream.do_handshake()
        server.stdin.write(b"R\n")
        server.stdin.flush()
        await trio.sleep(0.2)
        server.send_signal(signal.SIGSTOP)
        with trio.move_on_after(0.2):
            await stream.receive_some()
        await stream.aclose()
        server.send_signal(signal.SIGCONT)
    assert stream.close_outcome is CloseOutcome.DURING_RENEGOTIATION
