"""Where io_uring is refused epoll does its work. Where it is forced there is one clear error, and
the socket is not lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ringtls._engine import availability as _availability
from ringtls._engine.availability import remedy, sysctl_forbids, unavailable
from ringtls._engine.ring import Ring

from .support.engines import io_uring_only
from .support.streams import open_fds
from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent

USE_FORCED = """
import socket, sys, trio, ringtls
from tests.support.seccomp import forbid_io_uring
forbid_io_uring(int(sys.argv[1]))
async def main():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ringtls.SocketStream(ours)
        except ringtls.RingUnavailableError as error:
            print(error.errno, error)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await stream.send_all(b"not lost")
        assert theirs.recv(100) == b"not lost"
trio.run(main)
"""

USE_REFUSED = """
import logging, socket, sys, threading, trio, ringtls, ringtls.blocking
from tests.support.seccomp import forbid
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
forbid(sys.argv[2], int(sys.argv[1]))
async def main():
    ours, theirs = socket.socketpair()
    async with ringtls.SocketStream(ours) as a, ringtls.SocketStream(theirs) as b:
        await a.send_all(b"hello")
        assert await b.receive_some(100) == b"hello"
        assert ringtls.statistics().engine == "epoll"
def block():
    ours, theirs = socket.socketpair()
    with ringtls.blocking.SocketStream(ours) as a, theirs:
        a.send_all(b"hello")
        assert theirs.recv(100) == b"hello"
trio.run(main)
trio.run(main)
thread = threading.Thread(target=block)
thread.start()
thread.join()
"""

WORDS = {
    errno.EPERM: "seccomp",
    errno.ENOSYS: "seccomp",
    errno.EINVAL: "Linux 6.1 or newer",
    errno.ENOMEM: "ulimit -l",
    errno.EMFILE: "ulimit -n",
}

#: Each takes a process: one is enough for every day.
ERRORS = [
    pytest.param(error, marks=[pytest.mark.long] if error != errno.EPERM else []) for error in WORDS
]


def run_child(program: str, error: int, engine: str, call: str = "io_uring_setup") -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(error), call],
        cwd=ROOT,
        env=os.environ | {"RINGTLS_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


@pytest.fixture
def like_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_availability, "seccomp_mode", lambda: 2)


@pytest.mark.usefixtures("like_the_child")
@pytest.mark.parametrize("error", ERRORS)
def test_refused_and_forced(error: int) -> None:
    out = run_child(USE_FORCED, error, "io_uring")
    assert out == f"{error} {unavailable(error)}\n"
    assert WORDS[error] in out


@pytest.mark.usefixtures("like_the_child")
@pytest.mark.parametrize("error", [each for each in ERRORS if each.values != (errno.EMFILE,)])
def test_refused_epoll_does_it_and_one_record_says_why(error: int) -> None:
    out = run_child(USE_REFUSED, error, "")
    reason = unavailable(error).strerror
    assert out == f"INFO:ringtls:epoll is used: {reason}\n"


@io_uring_only
@pytest.mark.usefixtures("like_the_child")
@pytest.mark.parametrize("error", [errno.EPERM, pytest.param(errno.ENOSYS, marks=pytest.mark.long)])
def test_refused_after_the_opening(error: int) -> None:
    """A filter that lets io_uring_setup(2) through, and not what comes then."""
    out = run_child(USE_REFUSED, error, "", "io_uring_enter")
    assert out == f"INFO:ringtls:epoll is used: {unavailable(error).strerror}\n"


WITH_ANOTHER_FILE = """
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ringtls._engine._native":
            return importlib.util.spec_from_file_location(name, file)
file = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
"""
IMPORTED = """
import ringtls
try:
    ringtls.TlsStream
except ImportError as error:
    print(error)
