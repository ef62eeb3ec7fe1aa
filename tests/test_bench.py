"""The benchmark: that it measures, what it makes of figures, and what it says when it can't."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import asgi
from bench.candidates import CANDIDATES, Kind
from bench.counters import DURATIONS, Counters
from bench.ends import MEASURES, AnsweringSocket
from bench.measure import possible
from bench.probe import differences
from bench.report import render, shown
from bench.results import Results
from bench.servers.http import BULK_SIZE, Request, parse
from bench.targets import TARGETS, outcomes
from bench.works import WORKS
from ringtls._cli.certificates import make_certificate
from ringtls._cli.demo.cases import CANCELLED_READING, RETURN, Case
from ringtls._cli.demo.measure import throwaway_contexts
from ringtls._cli.demo.peer import End

from .support.waiting import wait_until

PROJECT = Path(bench.__file__).parents[1]

needs_load = pytest.mark.skipif(
    not (shutil.which("wrk") and shutil.which("curl")),
    reason="wrk or curl is not installed: sudo apt-get install -y wrk curl",
)


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--output", directory, *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    print(done.stdout)  # with a failed test: what could not be measured, and why
    return done


def marked_processes(mark: str) -> list[str]:
    """The command lines of those with this variable in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


# A run


@pytest.mark.long
@needs_load
def test_run(tmp_path: Path) -> None:
    words = ("--only", "keep-alive-1,handshakes,bulk-up", "--candidates", "ringtls,trio")
    done = run(tmp_path, "--seconds", "0.2", *words)
    assert done.returncode == 0, done.stderr
    assert "Server CPU time for each request" in done.stdout
    assert "round 1 of 1: bulk upload: trio.SSLStream" in done.stderr

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["about"]["settings"]["rounds"] == 1
    metrics = {
        work: {candidate: set(figures) for candidate, figures in candidates.items()}
        for work, candidates in results["works"].items()
    }
    rates = {"cpu_per_request", "requests_per_second"}
    expected = {
        "keep-alive-1": rates | {"p50", "p99"},
        "handshakes": rates,
        "bulk-up": {"cpu_per_megabyte", "megabytes_per_second"},
    }
    assert metrics == {work: {"ringtls": of, "trio": of} for work, of in expected.items()}
    for candidates in results["works"].values():
        for figures in candidates.values():
            for figure in figures.values():
                assert figure["rounds"] == [figure["median"]]
                assert figure["min"] == figure["median"] == figure["max"] > 0
    assert {(target["work"], target["against"]) for target in results["targets"]} == {
        ("keep-alive-1", "trio"),
        ("handshakes", "trio"),
        ("bulk-up", "trio"),
    }
    # What is measured is what it is called: TLS 1.3, and sessions are resumed only where a server
    # gives tickets.
    for traits in results["traits"].values():
        assert traits["TLS version"] == "TLSv1.3"
        assert traits["resumption with 2 tickets"] is True
        assert traits["resumption without tickets"] is False
    assert results["traits"]["ringtls"] == results["traits"]["trio"]


