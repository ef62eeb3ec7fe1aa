"""The server kit: what commands that serve share. The real command, and parts of it here."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from ringtls._cli.server import logs
from ringtls._cli.server.logs import LineHandler

from .conftest import Contexts
from .support.server import PATIENCE, TEXT, Start, starting, wait_until

ROOT = Path(__file__).parent.parent

WORKERS = ("--workers", "2")

both_modes = pytest.mark.parametrize("mode", [(), WORKERS], ids=["alone", "workers"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    (root / "text.txt").write_bytes(TEXT)
    return root


@pytest.fixture
def start(contexts: Contexts, site: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(contexts, site, tmp_path) as start:
        yield start


# Limits


def test_idle_connections_give_way_when_descriptors_run_short(start: Start) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    server = start(preexec_fn=limit)
    with ExitStack() as stack:
        for _ in range(3 * 64):
            stack.enter_context(server.tcp())
        for _ in range(10):
            assert server.works()
    assert server.stop() == 0
    log = server.log()
    times = re.findall(
        r"^\S+ (\S+) ERROR can't accept connections: accept on fd \d+: Too many", log, re.M
    )
    seconds = [
        int(hour) * 3600 + int(minute) * 60 + float(second.replace(",", "."))
        for hour, minute, second in (time.split(":") for time in times)
    ]
    assert times
    assert all(b - a > 0.99 for a, b in pairwise(seconds)), times
    assert "Traceback" not in log


# Reloading


@both_modes
def test_a_fifo_for_a_certificate_stops_nothing(
    start: Start, contexts: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(contexts.certificate.read_bytes())
    server = start(*mode, "--certfile", str(certificate))
    certificate.unlink()
    os.mkfifo(certificate)
    for _ in range(3):
        server.process.send_signal(signal.SIGHUP)
        assert server.works()
    with certificate.open("wb") as fifo:  # so somebody reads it
        assert server.works()
        fifo.write(b"nonsense")
    server.wait_for_log("SIGHUP: the certificates stay as they were: no certificate with its key")
    assert server.works()
    # The next one reads it now, and is not waited for.
    assert server.stop() == 0
    assert "Traceback" not in server.log()


TWO_AT_ONCE = """
import hashlib, sys
from ringtls._cli.certificates import read_cached_certificate
sys.stdin.readline()
ca, certificate, key = read_cached_certificate()
print(hashlib.sha256(ca.read_bytes() + certificate + key).hexdigest())
"""


def test_first_starts_at_once_have_one_development_certificate(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TWO_AT_ONCE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for _ in range(6)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        digests = {process.communicate(timeout=PATIENCE)[0] for process in processes}
        assert not any(process.returncode for process in processes)
    assert len(digests) == 1


# Logs


def test_a_log_that_nobody_reads_stops_nothing(start: Start, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as log, open(writing, "wb") as pipe:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        server = start("--access-log", stderr=pipe)
        for _ in range(100):
            with server.tcp() as sock:
                sock.sendall(b"no TLS")
                sock.recv(100)  # an end, after the line in the log
        assert server.works()
        assert b"handshake failed" in os.read(log.fileno(), 65536)  # so there is room again
        with server.tcp() as sock:
            sock.sendall(b"no TLS")
            sock.recv(100)
        os.set_blocking(log.fileno(), False)
        wait_until(lambda: b"log lines lost, as nobody read them" in (log.read() or b""))
        assert server.stop() == 0


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": "forged\r\n\x1b[1m"})


@contextmanager
def handler_to(descriptor: int, form: str = "text") -> Iterator[LineHandler]:
    with closing(LineHandler(descriptor)) as handler:
        make, _ = logs.FORMATS[form]
        handler.setFormatter(make("worker 1"))
        yield handler


def test_lines_can_not_be_forged(record: logging.LogRecord) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, handler_to(ours.fileno()) as handler:
        handler.emit(record)
        assert theirs.recv(1000).endswith(b" INFO worker 1: forged\\x0d\\x0a\\x1b[1m\n")


def test_json(record: logging.LogRecord) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, handler_to(ours.fileno(), "json") as handler:
        handler.emit(record)
        line = json.loads(theirs.recv(1000))
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "a",
        "worker": "worker 1",
        "message": "forged\r\n\x1b[1m",
    }


@pytest.mark.parametrize("kind", ["pipe", "socket", "pipe of another user"])
def test_lost_lines_are_counted(
    kind: str, record: logging.LogRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pipe of another user":

        def refuse(*arguments: object) -> int:
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(os, "open", refuse)
    if kind == "socket":
        ends = socket.socketpair()
        writing, reading = (end.detach() for end in ends)
    else:
        reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as log,
        open(writing, "wb"),
        handler_to(writing) as handler,
    ):
        for _ in range(20_000):
            handler.emit(record)
        os.set_blocking(reading, False)
        lines = b"".join(iter(lambda: log.read(1 << 20) or b"", b"")).splitlines()
        handler.emit(record)
        handler.emit(record)
        rest = b"".join(iter(lambda: log.read(1 << 20) or b"", b"")).splitlines()
        whole = [line for line in lines if line.endswith(b"1m")]
        assert len(lines) - len(whole) <= 1  # the last is torn where the room ended
        lost = re.search(rb"log lines lost, as nobody read them in time: (\d+)$", rest[-3])
        assert lost
        assert int(lost[1]) + len(lines) == 20_000
        assert all(line.endswith(b"1m") for line in rest[-2:])
        assert not os.get_blocking(reading) or os.get_blocking(writing)


# Commands


NO_EXTRA = """
import sys
for name in ("cryptography", "httptools", "prometheus_client"):
    sys.modules[name] = None
from ringtls._cli import main
sys.exit(main())
"""


def test_a_command_says_what_it_needs() -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_EXTRA, "serve", "-d", "."],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 1
    assert re.fullmatch(
        r"ringtls: serve needs \w+, which is not installed: pip install 'ringtls\[server\]'\n",
        run.stderr,
    )
    run = subprocess.run(
        [sys.executable, "-c", NO_EXTRA, "--help"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.returncode == 0
