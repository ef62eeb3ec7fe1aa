"""The server kit: what commands that serve share. The real command, and parts of it here."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import json
import logging
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ringtls._cli import certificates, main
from ringtls._cli.certificates import make_certificate, read_cached_certificate
from ringtls._cli.server import logs
from ringtls._cli.server.connections import Connection, Connections, Limits
from ringtls._cli.server.identities import identity_of
from ringtls._cli.server.logs import LineHandler
from ringtls._cli.server.names import names_of as certificate_names

from .conftest import Contexts
from .support.authority import Authority, pem_with_key
from .support.server import (
    PATIENCE,
    TEXT,
    WORKERS,
    Server,
    Start,
    both_modes,
    fails,
    head,
    read_to_end,
    starting,
)
from .support.streams import socket_streams
from .support.waiting import wait_until

ROOT = Path(__file__).parent.parent


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


def test_as_many_descriptors_as_there_may_be(start: Start) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 256))
    server = start(preexec_fn=limit)
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert re.search(r"^Max open files +256 +256 ", limits, re.M), limits


def test_the_longest_waiting_give_way_to_others(start: Start) -> None:
    server = start("--max-connections", "4", "--handshake-timeout", "3600")
    with ExitStack() as stack:
        waiting = [stack.enter_context(server.tcp()) for _ in range(8)]
        assert server.works()
        poll = select.poll()
        for sock in waiting:
            poll.register(sock, select.POLLIN)
        wait_until(lambda: len(poll.poll(0)) >= 4)  # these have ended
    assert server.stop() == 0


async def test_there_is_room_for_all_listeners_again() -> None:
    limited = Connections(Limits({}, connections=0))
    client, transport = await socket_streams()
    async with client, transport:
        connection = Connection(transport, "", limited)
        limited.add(connection)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as listeners:
                for _ in range(2):
                    listeners.start_soon(limited.until_there_is_room)
                await trio.testing.wait_all_tasks_blocked()
                limited.remove(connection)


@pytest.mark.parametrize("option", ["--handshake-timeout", "--idle-timeout"])
def test_timeouts(start: Start, option: str) -> None:
    server = start(option, "0.1")
    if option == "--handshake-timeout":
        with server.tcp() as tcp:
            assert tcp.recv(1) == b""
    else:
        with server.tls() as sock:
            sock.sendall(head("/text.txt"))
            assert read_to_end(sock).endswith(TEXT)


def test_faults_all_at_once(start: Start) -> None:
    """Slow heads, slow readers, floods, reloads and crashes: an honest client is answered."""
    server = start(*WORKERS, "--max-connections", "64")
    with ExitStack() as stack:
        for turn in range(4):
            for _ in range(40):
                stack.enter_context(server.tcp())
            for _ in range(10):
                slow_head = stack.enter_context(server.tls())
                slow_head.sendall(b"GET / HT")
                slow_reader = stack.enter_context(server.tls(receive_buffer=4096))
                slow_reader.sendall(100 * head("/text.txt"))
            server.process.send_signal(signal.SIGHUP)
            worker, *_ = server.workers()
            os.kill(worker, signal.SIGKILL)
            server.wait_for_log(f"process {worker} was killed")
            assert server.works(), turn
    assert server.stop() == 0


# Reloading


@both_modes
def test_a_fifo_for_a_certificate_stops_nothing(
    start: Start, contexts: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    certificate = Path(shutil.copy(contexts.certificate, tmp_path / "certificate.pem"))
    server = start(*mode, contexts=dataclasses.replace(contexts, certificate=certificate))
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


TWO_AT_ONCE = """
import hashlib, sys
from ringtls._cli.certificates import read_cached_certificate
sys.stdin.readline()
ca, certificate, key = read_cached_certificate()
print(hashlib.sha256(ca.read_bytes() + certificate + key).hexdigest())
"""


@pytest.mark.long
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


def test_a_shortage_is_no_reason_for_another_development_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = read_cached_certificate()

    def run_short(*paths: Path) -> ssl.SSLContext:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as shortage, pytest.raises(OSError, match="Too many open files"):
        shortage.setattr(certificates, "server_context", run_short)
        read_cached_certificate()
    assert read_cached_certificate() == first
    first[0].write_text("nonsense")
    assert read_cached_certificate() != first


NO_HOME = """
import os, pwd
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (NO_HOME, "this user has no home directory"),
        ("import os; os.environ['XDG_CACHE_HOME'] = '/dev/null'", ".*Not a directory.*"),
    ],
    ids=["no home", "no directory"],
)
def test_no_place_for_a_development_certificate(site: Path, patch: str, reason: str) -> None:
    """As for a container's user that is in no passwd(5)."""
    said = fails("-d", str(site), patch=patch)
    start = "ringtls: there is no development certificate: "
    assert re.fullmatch(f"{start}{reason}; give --certfile, or set XDG_CACHE_HOME to .*\n", said)


