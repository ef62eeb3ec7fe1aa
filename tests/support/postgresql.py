"""PostgreSQL servers: a real one, if it is installed here, and one that plays a script."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .peer import Peer
from .waiting import wait_until

if TYPE_CHECKING:
    from ..conftest import Contexts

__all__ = [
    "BINARIES",
    "PASSWORD",
    "USER",
    "PostgresqlServer",
    "begin",
    "begin_in_plain_text",
    "log_in",
    "message",
    "receive",
]

USER, PASSWORD = "ringtls", "a password"

#: Debian's place for them, of the newest version that is there; None if there is none.
BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

#: It serves clients of TLS alone, and these by SCRAM.
ACCESS = "hostssl all all 127.0.0.1/32 scram-sha-256\n"

SETTINGS = """
listen_addresses = '127.0.0.1'
ssl = on
ssl_cert_file = 'certificate.pem'
ssl_key_file = 'key.pem'
unix_socket_directories = ''
fsync = off
log_connections = on
log_disconnections = on
"""


# The real one


class PostgresqlServer:
    """A server with a database of its own."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._directory = directory
        self._log = log
        self.port = 0
        self._process: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def running(cls, contexts: Contexts, log: Path) -> Iterator[PostgresqlServer]:
        # Not below pytest's directory: that is for its own user alone, and the server is another.
        with tempfile.TemporaryDirectory() as directory:
            server = cls(Path(directory) / "data", log)
            server._create(contexts)
            server._start()
            try:
                yield server
            finally:
                server._process.send_signal(signal.SIGINT)  # "fast": it waits for no client
                server._process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        assert BINARIES is not None
        command = [str(BINARIES / program), "-D", str(self._directory), *arguments]
        # It refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        with self._log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, cwd="/", user=user)

    def _create(self, contexts: Contexts) -> None:
        above = self._directory.parent
        (above / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (above, above / "password"):
                shutil.chown(path, "nobody")
        options = ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=scram-sha-256"]
        process = self._run("initdb", *options, "-U", USER, f"--pwfile={above / 'password'}")
        assert process.wait() == 0, self.log()
        (self._directory / "pg_hba.conf").write_text(ACCESS)
        with (self._directory / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        for source, name in ((contexts.certificate, "certificate.pem"), (contexts.key, "key.pem")):
            copy = Path(shutil.copy(source, self._directory / name))
            copy.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(copy, "nobody")

    def _start(self) -> None:
        """It takes no port 0: so one that is free, and another if somebody was faster."""
        while True:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                self.port = sock.getsockname()[1]
            self._process = self._run("postgres", "-p", str(self.port))
            wait_until(lambda: self._process.poll() is not None or "ready to accept" in self.log())
            if self._process.poll() is None:
                return
            assert "Address already in use" in self.log(), self.log()


# The one that plays a script


def begin(sock: socket.socket, contexts: Contexts) -> Peer:
    """Begin TLS when the client asks for it."""
    peer = begin_in_plain_text(sock, contexts)
    sock.sendall(b"S")
    peer.handshake()
    return peer


def begin_in_plain_text(sock: socket.socket, contexts: Contexts) -> Peer:
    assert sock.recv(8, socket.MSG_WAITALL) == struct.pack("!II", 8, 80877103)
    return Peer(sock, contexts, server_side=True)


def receive(peer: Peer, kind: bytes) -> bytes:
    """What a message of this kind says."""
    assert peer.receive(len(kind)) == kind
    (length,) = struct.unpack("!I", peer.receive(4))
    return peer.receive(length - 4)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def log_in(peer: Peer, password: str = PASSWORD) -> None:
    """Have the client authenticate itself: RFC 5802, section 3."""
    assert receive(peer, b"")[4:] == f"user\0{USER}\0database\0postgres\0\0".encode()
    peer.send(message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))
    first = receive(peer, b"p").partition(b"n,,")[2]
    salt, rounds = b"salt", 4096
    nonce = first.partition(b"r=")[2] + b"server"
    challenge = b"r=%b,s=%b,i=%d" % (nonce, base64.b64encode(salt), rounds)
    peer.send(message(b"R", struct.pack("!I", 11) + challenge))
    last, _, proof = receive(peer, b"p").partition(b",p=")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    signed = b",".join([first, challenge, last])
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    signature = hmac.digest(stored, signed, "sha256")
    key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
    if password == PASSWORD:
        assert hashlib.sha256(key).digest() == stored
    verdict = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
    peer.send(message(b"R", struct.pack("!I", 12) + b"v=" + base64.b64encode(verdict)))
    peer.send(message(b"R", struct.pack("!I", 0)) + message(b"Z", b"I"))
