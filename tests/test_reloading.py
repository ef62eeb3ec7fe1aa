"""SIGHUP when something is wrong: the server goes on with the certificates that it has."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from ringtls._cli import certificates
from ringtls._cli.server.credentials import Bundle, Credentials, Files
from ringtls._cli.server.reading import Content
from ringtls._cli.server.reloading import KEPT, Reloader, Result
from ringtls._cli.server.workers import PassedSignals

from .conftest import Contexts
from .support.authority import pem_with_key
from .support.processes import in_child
from .support.server import (
    PATIENCE,
    TEXT,
    Server,
    Start,
    both_modes,
    certificate_of,
    copied,
    fails,
    replace_certificate,
    starting,
)
from .support.waiting import wait_until

#: A SubjectAltName with an ediPartyName (RFC 5280, section 4.2.1.6), which OpenSSL takes.
EDI_PARTY_NAME = bytes.fromhex("3007a505a1030c0178")


@pytest.fixture
def files(contexts: Contexts, tmp_path: Path) -> Contexts:
    return copied(contexts, tmp_path)


@pytest.fixture
def start(files: Contexts, tmp_path: Path) -> Iterator[Start]:
    site = tmp_path / "site"
    site.mkdir()
    (site / "text.txt").write_bytes(TEXT)
    with starting(files, site, tmp_path) as start:
        yield start


def write_odd_certificate(path: Path) -> None:
    """With its key: one that ``cryptography`` does not read the names of."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = certificates._name("odd")
    san = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, EDI_PARTY_NAME)
    certificate = (
        certificates._builder(name, name, key.public_key())
        .add_extension(san, critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(pem_with_key(certificate, key))


@both_modes
def test_names_that_can_not_be_read(
    start: Start, files: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    shutil.copy(files.certificate, directory / "a.pem")
    shutil.copy(files.key, directory / "a.key")
    server = start(*mode, "--cert-dir", str(directory))
    odd = directory / "odd.pem"
    write_odd_certificate(odd)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(f"{KEPT}: can't read the names in {odd}: ")
    assert server.works()
    assert server.stop() == 0
    said = fails("--cert-dir", str(directory))
    assert said.startswith(f"ringtls: can't read the names in {odd}: ")


@contextmanager
def free_descriptors(process: int, number: int) -> Iterator[None]:
    """A process has no more than these left, as if connections had taken the others."""
    taken = {int(name) for name in os.listdir(f"/proc/{process}/fd")}
    free = [descriptor for descriptor in range(len(taken) + number + 1) if descriptor not in taken]
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (free[number], before[1]))
    yield
    resource.prlimit(process, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("number", [0, 1])
def test_a_shortage_of_descriptors_passes(
    start: Start, files: Contexts, tmp_path: Path, number: int
) -> None:
    """None to read files by, or one for a certificate and none for its key."""
    server: Server = start()
    new = replace_certificate(files, tmp_path / "new")
    with free_descriptors(server.process.pid, number):
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(KEPT)
    server.wait_for_log("SIGHUP: the certificates were loaded anew")
    assert certificate_of(server) == new
    assert server.stop() == 0


def test_a_supervisor_that_is_short_of_descriptors_tries_again(
    start: Start, files: Contexts, tmp_path: Path
) -> None:
    """1. There is none for what its process is to read. 2. There is one, and certificates want
    two at once."""
    server: Server = start("--workers", "1")
    loaded = "worker 1: SIGHUP: the certificates were loaded anew"

    def is_said(text: str, times: int) -> bool:
        return server.log().count(text) >= times

    for turn, number in enumerate((0, 1), 1):
        new = replace_certificate(files, tmp_path / f"new{number}")
        with free_descriptors(server.process.pid, number):
            kept = server.log().count(KEPT)
            server.process.send_signal(signal.SIGHUP)
            wait_until(partial(is_said, KEPT, kept + 1))
            assert not is_said(loaded, turn)
        wait_until(partial(is_said, loaded, turn))
        assert certificate_of(server) == new
    assert server.stop() == 0


def test_only_what_is_short_is_tried_again(
    files: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Files([(files.certificate, files.key)])
    reloader = Reloader(loaded, Credentials(loaded.read(), ()))
    assert reloader.use(reloader.read()) is Result.USED
    assert reloader.use(b"") is Result.SHORT
    for kind, method in ((Credentials, "use"), (Bundle, "__reduce__")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, exhaust_memory)
            assert reloader.use(reloader.read()) is Result.SHORT
    files.key.write_text("no key")
    assert reloader.use(reloader.read()) is Result.REFUSED
    files.key.unlink()
    assert reloader.use(reloader.read()) is Result.REFUSED


def exhaust_memory(*_: object) -> None:
    raise MemoryError


SECOND_FORK_IS_KILLED = """
import os, signal
fork, forks = os.fork, []
def fork_and_kill():
    forks.append(None)
    process = fork()
    if process == 0 and len(forks) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return process
os.fork = fork_and_kill
"""

NO_ROOM_AT_FIRST = """
from ringtls._cli.server.reading import Content
put = Content.put
def refuse(self, data):
    Content.put = put
    raise OSError(12, "Cannot allocate memory")
Content.put = refuse
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (SECOND_FORK_IS_KILLED, f"{KEPT}: reading the files failed"),
        (NO_ROOM_AT_FIRST, "the workers can't have the certificates yet: Cannot allocate memory"),
    ],
)
def test_a_supervisor_that_is_short_of_memory_tries_again(
    start: Start, files: Contexts, tmp_path: Path, patch: str, said: str
) -> None:
    """1. The kernel kills the process that reads. 2. What it read can't be handed on."""
    server: Server = start("--workers", "1", patch=patch)
    new = replace_certificate(files, tmp_path / "new")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(said)
    server.wait_for_log("worker 1: SIGHUP: the certificates were loaded anew")
    assert certificate_of(server) == new
    assert server.stop() == 0


def test_what_was_read_and_has_no_room_is_told() -> None:
    def put() -> None:
        content = Content()
        content.put(b"first")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match="File too large"):
            content.put(bytes(1001))
        assert content.take() is None

    in_child(put)


def test_a_worker_that_is_short_of_descriptors_tries_again(
    start: Start, files: Contexts, tmp_path: Path
) -> None:
    server: Server = start("--workers", "1")
    (worker,) = server.workers()
    new = replace_certificate(files, tmp_path / "new")
    with free_descriptors(worker, 0):
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(f"worker 1: {KEPT}: ")
        files.key.unlink()  # what was read is what is used
    server.wait_for_log("worker 1: SIGHUP: the certificates were loaded anew")
    assert server.workers() == [worker]
    assert certificate_of(server) == new
    assert server.stop() == 0


async def test_a_worker_that_meets_a_write_waits_for_what_is_written() -> None:
    """1. The first is put, and told. 2. The second is being put when the worker looks."""
    ours, theirs = socket.socketpair()
    content = Content()
    with ours, theirs:
        orders = PassedSignals(theirs, content)
        content.put(b"first")
        ours.send(bytes([signal.SIGHUP]))
        os.pwrite(content._descriptor, b"second", os.fstat(content._descriptor).st_size - 5)
        ours.send(bytes([signal.SIGINT]))
        assert await anext(orders) == signal.SIGINT
        content.put(b"second")
        ours.send(bytes([signal.SIGHUP]))
        assert await anext(orders) == b"second"
    os.close(content._descriptor)


NO_THREAD_AT_FIRST = """
import threading
start = threading.Thread.start
def refuse(self):
    threading.Thread.start = start
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
"""


def test_no_thread_can_be_started(start: Start) -> None:
    server: Server = start(patch=NO_THREAD_AT_FIRST)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(f"{KEPT}: can't start new thread")
    server.wait_for_log("SIGHUP: the certificates were loaded anew")
    assert certificate_of(server)
    assert server.stop() == 0


HASTE = """
from ringtls._cli.server import serving
serving.READ_TIMEOUT = 0.01
"""

#: Threads that trio has for all who do not bring a limit of their own.
DEFAULT_THREADS = 40


def test_a_file_that_hangs_takes_no_thread_from_requests(start: Start, files: Contexts) -> None:
    server: Server = start(patch=HASTE)
    files.certificate.unlink()
    os.mkfifo(files.certificate)

    def is_given_up(turn: int) -> bool:
        return server.log().count(f"{KEPT}: reading the files takes") == turn

    for turn in range(1, DEFAULT_THREADS + 2):
        server.process.send_signal(signal.SIGHUP)
        wait_until(partial(is_given_up, turn))
    assert server.works()


SECOND_FORK_FAILS = """
import os
fork, forks = os.fork, []
def fork_mostly():
    forks.append(None)
    if len(forks) == 2:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork_mostly
"""


def test_systemd_hears_of_a_reload_that_could_not_begin(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
        server: Server = start("--workers", "1", patch=SECOND_FORK_FAILS, env=environment)
        assert manager.recv(1000) == b"READY=1"
        server.process.send_signal(signal.SIGHUP)
        assert manager.recv(1000).startswith(b"RELOADING=1\n")
        assert manager.recv(1000) == b"READY=1"
        assert f"{KEPT}: can't start a process: " in server.log()
        assert manager.recv(1000).startswith(b"RELOADING=1\n")
        assert manager.recv(1000) == b"READY=1"
        server.wait_for_log("worker 1: SIGHUP: the certificates were loaded anew")
        assert server.works()
