"""``ringtls demo``: that it sees each kind of end, and what it sees of ringtls."""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from ringtls._cli import demo, main
from ringtls._cli.demo import proxy
from ringtls._cli.demo.cases import CASES, Connection
from ringtls._cli.demo.comparison import Comparison, compare
from ringtls._cli.demo.interruptions import interruptions_held, unwound_by_signals
from ringtls._cli.demo.measure import RINGTLS, TRIO
from ringtls._cli.demo.peer import End, Observation, observe_end
from ringtls._cli.demo.progress import Progress
from ringtls._cli.demo.proxy.cases import CASES as ENDS
from ringtls._cli.demo.proxy.cases import Case
from ringtls._cli.demo.proxy.comparison import started
from ringtls._cli.demo.proxy.peers import HOST, bound_socket
from ringtls._cli.demo.proxy.terminators import (
    OWN,
    TERMINATORS,
    Setting,
    Terminator,
    TerminatorError,
)

from .conftest import Contexts
from .support.processes import in_child
from .support.streams import reset
from .support.waiting import LIMIT, wait_until

CONNECTIONS = 6
SERVERS = (RINGTLS.name, TRIO.name)

#: What a process may have by default, on many systems.
FEW = 1024


# The peer: connections that are ended by hand


def send_close_notify(server: ssl.SSLSocket) -> None:
    server.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        server.unwrap()


def end_cleanly(server: ssl.SSLSocket) -> None:
    server.sendall(b"data")
    send_close_notify(server)


def end_without_close_notify(server: ssl.SSLSocket) -> None:
    server.sendall(b"data")


def end_after_close_notify_by_reset(server: ssl.SSLSocket) -> None:
    end_cleanly(server)
    reset(server)


def send_more_after_close_notify(server: ssl.SSLSocket) -> None:
    end_cleanly(server)
    with socket.socket(fileno=server.detach()) as below:
        below.send(b"more")


def send_what_is_not_tls(server: ssl.SSLSocket) -> None:
    with socket.socket(fileno=server.detach()) as below:
        below.send(b"this is not a record")


