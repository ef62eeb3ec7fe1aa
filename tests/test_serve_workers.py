"""``ringtls serve --workers``, SIGHUP and inherited sockets: the real command, real signals."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from ringtls._cli import main
from ringtls._cli.server.errors import StartError
from ringtls._cli.server.listening import Inherited, take_inherited
from ringtls._cli.server.workers import FIRST_PAUSE

from .conftest import Contexts
from .support.server import (
    MIB,
    PATIENCE,
    TEXT,
    WORKERS,
    Server,
    Start,
    both_modes,
    certificate_of,
    copied,
    fails,
    head,
    is_alive,
    read_to_end,
    replace_certificate,
    starting,
    wait_until_refused,
)
from .support.waiting import wait_until

ROOT = Path(__file__).parent.parent

#: With as many connections each of two workers has one, but for one case in 128.
MANY = 8

#: Bytes that are more than the kernel holds for a connection.
LARGE = 6 * MIB


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    (root / "text.txt").write_bytes(TEXT)
    with (root / "large").open("wb") as file:
        file.truncate(LARGE)
    return root


@pytest.fixture
def files(contexts: Contexts, tmp_path: Path) -> Contexts:
    return copied(contexts, tmp_path)


@pytest.fixture
def start(files: Contexts, site: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(files, site, tmp_path) as start:
        yield start


def kill(server: Server, worker: int) -> None:
    """Kill a worker, and wait until another has taken its place."""
    before = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(set(server.workers()) - set(before)) == 1)


def downloads(server: Server, stack: ExitStack, number: int = MANY) -> list[ssl.SSLSocket]:
    """Connections with a response under way, that wait for us to take it in."""
    socks = [stack.enter_context(server.tls(receive_buffer=65536)) for _ in range(number)]
    for sock in socks:
        sock.sendall(head("/large"))
        assert sock.recv(1)
    return socks


def assert_complete(socks: list[ssl.SSLSocket]) -> None:
    for sock in socks:
        assert len(read_to_end(sock)) > LARGE


# Serving


def test_all_workers_serve_one_port(start: Start) -> None:
    server = start(*WORKERS)

    def all_have_served() -> bool:
        with server.tcp() as sock:
            sock.sendall(b"no TLS")
        return all(f"worker {number}: 127.0.0.1:" in server.log() for number in (1, 2))

    wait_until(all_have_served)
    assert len(server.workers()) == 2
    assert server.works()
    assert server.stop() == 0
    assert server.stdout.read() == ""  # the address was told once


def test_auto_is_one_worker_for_each_cpu(start: Start) -> None:
    assert len(start("--workers", "auto").workers()) == len(os.sched_getaffinity(0))


def test_session_tickets_are_good_for_all_workers(start: Start, contexts: Contexts) -> None:
    server = start(*WORKERS)
    with server.tls() as sock:
        sock.sendall(head("/text.txt", "Connection: close"))
        read_to_end(sock)
        session = sock.session
    for _ in range(MANY):
        with contexts.client.wrap_socket(
            server.tcp(), server_hostname="localhost", session=session
        ) as sock:
            assert sock.session_reused


# Crashes


def test_a_killed_worker_is_replaced(start: Start) -> None:
    server = start(*WORKERS)
    first, second = server.workers()
    kill(server, first)
    assert second in server.workers()
    assert f"worker 1: process {first} was killed by signal 9; another" in server.log()
    assert all(server.works() for _ in range(MANY))
    assert server.stop() == 0


def test_what_waits_to_be_accepted_survives_a_crash(start: Start) -> None:
    server = start(*WORKERS)
    workers = server.workers()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    stat = [Path(f"/proc/{worker}/stat") for worker in workers]
    wait_until(lambda: all(") T " in path.read_text() for path in stat))
    with ExitStack() as stack:
        waiting = [stack.enter_context(server.tcp()) for _ in range(MANY)]
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        for tcp in waiting:
            sock = stack.enter_context(server.wrap(tcp))
            sock.sendall(head("/text.txt", "Connection: close"))
            assert read_to_end(sock).endswith(TEXT)


# The drain


def test_drain(start: Start) -> None:
    server = start(*WORKERS, "--graceful-timeout", "3600")
    workers = server.workers()
    with ExitStack() as stack:
        idle = [stack.enter_context(server.tls()) for _ in range(MANY)]
        busy = downloads(server, stack)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        for sock in idle:
            assert read_to_end(sock) == b""
        assert_complete(busy)
    assert server.wait() == 0
    assert not any(map(is_alive, workers))


@both_modes
def test_a_drain_that_may_take_as_long_as_it_takes(start: Start, mode: tuple[str, ...]) -> None:
    """Longer than the system's calls can wait."""
    server = start(*mode, "--graceful-timeout", "1e20")
    with ExitStack() as stack:
        busy = downloads(server, stack)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        assert_complete(busy)
    assert server.wait() == 0


