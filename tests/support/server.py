"""Running commands that serve, and their blocking clients."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ringtls._cli.certificates import make_certificate
from ringtls._cli.demo.proxy.terminators import CRASHES

from ..conftest import Contexts
from .waiting import LIMIT, wait_until
from .zygote import Program

MIB = 1024 * 1024
#: Seconds after which something that should happen is taken for missing.
PATIENCE = LIMIT

TEXT = b"0123456789"
SMALL = os.urandom(3 * MIB)

WORKERS = ("--workers", "2")

both_modes = pytest.mark.parametrize("mode", [(), WORKERS], ids=["alone", "workers"])


class Command:
    """A command that serves, on a port of the kernel's choice.

    Args:
      words: the command's own arguments.
      options: those of subprocess.Popen.
    """

    def __init__(
        self,
        contexts: Contexts,
        log: Path,
        *words: str,
        bind: str = "127.0.0.1:0",
        **options: Any,
    ) -> None:
        self._contexts = contexts
        self._log = log
        reader, writer = os.pipe()
        self.stdout = open(reader)  # noqa: SIM115
        with log.open("wb") as stderr:
            options = {"stdout": writer, "stderr": stderr, **options}
            self.process = _start([*words, "--bind", bind], **options)
        os.close(writer)
        self._known: set[int] = set()
        line = self.stdout.readline()
        match = re.fullmatch(r"Running on \w+://127\.0\.0\.1:(\d+) \(CTRL \+ C to quit\)\n", line)
        if match is None:
            self.end()
            raise AssertionError(f"{line!r}, {self.log()}")
        self.port = int(match[1])

    def log(self) -> str:
        return self._log.read_text()

    def tcp(self, receive_buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        return sock

    def tls(self, receive_buffer: int | None = None) -> ssl.SSLSocket:
        """A client for which only close_notify is an end."""
        return self.wrap(self.tcp(receive_buffer))

    def wrap(self, tcp: socket.socket) -> ssl.SSLSocket:
        return self._contexts.client.wrap_socket(
            tcp, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log())

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def workers(self) -> list[int]:
        """The processes of the workers that there are now."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [int(child) for child in children if is_alive(int(child))]
        self._known.update(workers)
        return workers

    def end(self) -> None:
        """Kill all of it that is left. None of it may have crashed, and only an application may
        have raised what nobody caught."""
        if self.process.poll() is None:
            self.workers()
        self.process.kill()
        code = self.process.wait()
        for worker in filter(is_alive, self._known):
            os.kill(worker, signal.SIGKILL)
        self.stdout.close()
        log = self.log()
        killed = {int(number) for number in re.findall(r"was killed by signal (\d+)", log)}
        assert not CRASHES & {-code, *killed}, log
        faults = log.count("\n  ValueError: this application has a fault")
        assert log.count("Traceback") == faults, log


def _start(words: Sequence[str], **options: Any) -> Program | subprocess.Popen[bytes]:
    """A command, from a process of its own if the options are for that.

    With the option ``patch``, source of Python is run before it.
    """
    if (patch := options.pop("patch", None)) is not None:
        source = f"{patch}\nimport sys\nfrom ringtls._cli import main\nsys.exit(main())"
        return subprocess.Popen([sys.executable, "-c", source, *words], **options)
    if options.keys() <= {"stdout", "stderr", "cwd", "env"}:
        return Program(words, **options)
    return subprocess.Popen([sys.executable, "-m", "ringtls", *words], **options)


class Server(Command):
    """``ringtls serve``, or another command of HTTP."""

    def __init__(
        self,
        contexts: Contexts,
        site: Path,
        log: Path,
        *arguments: str,
        subcommand: Sequence[str] = (),
        **options: Any,
    ) -> None:
        words = [*(subcommand or ("serve", "-d", str(site)))]
        words += ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
        super().__init__(contexts, log, *words, *arguments, **options)

    @contextlib.contextmanager
    def client(self) -> Iterator[http.client.HTTPSConnection]:
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=self._contexts.client, timeout=PATIENCE
        )
        connection.sock = self.tls()
        with contextlib.closing(connection):
            yield connection

    def get(self, target: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        return self.request("GET", target, **headers)

    def request(
        self, method: str, target: str, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.client() as client:
            client.request(method, target, headers=named)
            response = client.getresponse()
            return response, response.read()

    def works(self) -> bool:
        return self.get("/text.txt")[1] == TEXT


def is_alive(pid: int) -> bool:
    """False for a zombie: whoever should wait for it may be slow."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


Start = Callable[..., Server]


@contextlib.contextmanager
def starting(contexts: Contexts, site: Path, log_directory: Path) -> Iterator[Start]:
    """A function that starts servers, which all end with the context."""
    servers: list[Server] = []

    def start(
        *arguments: str, directory: Path = site, contexts: Contexts = contexts, **options: Any
    ) -> Server:
        log = log_directory / f"stderr-{len(servers)}"
        servers.append(Server(contexts, directory, log, *arguments, **options))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.end()
            print(server.log())  # pytest shows it where the test has failed


def copied(contexts: Contexts, directory: Path) -> Contexts:
    """The same certificate and key, in files that a test may replace."""
    return dataclasses.replace(
        contexts,
        certificate=Path(shutil.copy(contexts.certificate, directory / "certificate.pem")),
        key=Path(shutil.copy(contexts.key, directory / "key.pem")),
    )


def certificate_of(server: Server) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(server.tcp()) as sock:
        certificate = sock.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def replace_certificate(files: Contexts, directory: Path) -> bytes:
    """Put another certificate and its key into the files."""
    directory.mkdir()
    made = make_certificate(directory)
    made.certificate.replace(files.certificate)
    made.key.replace(files.key)
    return ssl.PEM_cert_to_DER_cert(files.certificate.read_text())


def wait_until_refused(server: Command) -> None:
    def refused() -> bool:
        try:
            server.tcp().close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # it was in the queue of a listener that was being closed
        return False

    wait_until(refused)


def read_to_end(sock: ssl.SSLSocket) -> bytes:
    """All until close_notify; a mere end of the connection raises ssl.SSLEOFError."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def head(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_metrics(place: Path) -> str:
    """What ``--metrics unix:PATH`` answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(place))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return b"".join(iter(partial(sock.recv, 65536), b"")).decode()


def fails(
    *arguments: str, command_name: str = "serve", bind: str = "127.0.0.1:0", **options: Any
) -> str:
    """What a command says when it can't start: one line."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        words = [command_name, "--bind", bind, *arguments]
        status = _start(words, stdout=out, stderr=err, **options).wait(PATIENCE)
        wrote, said = (os.pread(file.fileno(), MIB, 0).decode() for file in (out, err))
    assert (status, wrote, said.count("\n")) == (1, "", 1), (wrote, said)
    return said