"""
COMMAND = """
from ringtls._cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [
        (IMPORTED, [], 0),
        (COMMAND, ["doctor"], 1),
        pytest.param(COMMAND, ["--help"], 1, marks=pytest.mark.long),
    ],
    ids=["import", "doctor", "help"],
)
def test_an_engine_that_does_not_load(
    program: str, arguments: list[str], status: int, tmp_path: Path
) -> None:
    """As where liburing is missing: here the dynamic linker finds that it is no library."""
    file = tmp_path / "_native.abi3.so"
    file.write_bytes(b"none")
    command = [sys.executable, "-c", WITH_ANOTHER_FILE + program, str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == status
    [line] = (done.stderr if status else done.stdout).splitlines()
    assert re.search(rf"the engine can't be loaded: .*{file}: ", line)  # then the linker's words
    assert "install the package liburing2" in line


@pytest.mark.usefixtures("like_the_child")
def test_without_a_descriptor_there_is_neither() -> None:
    out = run_child(USE_FORCED, errno.EMFILE, "")
    assert out == f"{errno.EMFILE} {unavailable(errno.EMFILE)}\n"


def test_epoll_when_asked_for() -> None:
    out = run_child(USE_REFUSED, errno.EPERM, "epoll")
    assert out == "INFO:ringtls:epoll is used: it was asked for\n"


def test_an_engine_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGTLS_ENGINE", "kqueue")
    fds = open_fds()
    with pytest.raises(ValueError, match="RINGTLS_ENGINE is 'kqueue': set it to io_uring or epoll"):
        Ring()
    assert open_fds() == fds


@pytest.mark.parametrize(
    ("error", "disabled", "version", "words"),
    [
        (errno.EPERM, 1, (6, 6), "set kernel.io_uring_group to the number of a group"),
        (errno.EPERM, 2, (6, 6), "sysctl -w kernel.io_uring_disabled=0"),
        (errno.ENOSYS, None, (5, 0), "newer"),
        (errno.EIO, 0, (6, 6), "io_uring_setup(2)"),
    ],
)
def test_the_remedy_fits_the_cause(
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    disabled: int | None,
    version: tuple[int, int],
    words: str,
) -> None:
    monkeypatch.setattr(_availability, "io_uring_disabled", lambda: disabled)
    monkeypatch.setattr(_availability, "_is_exempt", lambda: False)
    monkeypatch.setattr(_availability, "kernel_version", lambda: version)
    assert words in remedy(error)
    assert os.strerror(error) in str(unavailable(error))


ALL_IDS = f"0 0 {2**32 - 1}\n"
SOME_IDS = "0 100000 65536\n"
ADMIN = "CapEff:\t000001ffffffffff\n"
NOT_ADMIN = "CapEff:\t00000000a80425fb\n"


@pytest.mark.parametrize(
    ("disabled", "group", "capabilities", "uid_map", "forbids"),
    [
        (0, -1, NOT_ADMIN, ALL_IDS, False),
        (1, -1, NOT_ADMIN, ALL_IDS, True),
        (1, -1, ADMIN, ALL_IDS, False),
        (1, -1, ADMIN, None, False),
        (1, -1, ADMIN, SOME_IDS, True),
        (1, os.getegid(), NOT_ADMIN, ALL_IDS, False),
        (2, os.getegid(), ADMIN, ALL_IDS, True),
    ],
)
def test_whom_the_sysctl_lets(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    disabled: int,
    group: int,
    capabilities: str,
    uid_map: str | None,
    forbids: bool,
) -> None:
    """Where it lets this process a filter is what refuses."""
    monkeypatch.setattr(_availability, "_PROC", tmp_path)
    for directory in ("sys/kernel", "self"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "sys/kernel/io_uring_disabled").write_text(f"{disabled}\n")
    (tmp_path / "sys/kernel/io_uring_group").write_text(f"{group}\n")
    (tmp_path / "self/status").write_text(f"Name:\tx\n{capabilities}Seccomp:\t2\n")
    if uid_map is not None:
        (tmp_path / "self/uid_map").write_text(uid_map)
    assert sysctl_forbids() is forbids
    assert ("sysctl" in remedy(errno.EPERM)) is forbids
    assert (BY_FILTER in remedy(errno.EPERM)) is not forbids


BY_FILTER = "a seccomp filter forbids it"
BY_SECURITY_MODULE = "a security module of the kernel"
BY_KERNEL = "CONFIG_IO_URING"


@pytest.mark.parametrize(
    ("error", "status", "causes"),
    [
        (errno.EPERM, "Seccomp:\t2\n", {BY_FILTER}),
        (errno.EPERM, "Seccomp:\t0\n", {BY_SECURITY_MODULE}),
        (errno.EPERM, None, {BY_FILTER, BY_SECURITY_MODULE}),
        (errno.ENOSYS, "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n", {BY_FILTER}),
        (errno.ENOSYS, "Seccomp:\t0\n", {BY_KERNEL}),
        (errno.ENOSYS, "Name:\tan emulator's\n", {BY_FILTER, BY_KERNEL}),
        (errno.ENOSYS, None, {BY_FILTER, BY_KERNEL}),
    ],
)
def test_a_filter_is_blamed_only_where_there_may_be_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: int,
    status: str | None,
    causes: set[str],
) -> None:
    if status is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/status").write_text(status)
    monkeypatch.setattr(_availability, "_PROC", tmp_path)
    monkeypatch.setattr(_availability, "kernel_version", lambda: (6, 6))
    found = remedy(error)
    assert {c for c in (BY_FILTER, BY_SECURITY_MODULE, BY_KERNEL) if c in found} == causes