# Logs


def close_standard_files() -> None:
    os.closerange(0, 3)


def break_standard_files() -> None:
    reading, writing = os.pipe()
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(reading)


def fill_standard_files() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(full, number)


@pytest.mark.parametrize(
    "mode", [(), pytest.param(WORKERS, marks=pytest.mark.long)], ids=["alone", "workers"]
)
@pytest.mark.parametrize(
    "prepare", [close_standard_files, break_standard_files, fill_standard_files]
)
def test_nowhere_to_write(
    contexts: Contexts,
    site: Path,
    tmp_path: Path,
    prepare: Callable[[], None],
    mode: tuple[str, ...],
) -> None:
    """Neither what is said of the start, nor an access, nor a complaint. None of it is sent to what
    has been opened in the place of a file that was missing."""
    path = tmp_path / "socket"
    files = ("--certfile", str(contexts.certificate), "--keyfile", str(contexts.key))
    options = ("-d", str(site), "--bind", f"unix:{path}", "--access-log", *mode)
    command = [sys.executable, "-u", "-m", "ringtls", "serve", *files, *options]
    with subprocess.Popen(command, preexec_fn=prepare) as process:
        try:
            wait_until(lambda: process.poll() is not None or listens(path))
            for target in ("/text.txt", "/%"):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(PATIENCE)
                    sock.connect(str(path))
                    with contexts.client.wrap_socket(sock, server_hostname="localhost") as client:
                        client.sendall(head(target, "Connection: close"))
                        assert read_to_end(client).startswith(b"HTTP/1.1 ")
            opened = [os.stat(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
            assert not any(stat.S_ISSOCK(each.st_mode) for each in opened)
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


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
        wait_until(lambda: b"log lines lost, for which" in (log.read() or b""))
        assert server.stop() == 0


def test_names_that_are_not_ascii_stop_nothing(start: Start, contexts: Contexts) -> None:
    """ssl has Python write about each to stderr, which nobody reads."""
    outgoing = ssl.MemoryBIO()
    client = contexts.client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a" * 20)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read().replace(b"a" * 20, b"\xff" * 20)
    reading, writing = os.pipe()
    with open(reading, "rb") as log, open(writing, "wb") as pipe:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        server = start(stderr=pipe)
        for _ in range(40):
            with server.tcp() as sock:
                sock.sendall(hello)
                while sock.recv(100):
                    pass
        assert server.works()
        said = os.read(log.fileno(), 65536).splitlines()
        assert server.stop() == 0
    assert all(b"handshake failed: the name that it asks for is not ASCII" in line for line in said)


UNRAISABLE = """
import sys
from types import SimpleNamespace
from ringtls._cli.server import logs
logs.set_up("text", "worker 1")
class Faulty:
    def __repr__(self):
        return "an object"
    def __del__(self):
        raise ValueError("a fault")
Faulty()
logs.logger.warning("%d", "no number")
for name in (b"x", None):  # as ssl has it
    error = UnicodeDecodeError("ascii", b"x", 0, 1, "not ASCII")
    sys.unraisablehook(SimpleNamespace(err_msg=None, object=name, exc_value=error))
"""


def test_what_python_would_say_itself_is_in_the_log() -> None:
    run = subprocess.run(
        [sys.executable, "-c", UNRAISABLE], capture_output=True, text=True, timeout=PATIENCE
    )
    ignored, unformatted = run.stderr.splitlines()
    assert re.search(r" ERROR worker 1: Exception ignored .*>: ValueError\('a fault'\)$", ignored)
    assert " WARNING worker 1: a line can't be formatted: TypeError(" in unformatted


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
        ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writing, reading = (end.detach() for end in ends)
    else:
        reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as log,
        open(writing, "wb"),
        handler_to(writing) as handler,
    ):
        for _ in range(2000):
            handler.emit(record)
        os.set_blocking(reading, False)
        lines = b"".join(iter(lambda: log.read(1 << 20) or b"", b"")).splitlines()
        handler.emit(record)
        handler.emit(record)
        rest = b"".join(iter(lambda: log.read(1 << 20) or b"", b"")).splitlines()
        assert all(line.endswith(b"1m") for line in lines)
        lost = re.search(rb"log lines lost, for which there was no room: (\d+)$", rest[-3])
        assert lost
        assert int(lost[1]) + len(lines) == 2000
        assert all(line.endswith(b"1m") for line in rest[-2:])
        assert not os.get_blocking(reading) or os.get_blocking(writing)


#: What a client might want to have in the log.
FORGED = "2026-11-27 16:00:00,000 WARNING not allowed: CN=somebody else. "


def test_no_text_of_a_client_begins_a_line() -> None:
    """1. A line is longer than the pipe has room for. 2. Another handler writes to it. 3. The
    reader makes room, and the first writes again."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    long = logging.makeLogRecord({"levelname": "INFO", "msg": f"client says: {FORGED * 100}"})
    other = logging.makeLogRecord({"levelname": "INFO", "msg": "other"})
    with (
        open(reading, "rb", buffering=0) as log,
        open(writing, "wb"),
        handler_to(writing) as first,
        handler_to(writing) as second,
    ):
        first.emit(long)
        second.emit(other)
        said = log.read(65536)
        second.emit(other)
        first.emit(long)
        first.emit(other)
        said += log.read(65536)
    lines = said.decode().splitlines()
    assert all(re.match(r"[^ ]+ [^ ]+ (INFO|WARNING) worker 1: ", line) for line in lines)
    assert any("client says: " in line and "..." in line for line in lines)
    assert lines[-1].endswith("other") or "lost" in lines[-1]


def test_a_full_disk_loses_lines_and_they_are_counted(
    record: logging.LogRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def take(data: bytes) -> int:
        written.append(data)
        return len(data)

    with open("/dev/full", "wb") as disk, handler_to(disk.fileno()) as handler:
        handler.emit(record)
        monkeypatch.setattr(handler, "_write", take)
        handler.emit(record)
    assert len(written) == 2
    assert written[0].endswith(b"log lines lost, for which there was no room: 1\n")


def test_a_torn_line_is_ended(
    record: logging.LogRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A terminal takes parts of lines: the next one begins on a line of its own."""
    screen = bytearray()
    room = 10

    def take(data: bytes) -> int:
        if room == 0:
            raise BlockingIOError
        screen.extend(data[:room])
        return len(data[:room])

    with (tmp_path / "file").open("wb") as file, handler_to(file.fileno()) as handler:
        monkeypatch.setattr(handler, "_write", take)
        handler.emit(record)
        room = 0
        handler.emit(record)
        room = 1000
        handler.emit(record)
        handler.emit(record)
    torn, loss, *whole = bytes(screen).splitlines()
    assert len(torn) == 10
    assert loss.endswith(b"log lines lost, for which there was no room: 2")
    assert len(whole) == 2
    assert all(line.endswith(b"1m") for line in whole)


@pytest.mark.parametrize("text", ["a" * 10_000, "\N{SNOWMAN}" * 10_000])
def test_a_long_object_is_shortened(text: str) -> None:
    fields = {"target": text, "status": 200, "agent": text}
    ours, theirs = socket.socketpair()
    with ours, theirs, handler_to(ours.fileno(), "json") as handler:
        handler.emit(logging.makeLogRecord({"name": "a", "levelname": "INFO", "fields": fields}))
        line = json.loads(theirs.recv(10_000))
    assert line["status"] == 200
    assert re.fullmatch(f"{text[0]}+\\.\\.\\.{text[0]}+", line["target"])


def test_lines_of_an_exception_are_indented() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, handler_to(ours.fileno()) as handler:
        try:
            raise ValueError(f"what a client sent\n{FORGED}\r\x1b")
        except ValueError:
            info = sys.exc_info()
        handler.emit(logging.makeLogRecord({"levelname": "INFO", "msg": "a", "exc_info": info}))
        first, *others = theirs.recv(10_000).decode().splitlines()
    assert first.endswith("worker 1: a")
    assert others[-2:] == ["  ValueError: what a client sent", f"  {FORGED}\\x0d\\x1b"]
    assert all(line.startswith("  ") for line in others)


# Commands


NO_EXTRA = """
import sys
for name in ("cryptography", "httptools", "prometheus_client"):
    sys.modules[name] = None
from ringtls._cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["serve", "-d", "."], "server"), (["demo"], "server"), (["asgi", "main:app"], "asgi")],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_says_what_it_needs(arguments: list[str], extra: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_EXTRA, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 1
    assert re.fullmatch(
        rf"ringtls: {arguments[0]} needs \w+, which is not installed: "
        rf"pip install 'ringtls\[{extra}\]'\n",
        run.stderr,
    )


def test_without_the_extra_there_is_help() -> None:
    run = subprocess.run(
        [sys.executable, "-c", NO_EXTRA, "--help"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.returncode == 0
    said = " ".join(run.stdout.split())
    for command, extra in {"serve": "server", "proxy": "server", "asgi": "asgi"}.items():
        assert re.search(rf"{command} needs \w+: pip install 'ringtls\[{extra}\]'", said)


IMPORTED = """
import sys
from ringtls._cli import main
main()
print(*sorted({"cryptography", "prometheus_client"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "command",
    [("serve",), pytest.param(("proxy", "--backend", "127.0.0.1:1"), marks=pytest.mark.long)],
)
def test_an_option_that_is_not_given_imports_nothing(
    contexts: Contexts, command: tuple[str, ...]
) -> None:
    files = ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]

    def imported(*options: str) -> str:
        """By a start that fails at the last moment, as there is no such directory."""
        words = [*command, *files, *options, "--bind", "unix:/no/socket"]
        run = subprocess.run(
            [sys.executable, "-c", IMPORTED, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "can't listen on unix:/no/socket" in run.stderr
        said: str = run.stdout
        return said

    assert imported() == "\n"
    assert imported("--metrics", "127.0.0.1:0") == "prometheus_client\n"
    assert imported(*files) == "cryptography\n"  # two certificates: their names decide


# Certificates


def names_of(server: Server, name: str, ca: Path) -> list[str]:
    """The names in the certificate that a client gets that asks for a name."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    with context.wrap_socket(server.tcp(), server_hostname=name) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        return [str(pair[1]) for pair in certificate["subjectAltName"]]


def test_the_name_decides_on_the_certificate(
    start: Start, contexts: Contexts, tmp_path: Path
) -> None:
    made = {}
    for name in ("first.example", "*.wild.example", "certbot.example"):
        directory = tmp_path / name
        directory.mkdir()
        made[name] = make_certificate(directory, [name])
    pems = tmp_path / "pems"
    (pems / "certbot.example").mkdir(parents=True)
    wild, certbot = made["*.wild.example"], made["certbot.example"]
    (pems / "wild.pem").write_bytes(wild.certificate.read_bytes() + wild.key.read_bytes())
    certbot.certificate.rename(pems / "certbot.example" / "fullchain.pem")
    certbot.key.rename(pems / "certbot.example" / "privkey.pem")
    first = made["first.example"]
    files = ["--certfile", str(first.certificate), "--keyfile", str(first.key)]
    server = start(*files, "--cert-dir", str(pems))
    for asked, name in [
        ("first.example", "first.example"),
        ("FIRST.example", "first.example"),
        ("a.wild.example", "*.wild.example"),
        ("certbot.example", "certbot.example"),
    ]:
        assert names_of(server, asked, made[name].ca) == [name]
    for asked in ("other.example", "a.b.wild.example", "localhost"):
        assert "localhost" in names_of(server, asked, contexts.ca)
    later = tmp_path / "later"
    later.mkdir()
    added = make_certificate(later, ["later.example"])
    added.certificate.rename(pems / "later.crt")
    added.key.rename(pems / "later.key")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("the certificates were loaded anew")
    assert names_of(server, "later.example", added.ca) == ["later.example"]


def test_tickets_are_good_after_a_reload(start: Start, contexts: Contexts) -> None:
    server = start(*WORKERS)
    with server.tls() as sock:
        sock.sendall(head("/text.txt", "Connection: close"))
        read_to_end(sock)
        session = sock.session
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log().count("the certificates were loaded anew") == 3)
    for _ in range(8):
        with contexts.client.wrap_socket(
            server.tcp(), server_hostname="localhost", session=session
        ) as sock:
            assert sock.session_reused


def is_served(server: Server, contexts: Contexts, certificate: Path | None) -> bool:
    context = ssl.create_default_context(cafile=str(contexts.ca))
    if certificate is not None:
        context.load_cert_chain(certificate)
    try:
        with context.wrap_socket(server.tcp(), server_hostname="localhost") as sock:
            sock.sendall(head("/text.txt", "Connection: close"))
            return read_to_end(sock).endswith(TEXT)
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_certificate_without_alternative_names(tmp_path: Path) -> None:
    """Then its common name counts (RFC 6125, section 6.4.4)."""
    _, path = Authority.make(tmp_path).sign("Old.Example")
    assert certificate_names(path.read_bytes()) == ["old.example"]


def test_clients_need_a_certificate(start: Start, contexts: Contexts, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    _, good = authority.sign("good")
    revoked_certificate, revoked = authority.sign("revoked")
    _, unknown = authority.sign("unknown")
    (tmp_path / "other").mkdir()
    _, foreign = Authority.make(tmp_path / "other").sign("good")
    crl = authority.revoke()
    allow = ["--client-allow", "CN=good", "--client-allow", "O=example,CN=good"]
    server = start(
        *("--client-ca", str(authority.path), "--client-crl", str(crl), "--access-log"),
        *(*allow, "--client-allow", "revoked"),
    )
    assert is_served(server, contexts, good)
    assert is_served(server, contexts, revoked)
    for certificate in (unknown, foreign, None):
        assert not is_served(server, contexts, certificate)
    server.wait_for_log("not allowed: O=example,CN=unknown")
    authority.revoke(revoked_certificate)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("the certificates were loaded anew")
    assert is_served(server, contexts, good)
    assert not is_served(server, contexts, revoked)
    assert server.stop() == 0
    assert "127.0.0.1 - O=example,CN=good [" in server.stdout.read()


def test_clients_may_have_a_certificate(start: Start, contexts: Contexts, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    _, good = authority.sign("good")
    server = start("--client-ca", str(authority.path), "--client-cert", "optional")
    assert is_served(server, contexts, None)
    assert is_served(server, contexts, good)


@pytest.mark.parametrize("mode", ["required", "optional"])
@pytest.mark.parametrize(
    ("common_name", "alternative", "said"),
    [
        ("", "mallory", "a certificate without a subject"),
        ("admin,O=Corp", "", r"CN=admin\,O=Corp"),
        ("CN=admin,O=Corp", "", r"CN=CN=admin\,O=Corp"),
        ("mallory", "CN=admin,O=Corp", "CN=mallory"),
    ],
    ids=["no subject", "comma", "name like a subject", "alternative like a subject"],
)
def test_who_is_not_allowed(
    start: Start,
    contexts: Contexts,
    tmp_path: Path,
    mode: str,
    common_name: str,
    alternative: str,
    said: str,
) -> None:
    authority = Authority.make(tmp_path)
    organization, common = NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME
    _, admin = authority.sign_for("admin", {common: "admin", organization: "Corp"})
    subject = {common: common_name} if common_name else {}
    names = [x509.UniformResourceIdentifier(alternative)] if alternative else []
    _, other = authority.sign_for("other", subject, names)
    allow = ["--client-allow", "CN=admin,O=Corp", "--client-allow", ""]
    server = start("--client-ca", str(authority.path), "--client-cert", mode, *allow)
    assert is_served(server, contexts, admin)
    assert not is_served(server, contexts, other)
    assert is_served(server, contexts, None) == (mode == "optional")
    server.wait_for_log(f"not allowed: {said}\n")


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        ([[("commonName", 'a"b+c,d;e<f>g\\h\0i')]], r"CN=a\"b\+c\,d\;e\<f\>g\\h\00i"),
        ([[("commonName", "  a b  ")]], r"CN=\  a b \ "),
        ([[("commonName", " ")]], "CN=\\ "),
        ([[("commonName", "#a#")]], r"CN=\#a#"),
        (
            [[("domainComponent", "net")], [("userId", "a"), ("commonName", "b")]],
            "DC=net,UID=a+CN=b",
        ),
        ([], ""),
    ],
)
def test_a_subject_is_written_unambiguously(
    subject: list[list[tuple[str, str]]], written: str
) -> None:
    """RFC 4514, section 2."""
    assert identity_of({"subject": subject})[0] == written


# Sockets


@both_modes
def test_local_socket(
    start: Start, contexts: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    server = start(*mode, "--bind", f"unix:{path}")
    assert server.stdout.readline() == f"Running on unix:{path} (CTRL + C to quit)\n"
    for _ in range(4):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with contexts.client.wrap_socket(sock, server_hostname="localhost") as tls:
                tls.sendall(head("/text.txt", "Connection: close"))
                assert read_to_end(tls).endswith(TEXT)
    said = fails("--bind", f"unix:{path}")
    assert said.startswith(f"ringtls: can't listen on unix:{path}: Address already in use; ")
    assert path.exists()
    assert server.stop() == 0
    assert not path.exists()


def test_local_socket_of_a_server_whose_queue_is_full(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as other, ExitStack() as stack:
        other.bind(path)
        other.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect(path)
        said = fails("--bind", f"unix:{path}")
    assert said.startswith(f"ringtls: can't listen on unix:{path}: Address already in use; ")


@both_modes
def test_systemd_is_told(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        server = start(
            *mode, env={**os.environ, "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        )
        told = []

        def is_told(assignment: str) -> bool:
            while assignment not in told:
                told.extend(manager.recv(1000).decode().splitlines())
            told.remove(assignment)
            return True

        assert is_told("READY=1")
        assert is_told("WATCHDOG=1")
        server.process.send_signal(signal.SIGHUP)
        assert is_told("RELOADING=1")
        assert is_told("READY=1")
        assert is_told("WATCHDOG=1")
        server.process.send_signal(signal.SIGTERM)
        assert is_told("STOPPING=1")
        assert server.wait() == 0


# Metrics


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def port_of_metrics(server: Server) -> int:
    match = re.fullmatch(r"Metrics on http://127.0.0.1:(\d+)/metrics\n", server.stdout.readline())
    assert match
    return int(match[1])


@both_modes
def test_metrics(start: Start, mode: tuple[str, ...]) -> None:
    server = start(*mode, "--metrics", "127.0.0.1:0")
    port = port_of_metrics(server)
    for _ in range(8):
        assert server.works()
    server.get("/no")
    with server.tcp() as sock:
        sock.sendall(head("/"))
        sock.recv(100)

    def has(line: str) -> bool:
        return line in ask(port, "/metrics")[1].splitlines()

    wait_until(lambda: has('ringtls_requests_total{status="200"} 8.0'))
    wait_until(lambda: has('ringtls_requests_total{status="404"} 1.0'))
    wait_until(lambda: has('ringtls_handshake_failures_total{reason="HTTP_REQUEST"} 1.0'))

    def ends() -> float:
        found = re.findall(r"^ringtls_ends_total{.*} (.*)$", ask(port, "/metrics")[1], re.M)
        return sum(map(float, found))

    wait_until(lambda: ends() == 8 + 1 + 1)
    text = ask(port, "/metrics")[1]
    assert re.search(
        r'^ringtls_handshakes_total{cipher="TLS_\w+",resumed="no",version="TLSv1.3"} 9.0$',
        text,
        re.M,
    )
    assert "# TYPE ringtls_connections_open gauge" in text
    if mode:  # a new process goes on counting
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
            server.wait_for_log(f"process {worker} was killed")
        wait_until(lambda: has('ringtls_requests_total{status="200"} 8.0'))
    assert ask(port, "/healthz") == (200, "ok\n")
    assert ask(port, "/")[0] == 404
    assert server.stop() == 0


def test_health_checks_by_head(start: Start) -> None:
    """As ``wget --spider`` makes them. A query, as Prometheus may send one, changes nothing."""
    port = port_of_metrics(start("--metrics", "127.0.0.1:0"))
    for target, status in (("/healthz", "200"), ("/metrics?a=b", "200"), ("/", "404")):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(head(target).replace(b"GET", b"HEAD"))
            answer = b"".join(iter(partial(sock.recv, 65536), b"")).decode()
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert answer.endswith("\r\n\r\n")


def test_health_while_draining(start: Start, site: Path) -> None:
    server = start("--metrics", "127.0.0.1:0", "--graceful-timeout", "3600")
    port = port_of_metrics(server)
    with server.tls() as busy:
        busy.sendall(b"GET /text.txt HTTP/1.1\r\n")
        assert server.works()  # so the other has been read, too
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(port, "/healthz") == (503, "draining\n"))
        busy.sendall(b"Host: localhost\r\n\r\n")
        assert read_to_end(busy).endswith(TEXT)
    assert server.wait() == 0


# Options


def test_json_logs(start: Start) -> None:
    server = start("--log-format", "json", "--access-log")
    server.get("/text.txt", User_Agent="a")
    assert server.stop() == 0
    accessed = json.loads(server.stdout.read())
    assert accessed.pop("time")
    assert accessed.pop("peer").startswith("127.0.0.1:")
    assert accessed == {
        "level": "INFO",
        "logger": "ringtls.access",
        "identity": "",
        "method": "GET",
        "target": "/text.txt",
        "version": "1.1",
        "status": 200,
        "sent": 10,
        "referrer": "-",
        "agent": "a",
    }
    (line,) = server.log().splitlines()
    assert json.loads(line)["message"].startswith("SIGTERM: ")


def test_check(contexts: Contexts, site: Path, tmp_path: Path) -> None:
    files = ["--certfile", str(contexts.certificate), "--keyfile", str(contexts.key)]
    command = [sys.executable, "-m", "ringtls", "serve", "--check", "-d", str(site), *files]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"The configuration is good. Certificates for: .*localhost.*\n", run.stdout)
    assert "no such" in fails("--check", "-d", str(tmp_path / "no"), *files).lower()


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (-48, -24, "was valid until {last}: clients refuse it; renew it"),
        (24, 48, "is valid from {first}: clients refuse it until then; is this machine's clock"),
    ],
)
def test_a_check_tells_of_dates(
    first: int,
    last: int,
    said: str,
    site: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    since, until = (now + datetime.timedelta(hours=hours) for hours in (first, last))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.example")])
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), 1, not_valid_before=since, not_valid_after=until
    ).sign(key, hashes.SHA256())
    path = tmp_path / "dated.pem"
    path.write_bytes(pem_with_key(certificate, key))
    assert main(["serve", "--check", "-d", str(site), "--certfile", str(path)]) == 0
    dates = {"first": f"{since:%Y-%m-%d %H:%M} UTC", "last": f"{until:%Y-%m-%d %H:%M} UTC"}
    printed = capsys.readouterr()
    assert printed.err.startswith(f"ringtls: the certificate in {path} {said.format(**dates)}")
    assert printed.err.count("\n") == 1
    expected = "The configuration would be served all the same. Certificates for: a.example\n"
    assert printed.out == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keyfile", "k"], "--keyfile needs --certfile"),
        (["--certfile", "a", "--certfile", "b", "--keyfile", "k"], "give as many --keyfile as"),
        (["--client-crl", "c"], "--client-crl needs --client-ca"),
        (["--client-allow", "c"], "--client-allow needs --client-ca"),
        (["--client-cert", "required"], "--client-cert needs --client-ca"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], said: str) -> None:
    assert fails(*arguments).startswith(f"ringtls: {said}")