@contextmanager
def server_that(
    end: Callable[[ssl.SSLSocket], None], contexts: Contexts
) -> Iterator[tuple[str, int]]:
    """A server that takes one connection and ends it like this."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with contexts.server.wrap_socket(connection, server_side=True) as server:
            end(server)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        yield listener.getsockname()
        thread.join()


def say_nothing(client: ssl.SSLSocket) -> None:
    """The server ends the connection unasked."""


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (end_cleanly, Observation(End.CLEAN, b"data")),
        (end_without_close_notify, Observation(End.TRUNCATED, b"data")),
        (reset, Observation(End.RESET, b"")),
        (send_more_after_close_notify, Observation(End.CORRUPT, b"data")),
        (send_what_is_not_tls, Observation(End.CORRUPT, b"")),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_peer_sees(
    end: Callable[[ssl.SSLSocket], None], seen: Observation, versioned_contexts: Contexts
) -> None:
    with server_that(end, versioned_contexts) as address:
        assert observe_end(address, versioned_contexts.client, say_nothing) == seen


def test_peer_sees_reset_after_close_notify(versioned_contexts: Contexts) -> None:
    with server_that(end_after_close_notify_by_reset, versioned_contexts) as address:
        observation = observe_end(address, versioned_contexts.client, say_nothing)
    assert observation.end is End.RESET


def test_peer_sees_reset_while_it_sends(contexts: Contexts) -> None:
    def send_forever(client: ssl.SSLSocket) -> None:
        while True:
            client.sendall(bytes(65536))

    with server_that(reset, contexts) as address:
        observation = observe_end(address, contexts.client, send_forever)
    assert observation == Observation(End.RESET, b"")


def test_peer_sees_that_nothing_happens(contexts: Contexts) -> None:
    client_is_done = threading.Event()

    def dawdle(server: ssl.SSLSocket) -> None:
        client_is_done.wait()

    with server_that(dawdle, contexts) as address:
        observation = observe_end(address, contexts.client, say_nothing, timeout=0.2)
        client_is_done.set()
    assert observation == Observation(End.TIMED_OUT, b"")


def test_peer_does_not_hide_other_errors(contexts: Contexts) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            observe_end(unused.getsockname(), contexts.client, say_nothing)


# The data


@pytest.mark.parametrize(
    ("end", "received", "verdict"),
    [
        (End.CLEAN, b"abcdef", End.CLEAN),
        (End.CLEAN, b"abcd", End.CLEAN),
        (End.CLEAN, b"abc", End.CORRUPT),
        (End.CLEAN, b"abcdefg", End.CORRUPT),
        (End.CLEAN, b"abcdeX", End.CORRUPT),
        (End.TRUNCATED, b"abc", End.TRUNCATED),
        (End.TRUNCATED, b"aXc", End.CORRUPT),
        (End.RESET, b"", End.RESET),
    ],
)
def test_verdict_on_what_was_received(end: End, received: bytes, verdict: End) -> None:
    connection = Connection(0, memoryview(b"abcdefgh"))
    connection.offered = 6
    connection.accepted = 4
    assert connection.judge(Observation(end, received)) is verdict


# The measurement


@pytest.fixture(scope="module")
def measured() -> tuple[Comparison, Counter[tuple[str, str, End]]]:
    reported: Counter[tuple[str, str, End]] = Counter()

    def report(case: str, server: str, end: End) -> None:
        reported[case, server, end] += 1

    return trio.run(compare, CONNECTIONS, report), reported


def test_every_connection_is_counted_and_reported(
    measured: tuple[Comparison, Counter[tuple[str, str, End]]],
) -> None:
    comparison, reported = measured
    assert comparison.ends.keys() == {(case.name, name) for case in CASES for name in SERVERS}
    for (case, server), ends in comparison.ends.items():
        assert ends.total() == CONNECTIONS
        for end, count in ends.items():
            assert reported[case, server, end] == count
    assert reported.total() == CONNECTIONS * len(comparison.ends)


def test_every_end_of_ringtls_is_clean_and_no_data_is_lost(
    measured: tuple[Comparison, Counter[tuple[str, str, End]]],
) -> None:
    comparison, _ = measured
    for case in CASES:
        assert comparison.ends[case.name, RINGTLS.name] == {End.CLEAN: CONNECTIONS}, case.name
    assert comparison.all_clean(RINGTLS.name)


def test_control_the_same_cases_do_break_connections(
    measured: tuple[Comparison, Counter[tuple[str, str, End]]],
) -> None:
    comparison, _ = measured
    assert not comparison.all_clean(TRIO.name)
    assert comparison.ends["returns normally", TRIO.name] == {End.CLEAN: CONNECTIONS}
    assert comparison.ends["cancelled while reading", TRIO.name] == {End.TRUNCATED: CONNECTIONS}
    assert comparison.ends["cancelled while sending", TRIO.name][End.CLEAN] == 0
    assert comparison.ends["leaves input unread", TRIO.name][End.CLEAN] == 0


# The command


def made_up(**unusual: Counter[End]) -> Comparison:
    """Two clean ends everywhere, but for one case of the server with this name."""
    ends = {(case.name, name): Counter({End.CLEAN: 2}) for case in CASES for name in SERVERS}
    for server, counted in unusual.items():
        ends["leaves input unread", server] = counted
    return Comparison(2, ends)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-n", "2"]) == 0
    out, err = capsys.readouterr()
    header, _, names, columns, *rows = out.splitlines()
    assert "2 connections" in header
    assert names.split() == list(SERVERS)
    assert columns.split() == ["clean", "truncated", "reset"] * 2
    assert [row.rsplit(maxsplit=6)[0] for row in rows[:7]] == [
        *(case.name for case in CASES),
        "total",
    ]
    assert [row.split()[-6:-3] for row in rows[:7]] == [["2", "0", "0"]] * 6 + [["12", "0", "0"]]
    assert "RFC 8446" in rows[-2]
    assert rows[-1].startswith("Connections whose end was not clean: ringtls 0 of 12, trio")
    assert [line.split(":")[0] for line in err.splitlines()] == [case.name for case in CASES]


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ({End.CLEAN: 2}, 0),
        ({End.CLEAN: 1, End.TRUNCATED: 1}, 1),
        ({End.RESET: 2}, 1),
        ({End.TIMED_OUT: 2}, 1),
        ({End.CORRUPT: 2}, 1),
    ],
)
def test_exit_status_tells_whether_all_was_clean(
    ends: dict[End, int],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def no_comparison(connections: int, on_end: object) -> Comparison:
        return made_up(ringtls=Counter(ends))

    monkeypatch.setattr(demo, "compare", no_comparison)
    assert main(["demo"]) == status
    unclean = 2 - ends.get(End.CLEAN, 0)
    assert f"ringtls {unclean} of 12, trio.SSLStream 0 of 12" in capsys.readouterr().out


def test_unusual_ends_get_a_column_when_there_are_some() -> None:
    assert "corrupt" not in demo.render(made_up())
    rendered = demo.render(made_up(ringtls=Counter({End.CORRUPT: 1, End.TIMED_OUT: 1})))
    lines = rendered.splitlines()
    assert "clean  truncated  reset  timed out  corrupt" in lines[3]
    [row] = [line for line in lines if line.startswith("leaves input unread")]
    assert row.split()[-10:] == ["0", "0", "0", "1", "1", "2", "0", "0", "0", "0"]


@pytest.mark.parametrize("number", ["0", "-1", "many", ""])
def test_number_of_connections_must_be_positive(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", f"--connections={number}"])
    assert exit_.value.code == 2
    assert "is not a positive number" in capsys.readouterr().err


# The progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_four_connections(file: io.StringIO) -> str:
    progress = Progress(file, total=8, per_case=4)
    for server in SERVERS:
        progress.connection_ended("a case", server, End.CLEAN)
        progress.connection_ended("a case", server, End.RESET)
    return file.getvalue()


def test_progress_is_a_line_for_each_case() -> None:
    written = report_four_connections(io.StringIO())
    assert written == "a case: clean ends: ringtls 1, trio.SSLStream 1\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, first, _, _, last, line = report_four_connections(Terminal()).split("\r\x1b[K")
    assert first.startswith("[###-")
    assert first.endswith(" 12 %  a case, ringtls")
    assert last.startswith("[" + 15 * "#" + 15 * "-" + "]")
    assert line == "a case: clean ends: ringtls 1, trio.SSLStream 1\n"


def test_bar_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    written = report_four_connections(Terminal()).split("\r\x1b[K")
    assert all(len(part) == 19 for part in written[1:-1])


# Terminators


def refuse(setting: Setting) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('no such option')"]


def abort(setting: Setting) -> list[str]:
    address = (HOST, setting.port)
    code = f"import os, socket; socket.create_server({address}).accept(); os.abort()"
    return [sys.executable, "-c", code]


def test_terminators(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each case, and a column for each terminator that is installed here."""
    missing = Terminator("missing", "ringtls-test-there-is-no-such-program", "a-package", refuse)
    monkeypatch.setattr(proxy, "TERMINATORS", (*TERMINATORS, missing))
    assert main(["demo", "--proxy", "-n", "1"]) == 0
    title, _, names, *rows = capsys.readouterr().out.splitlines()
    assert title == "What became of 1 connections for each case:"
    shown = [terminator.name for terminator in TERMINATORS if terminator.is_installed]
    assert re.split(r"\s{2,}", names.strip()) == shown
    for case, row in zip(ENDS, rows, strict=False):
        cells = re.split(r"\s{2,}", row)
        assert cells[:2] == [case.name, case.right]
        assert len(cells) == 1 + len(shown)
    rest = rows[len(ENDS) :]
    assert rest[1].startswith("! is an end that was forged")
    assert rest[-1] == "missing is not installed: apt-get install a-package"