def test_signals_for_the_whole_process_group_count_once(start: Start) -> None:
    server = start(*WORKERS, "--graceful-timeout", "3600", start_new_session=True)
    with ExitStack() as stack:
        busy = downloads(server, stack)
        os.killpg(server.process.pid, signal.SIGINT)  # as Ctrl-C does
        wait_until_refused(server)
        assert_complete(busy)
    assert server.wait() == 0


def test_second_signal_ends_the_drain(start: Start) -> None:
    server = start(*WORKERS, "--graceful-timeout", "3600")
    workers = server.workers()
    with ExitStack() as stack:
        (busy,) = downloads(server, stack, 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("1 connection is cut short")
        assert len(read_to_end(busy)) < LARGE
    assert server.wait() == 0
    assert not any(map(is_alive, workers))


@both_modes
def test_sighup_does_not_end_the_drain(start: Start, mode: tuple[str, ...]) -> None:
    server = start(*mode, "--graceful-timeout", "3600")
    with ExitStack() as stack:
        busy = downloads(server, stack)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        server.process.send_signal(signal.SIGHUP)
        assert_complete(busy)
    assert server.wait() == 0
    assert "certificate" not in server.log()


def test_worker_that_crashes_in_the_drain_is_not_replaced(start: Start) -> None:
    server = start(*WORKERS, "--graceful-timeout", "3600")
    with ExitStack() as stack:
        downloads(server, stack, 2 * MANY)  # so that each worker has one for certain
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        left = server.workers()
        for worker in left:
            os.kill(worker, signal.SIGKILL)
            server.wait_for_log(f"process {worker} was killed by signal 9\n")
            time.sleep(2 * FIRST_PAUSE)
        assert server.wait() == 1
    assert "crashes" not in server.log()


def test_workers_drain_when_the_supervisor_is_killed(start: Start) -> None:
    server = start(*WORKERS, "--graceful-timeout", "3600")
    kill(server, server.workers()[0])
    workers = server.workers()
    with ExitStack() as stack:
        busy = downloads(server, stack)
        server.process.kill()
        for number in (1, 2):
            server.wait_for_log(f"worker {number}: the supervisor is gone")
        wait_until_refused(server)
        assert_complete(busy)
    wait_until(lambda: not any(map(is_alive, workers)))


# SIGHUP


@both_modes
def test_sighup_loads_the_certificate(
    start: Start, files: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server = start(*mode)
    processes = len(server.workers()) + 1
    with server.client() as client:
        client.request("GET", "/text.txt")
        assert client.getresponse().read() == TEXT
        new = replace_certificate(files, tmp_path / "new")
        assert certificate_of(server) != new
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.log().count("the certificates were loaded anew\n") == processes)
        assert {certificate_of(server) for _ in range(MANY)} == {new}
        client.request("GET", "/text.txt")
        assert client.getresponse().read() == TEXT
    if mode:
        kill(server, server.workers()[0])
        assert {certificate_of(server) for _ in range(MANY)} == {new}
    assert server.stop() == 0


@both_modes
def test_bad_certificate_changes_nothing(
    start: Start, files: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server = start(*mode)
    old = certificate_of(server)
    good = files.certificate.read_bytes()
    replace_certificate(files, tmp_path / "new")
    files.certificate.write_bytes(good)  # which is not that of the new key
    server.process.send_signal(signal.SIGHUP)
    reason = f"the key in {files.key} is not that of {files.certificate}\n"
    server.wait_for_log(f"SIGHUP: the certificates stay as they were: {reason}")
    assert server.log().count("SIGHUP") == 1
    if mode:
        kill(server, server.workers()[0])
    assert {certificate_of(server) for _ in range(MANY)} == {old}
    assert server.works()
    assert server.stop() == 0


LATE_SIGNALS = """
import os, signal, trio
from ringtls._cli.server.serving import own_signals
def send_all():
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
async def main():
    with own_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        print(await anext(received))
        send_all()
    send_all()
trio.run(main)
send_all()
print("not killed")
"""


def test_signals_after_the_end_are_ignored() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LATE_SIGNALS], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "1\nnot killed\n", "")