@pytest.mark.long
@needs_load
def test_other_works(tmp_path: Path) -> None:
    words = ("--only", "bulk-down,idle,close,ends", "--candidates", "ringtls,trio")
    done = run(tmp_path, "--seconds", "0.2", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("ringtls", "trio"):
        assert results["works"]["bulk-down"][name]["cpu_per_megabyte"]["median"] > 0
        assert results["works"]["idle"][name]["memory_per_connection"]["median"] > 1024
        assert results["works"]["close"][name]["close_latency"]["median"] > 0
    for ends in results["ends"]["ringtls"].values():
        assert ends == {"clean": bench.QUICK.ends}
    assert results["ends"]["trio"]["cancelled while reading"] == {"truncated": bench.QUICK.ends}


@pytest.mark.parametrize("case", [RETURN, CANCELLED_READING], ids=lambda case: case.name)
def test_ends_on_asyncio(case: Case) -> None:
    contexts = throwaway_contexts()
    contexts.client.sslsocket_class = AnsweringSocket
    assert MEASURES["asyncio_streams"](case, 2, contexts) == {End.CLEAN: 2}


@pytest.mark.long
@needs_load
@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx(tmp_path: Path) -> None:
    words = ("--only", "keep-alive-1,bulk-up", "--candidates", "ringtls,nginx")
    done = run(tmp_path, "--seconds", "0.2", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["works"]["keep-alive-1"]) == {"ringtls", "nginx"}
    assert results["traits"]["ringtls"] == results["traits"]["nginx"]
    assert results["works"]["bulk-up"]["nginx"]["megabytes_per_second"]["median"] > 0


@pytest.mark.long
@needs_load
def test_servers_of_files(tmp_path: Path) -> None:
    words = ("--only", "keep-alive-1,serve-small,serve-100k", "--candidates", "ringtls_serve")
    done = run(tmp_path, "--seconds", "0.2", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["works"].keys() == {"serve-small", "serve-100k"}
    for figures in results["works"].values():
        assert figures["ringtls_serve"]["requests_per_second"]["median"] > 0


@pytest.mark.long
@needs_load
@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_terminators(tmp_path: Path) -> None:
    works = [work.name for work in WORKS if work.kind is Kind.RELAY]
    words = ("--only", ",".join(works), "--candidates", "ringtls,ringtls_proxy")
    done = run(tmp_path, "--seconds", "0.2", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["works"]) == works
    for figures in results["works"].values():
        assert list(figures) == ["ringtls_proxy"]
        assert all(figure["median"] > 0 for figure in figures["ringtls_proxy"].values())
    pairs = results["works"]["proxy-idle"]["ringtls_proxy"]["memory_per_connection"]
    assert pairs["median"] > 1024
    [traits] = results["traits"].values()
    assert traits["TLS version"] == "TLSv1.3"
    assert traits["resumption with 2 tickets"] is True
    assert traits["resumption without tickets"] is False
    assert [target["work"] for target in results["targets"]] == ["proxy-idle"]


@pytest.mark.long
@needs_load
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    mark = f"BENCH_TEST={tmp_path}"

    def is_loaded() -> bool:
        return any(command.startswith("wrk") for command in marked_processes(mark))

    words = ("--seconds", "60", "--only", "keep-alive-1", "--candidates", "ringtls")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--output", tmp_path / "output"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "BENCH_TEST": str(tmp_path), "TMPDIR": str(temporary)},
    ) as process:
        wait_until(lambda: process.poll() is not None or is_loaded())
        assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=240)
    assert process.returncode == 1
    assert marked_processes(mark) == []
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "output").exists()


# Figures


def test_median_and_spread() -> None:
    results = Results({})
    for value in (3.0, 1.0, 2.0):
        results.add("idle", "ringtls", {"memory_per_connection": value})
    figure = results.figure("idle", "ringtls", "memory_per_connection")
    assert figure
    assert (figure.median, figure.spread) == (2.0, (1.0, 3.0))


def test_ratios() -> None:
    results = Results({})
    for candidate, cpu in (("ringtls", 15e-6), ("trio", 50e-6), ("nginx", 10e-6)):
        results.add("keep-alive-64", candidate, {"cpu_per_request": cpu})
    results.add("keep-alive-4096", "ringtls", {"cpu_per_request": 18e-6})
    results.add("system-calls", "ringtls", {"system_calls_per_request": 0.31})
    found = {
        (outcome.target.work, outcome.target.against): (outcome.ratio, outcome.reached)
        for outcome in outcomes(results.medians)
    }
    assert found == {
        ("keep-alive-64", "trio"): (pytest.approx(0.3), True),
        ("keep-alive-64", "nginx"): (pytest.approx(1.5), False),
        ("keep-alive-4096", "ringtls"): (pytest.approx(1.2), True),
        ("system-calls", ""): (0.31, False),
    }


def test_targets_are_of_works_and_candidates_that_exist() -> None:
    works = {work.name for work in WORKS}
    candidates = {candidate.name for candidate in CANDIDATES}
    for target in TARGETS:
        assert {target.work, target.against_work or target.work} <= works
        assert not target.against or target.against in candidates
        assert target.of in candidates


def test_a_target_of_its_own_is_in_the_unit_of_its_metric() -> None:
    results = Results({})
    results.add("proxy-idle", "ringtls_proxy", {"memory_per_connection": 30 * 1024})
    [outcome] = outcomes(results.medians)
    assert outcome.reached
    assert shown(outcome) == (30, 60)


