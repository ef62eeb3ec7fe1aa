"""openssl's own programs as peers: how they see our ends, and what they can do during one."""

from __future__ import annotations

import re
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ringtls import CloseOutcome, TlsStream, open_tls_over_tcp_listeners, open_tls_over_tcp_stream

from .conftest import Contexts
from .support.waiting import cut_off, until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

CLOSE_NOTIFY = rb"SSL3 alert read:warning:close notify"


class OpenSsl:
    """One of openssl's programs, with its input open: at its end it would end too early."""

    def __init__(self, *arguments: str) -> None:
        self.output = bytearray()
        self.process = subprocess.Popen(
            ["openssl", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := self.process.stdout.read(4096):
            self.output += piece

    def enter(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    async def printed(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until the program has printed this."""
        await until(lambda: re.search(pattern, self.output))
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    async def ended(self) -> bytes:
        """All it has printed, when it has ended by itself."""
        await until(lambda: not self._reader.is_alive())
        return bytes(self.output)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def openssl(*arguments: str) -> Iterator[OpenSsl]:
    program = OpenSsl(*arguments)
    try:
        yield program
    finally:
        program.end()


def s_server(contexts: Contexts, *more: str) -> list[str]:
    files = ["-cert", str(contexts.certificate), "-key", str(contexts.key)]
    return ["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-state", *files, *more]


async def connect(server: OpenSsl, contexts: Contexts) -> TlsStream:
    line = await server.printed(rb"ACCEPT .*:(\d+)\n")
    return await open_tls_over_tcp_stream("localhost", int(line[1]), ssl_context=contexts.client)


async def test_c1_s_server(versioned_contexts: Contexts) -> None:
    with openssl(*s_server(versioned_contexts)) as server:
        async with await connect(server, versioned_contexts) as stream:
            await stream.send_all(b"hello, openssl\n")
        output = await server.ended()
    assert b"hello, openssl" in output
    assert re.search(CLOSE_NOTIFY, output)


@pytest.mark.parametrize("command", [b"", b"K\n", b"k\n"], ids=["plain", "update both", "update"])
async def test_c1_s_client(contexts: Contexts, command: bytes) -> None:
    """K and k are key updates: the close comes with one of them just received."""
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    port = listener.transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
    with openssl("s_client", "-connect", f"127.0.0.1:{port}", "-state") as client:
        async with await listener.accept() as stream:
            await stream.do_handshake()
            if command:
                client.enter(command)
                await client.printed(
                    b"write client key update"
                )  # a command is one that comes alone
            client.enter(b"hello, ringtls\n")
            received = b""
            while b"ringtls" not in received:
                received += await stream.receive_some()
            await stream.send_all(b"hello, openssl\n")
        output = await client.ended()
    await listener.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert b"hello, openssl" in output
    assert re.search(CLOSE_NOTIFY, output)


async def test_c1_a_renegotiation_that_does_not_end(contexts: Contexts) -> None:
    """OpenSSL sends no close_notify during a handshake: the end is a reset, and says so."""
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_2)
    with openssl(*s_server(contexts)) as server:
        stream = await connect(server, contexts)
        await stream.do_handshake()
        server.enter(b"R\n")
        await server.printed(b"write hello request")
        server.process.send_signal(signal.SIGSTOP)
        await cut_off(stream.receive_some)
        await stream.aclose()
        server.process.send_signal(signal.SIGCONT)
    assert stream.close_outcome is CloseOutcome.DURING_RENEGOTIATION