# Starting


def test_port_of_another_server_with_workers(start: Start, files: Contexts) -> None:
    address = f"127.0.0.1:{start(*WORKERS).port}"
    said = fails(
        *WORKERS, "--certfile", str(files.certificate), "--keyfile", str(files.key), bind=address
    )
    assert said.startswith(f"ringtls: can't listen on {address}: Address already in use; ")


def test_bad_certificate_at_the_start(files: Contexts) -> None:
    said = fails(*WORKERS, "--certfile", str(files.certificate))
    assert said.startswith("ringtls: no certificate with its key in ")


def test_no_io_uring_where_it_is_forced(files: Contexts) -> None:
    command = "import errno; from tests.support.seccomp import *; forbid_io_uring(errno.EPERM);"
    command += "import ringtls._cli, sys; sys.exit(ringtls._cli.main())"
    arguments = ["serve", *WORKERS, "--bind", "127.0.0.1:0"]
    arguments += ["--certfile", str(files.certificate), "--keyfile", str(files.key)]
    run = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=ROOT,
        env=os.environ | {"RINGTLS_ENGINE": "io_uring"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("ringtls: io_uring is not available: ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "\N{SUPERSCRIPT TWO}", ""])
def test_bad_number_of_workers(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"--workers={number}"])
    said = capsys.readouterr().err
    assert said.endswith(f"{number!r} is neither a number of processes nor 'auto'\n")


# Inherited sockets


@both_modes
def test_inherited_socket(start: Start, mode: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number, port = listening.fileno(), listening.getsockname()[1]
        server = start(*mode, bind=f"fd://{number}", pass_fds=[number])
    assert server.port == port
    with ExitStack() as stack:
        busy = downloads(server, stack)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refused(server)  # so it is closed during the drain
        assert_complete(busy)
    assert server.wait() == 0


def datagrams() -> socket.socket:
    return socket.socket(type=socket.SOCK_DGRAM)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (socket.socket, "does not listen"),
        (datagrams, "is not a TCP or local socket"),
        (tempfile.TemporaryFile, "is not a socket"),
    ],
)
def test_inherited_descriptor_of_another_kind(
    make: Callable[[], socket.socket | IO[bytes]], what: str
) -> None:
    with make() as file, ExitStack() as stack:
        bind = Inherited(file.fileno())
        with pytest.raises(StartError, match=f"can't listen on {bind}: this descriptor {what}; "):
            take_inherited([bind], stack)
        os.fstat(file.fileno())  # it is open still