def test_a_kept_port_is_for_who_asks_for_it() -> None:
    with bound_socket() as bound:
        address = bound.getsockname()
        with socket.socket() as stranger, pytest.raises(OSError, match="Address already in use"):
            stranger.bind(address)
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(address)
        with socket.create_server(address):
            socket.create_connection(address).close()


#: The signals do what they do by default, whatever these tests were started from.
LONG_DEMO = """
import signal, sys
from ringtls._cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
sys.exit(main(["demo", "--proxy", "-n", "100000"]))
"""


def session(leader: int) -> list[str]:
    """The names of the processes in a session, zombies included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            name, _, rest = (process / "stat").read_text().rpartition(") ")
            if int(rest.split()[3]) == leader:
                found.append(name)
    return found


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_the_terminators_and_removes_their_keys(number: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG_DEMO],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        terminators = sum(terminator.is_installed for terminator in TERMINATORS)

        def has_started() -> bool:  # besides its children there is meson-python's, at imports
            return len(session(process.pid)) > terminators and any(tmp_path.iterdir())

        wait_until(lambda: process.poll() is not None or has_started())
        assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=LIMIT)
    assert process.returncode == (-number if number == signal.SIGINT else 128 + number)
    wait_until(lambda: not session(process.pid))  # hitch does not wait for its workers
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unwound_by_signals(), interruptions_held():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_held_while_a_process_starts_and_comes_once() -> None:
    is_held = False
    with pytest.raises(SystemExit) as raised, unwound_by_signals():
        try:
            with interruptions_held():
                signal.raise_signal(signal.SIGTERM)
                is_held = True
        finally:
            signal.raise_signal(signal.SIGHUP)
    assert raised.value.code == 128 + signal.SIGTERM
    assert is_held
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Forging:
    """Runs in the place of a terminator, and gets some wrong."""

    def count(self, case: Case, connections: int, at_once: int) -> Counter[str]:
        return Counter({case.right: connections - 1, "FIN": 1})


@contextmanager
def forging(terminator: Terminator) -> Iterator[Forging]:
    yield Forging()


def test_an_end_that_is_forged_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "started", forging)
    monkeypatch.setattr(proxy, "TERMINATORS", (OWN,))
    assert main(["demo", "--proxy", "-n", "3"]) == 1
    row = capsys.readouterr().out.splitlines()[3]
    assert re.split(r"\s{2,}", row) == ["backend ends (FIN)", "close_notify 2, !FIN 1"]


@pytest.mark.parametrize("terminator", TERMINATORS, ids=lambda terminator: terminator.name)
def test_a_terminator_starts_where_there_may_be_few_descriptors(terminator: Terminator) -> None:
    """Fewer than it is to have for its connections, and no more to be had by asking."""
    if not terminator.is_installed:
        pytest.skip(f"{terminator.name} is not installed")
    assert Setting.descriptors > FEW

    def start() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))
        with started(terminator):
            pass

    in_child(start)


def test_a_terminator_that_does_not_start() -> None:
    terminator = Terminator("strange", sys.executable, "", refuse)
    said = "strange does not start: no such option"
    with pytest.raises(TerminatorError, match=said), started(terminator):
        raise AssertionError


def test_a_terminator_that_crashes() -> None:
    terminator = Terminator("strange", sys.executable, "", abort)
    said = "strange has crashed: SIGABRT"
    with pytest.raises(TerminatorError, match=said), started(terminator) as running:
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