def test_report() -> None:
    results = Results({})
    results.add("keep-alive-64", "ringtls", {"cpu_per_request": 15e-6})
    results.add("keep-alive-64", "ringtls", {"cpu_per_request": 17e-6})
    results.add("keep-alive-64", "trio", {"cpu_per_request": 50e-6})
    results.ends["ringtls"] = {"returns normally": {"clean": 3, "reset": 1}}
    results.note("The moon was full.")
    results.note("The moon was full.")
    assert render(results, WORKS, CANDIDATES[:3]).splitlines() == [
        "Server CPU time for each request, µs",
        "                         ringtls  ringtls (epoll)  trio.SSLStream",
        "keep-alive-64  16.0 (15.0..17.0)                -            50.0",
        "",
        "Ends that were clean in the eyes of the peer",
        "                  ringtls",
        "returns normally   3 of 4",
        "",
        "ringtls divided by the others, and the most it is to be",
        "                                against  ratio  target",
        "keep-alive-64  cpu_per_request     trio   0.32    0.35  reached",
        "",
        "Notes:",
        "- The moon was full.",
    ]


def test_counters_are_shared(tmp_path: Path) -> None:
    server, harness = (Counters(tmp_path / "counters") for _ in range(2))
    assert (harness.requests, harness.connections, harness.close_durations) == (0, 0, [])
    for _ in range(3):
        server.count_opened()
    server.count_request()
    server.count_closed(0.5)
    assert (harness.requests, harness.connections, harness.close_durations) == (1, 2, [0.5])
    for _ in range(DURATIONS):
        server.count_closed(0.25)
    assert harness.close_durations == [0.25] * DURATIONS


def test_differences_are_named() -> None:
    same: dict[str, object] = {"TLS version": "TLSv1.3", "cipher suite": "A"}
    assert differences({"ringtls": same, "trio": same}) == []
    assert differences({"ringtls": same, "nginx": {**same, "cipher suite": "B"}}) == [
        "Unequal: cipher suite: ringtls A, nginx B."
    ]


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"GET / HTTP/1.1\r\nHost: a", Request(False, False, 0)),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close", Request(False, True, 0)),
        (b"GET /bulk?3 HTTP/1.1\r\nHost: a", Request(True, False, 0)),
        (b"PUT /upload?1 HTTP/1.1\r\ncontent-length: 70", Request(False, False, 70)),
    ],
)
def test_requests(head: bytes, request_: Request) -> None:
    assert parse(head) == request_
    assert BULK_SIZE == 64 * 2**20


# What is missing


@pytest.fixture
def empty_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("empty_path")
def test_without_wrk_and_curl() -> None:
    with pytest.raises(SystemExit, match=r"\n    sudo apt-get install -y wrk curl$"):
        bench.main([])


@pytest.mark.usefixtures("empty_path")
def test_without_nginx_and_perf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.candidates.importlib.util.find_spec", lambda name: None)
    results = Results({})
    present = bench._present(CANDIDATES, results)
    names = [candidate.name for candidate in present]
    relays = [candidate.title for candidate in CANDIDATES if Kind.RELAY in candidate.kinds]
    assert names == ["ringtls", "ringtls_epoll", "trio", "asyncio_streams", "ringtls_serve"]
    works = possible(WORKS, results)
    assert len(works) == len(WORKS) - 1
    assert results.notes == [
        "uvloop streams was left out: uvloop is not installed: pip install uvloop",
        "uvloop protocol was left out: uvloop is not installed: pip install uvloop",
        *(
            f"{name} was left out: nginx is not installed: sudo apt-get install nginx-light"
            for name in ("nginx", *relays)
        ),
        "system calls, connections: 64: left out, perf is not installed: "
        "sudo apt-get install linux-perf",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "keep-alive"], "'keep-alive' is none of keep-alive-1, "),
        (["--candidates", "apache"], "'apache' is none of ringtls, "),
    ],
)
def test_unknown_names(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_ends_of_asgi_servers(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    ends = {name: asgi.count_ends(name, certificate, 2) for name in asgi.COMMANDS}
    assert all(cases == {"clean": 2} for cases in ends[asgi.RINGTLS].values())
    for cases in ends[asgi.HYPERCORN].values():
        assert cases.total() == 2
        assert cases.keys() <= {"truncated", "reset"}  # it depends on the load