@pytest.mark.parametrize("option", ["--bind", "--metrics"])
def test_inherited_socket_given_twice(files: Contexts, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        words = ["--certfile", str(files.certificate), "--keyfile", str(files.key)]
        bind = f"fd://{number}"
        assert "given twice" in fails(*words, option, bind, bind=bind, pass_fds=[number])


@pytest.mark.parametrize("option", ["--bind", "--metrics"])
def test_descriptor_that_is_not_inherited(files: Contexts, option: str) -> None:
    """Though the socket of the other address would get its number, the lowest that is free."""
    words = ["--certfile", str(files.certificate), "--keyfile", str(files.key)]
    said = fails(
        *words,
        option,
        "127.0.0.1:0",
        bind="fd://3",
        close_fds=True,  # so it is a process of its own, and has no such descriptor
    )
    assert "can't listen on fd://3: this descriptor is not open; " in said


# The supervisor alone, with workers that do other things

SUPERVISE = """
import logging, os, sys, trio
from ringtls._cli.server.errors import StartError
from ringtls._cli.server.supervisor import supervise
logging.basicConfig(format="%(message)s", stream=sys.stdout)
graceful_timeout = 3600
{work}
def say(text):
    os.write(1, (text + "\\n").encode())
class Loader:
    def read(self):
        return b"read"
    def use(self, data):
        say(f"loaded {{data}}")
        return True
    def give_up(self):
        say("given up")
{loader}
sys.exit(supervise([[], []], work, Loader(), graceful_timeout, lambda: say("ready")))
"""


@contextmanager
def supervisor(work: str, loader: str = "") -> Iterator[subprocess.Popen[str]]:
    """A supervisor of two workers that run this source."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE.format(work=work, loader=loader)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_lines(process: subprocess.Popen[str], number: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(number)]


CRASH_SOON = """
def work(number, sockets, signals, on_ready):
    on_ready()
    if number == 1:
        os._exit(3)
    trio.run(signals.__anext__)
"""


def test_pause_doubles_and_a_signal_ends_it() -> None:
    with supervisor(CRASH_SOON) as process:
        assert next_lines(process, 1) == ["ready\n"]
        for line, pause in zip(next_lines(process, 4), (0.1, 0.2, 0.4, 0.8), strict=True):
            assert line.startswith("worker 1: process ")
            assert line.endswith(f" ended with exit status 3; another starts in {pause} s\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


FAIL_AT_START = """
import time
from ringtls._cli.server import workers
workers.START_TIMEOUT = {timeout}
def work(number, sockets, signals, on_ready):
    if number == 2:
        {failure}
    on_ready()
    say("the other has begun")
    trio.run(signals.__anext__)
    say("the other ends")
"""


@pytest.mark.parametrize(
    ("failure", "timeout", "said"),
    [
        ("os._exit(3)", PATIENCE, r"process \d+ of a worker ended at its start"),
        pytest.param("raise StartError('no luck')", PATIENCE, "no luck", marks=pytest.mark.long),
        pytest.param(
            f"time.sleep({PATIENCE})",
            0.5,
            r"process \d+ of a worker is stuck at its start",
            marks=pytest.mark.long,
        ),
    ],
)
def test_worker_that_can_not_begin(failure: str, timeout: float, said: str) -> None:
    with supervisor(FAIL_AT_START.format(failure=failure, timeout=timeout)) as process:
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
    assert output in ("", "the other has begun\nthe other ends\n")
    assert re.search(f"StartError: {said}\n$", errors)


START_WHEN_TOLD = """
def work(number, sockets, signals, on_ready):
    say("forked")
    os.read(0, 1)
    on_ready()
    say(f"signal {trio.run(signals.__anext__)}")
"""


def test_signal_during_the_start_is_not_lost() -> None:
    with supervisor(START_WHEN_TOLD) as process:
        assert next_lines(process, 2) == ["forked\n"] * 2
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate("xx", PATIENCE)
        assert process.returncode == 0, errors
    assert sorted(output.splitlines()) == ["ready", "signal 15", "signal 15"]


STUCK = """
def work(number, sockets, signals, on_ready):
    on_ready()
    os.read(0, 1)
"""


def held_by_a_channel() -> int:
    """How many signals, a byte each, nobody needs to read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for number in itertools.count():
            try:
                ours.send(b"x")
            except BlockingIOError:
                return number
    raise AssertionError


@pytest.mark.long
def test_worker_that_takes_no_signals_holds_nobody_up() -> None:
    with supervisor(STUCK) as process:
        assert next_lines(process, 1) == ["ready\n"]
        for _ in range(held_by_a_channel() + 1):
            process.send_signal(signal.SIGHUP)
            assert next_lines(process, 1) == ["loaded b'read'\n"]


def test_a_worker_that_does_not_end_is_killed() -> None:
    with supervisor(STOPPED) as process:
        assert next_lines(process, 1) == ["ready\n"]
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
    for number in (1, 2):
        assert f"worker {number}: does not end, and is killed\n" in output
        assert re.search(rf"worker {number}: process \d+ was killed by signal 9\n", output)


STOPPED = """
import signal
from ringtls._cli.server import supervisor
supervisor.END_TIMEOUT = graceful_timeout = 0.1
def work(number, sockets, signals, on_ready):
    on_ready()
    os.kill(os.getpid(), signal.SIGSTOP)
"""

SLOW_READER = """
from ringtls._cli.server import reading
reading.READ_TIMEOUT = 1
def work(number, sockets, signals, on_ready):
    on_ready()
    trio.run(signals.__anext__)
"""

READ_FOR_EVER = """
def read(self):
    say("reads")
    os.read(0, 1)
Loader.read = read
"""


def test_reading_that_takes_too_long_is_given_up() -> None:
    with supervisor(SLOW_READER, READ_FOR_EVER) as process:
        assert next_lines(process, 1) == ["ready\n"]
        process.send_signal(signal.SIGHUP)
        assert next_lines(process, 2) == ["reads\n", "given up\n"]
        process.send_signal(signal.SIGHUP)
        assert next_lines(process, 1) == ["reads\n"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
