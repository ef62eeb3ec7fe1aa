"""``ringtls doctor``: what it finds here, and where io_uring is refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringtls._cli import main
from ringtls._cli.demo.peer import End
from ringtls._cli.doctor import checks, ends
from ringtls._cli.doctor.checks import Check, Finding, Status
from ringtls._engine.availability import unavailable

from .support.engines import io_uring_only
from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent

RUN_REFUSED = """
import runpy, sys
from tests.support.seccomp import forbid_io_uring
forbid_io_uring(int(sys.argv.pop(1)))
runpy.run_module("ringtls", run_name="__main__", alter_sys=True)
"""

NAMES = [
    "kernel",
    "kernel.io_uring_disabled",
    "seccomp",
    "io_uring",
    "io_uring operations",
    "engine",
    "wake-ups",
    "RLIMIT_MEMLOCK",
    "RLIMIT_NOFILE",
    "Python",
    "trio",
    "OpenSSL",
    "close_notify",
]


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"]}


def finding_of(name: str) -> Finding:
    [finding] = [result.finding for result in checks.run_checks() if result.name == name]
    return finding


@io_uring_only
def test_json_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert report.keys() == {"ok", "checks"}
    assert report["ok"] is True
    assert [check["name"] for check in report["checks"]] == NAMES
    for check in report["checks"]:
        assert check.keys() == {"name", "status", "found", "remedy"}
        assert check["status"] in ("ok", "warning")
        assert check["found"]
        assert (check["remedy"] is None) == (check["status"] == "ok")
    found = {name: check["found"] for name, check in by_name(report).items()}
    assert os.uname().release in found["kernel"]
    assert ssl.OPENSSL_VERSION in found["OpenSSL"]
    assert "entries" in found["io_uring"]
    assert "cancelled" in found["close_notify"]


def test_text_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out, _ = capsys.readouterr()
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [line.split("] ", 1)[1].strip().split(":")[0] for line in lines] == NAMES


def run_refused(error: int, *arguments: str, engine: str = "") -> subprocess.CompletedProcess[str]:
    """The command where io_uring_setup(2) fails, with RINGTLS_ENGINE."""
    return subprocess.run(
        [sys.executable, "-c", RUN_REFUSED, str(error), *arguments],
        cwd=ROOT,
        env=os.environ | {"RINGTLS_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errno.EPERM, "seccomp profile"),
        pytest.param(errno.ENOSYS, "seccomp profile", marks=pytest.mark.long),
        pytest.param(errno.EINVAL, "run Linux 6.1 or newer", marks=pytest.mark.long),
        pytest.param(errno.ENOMEM, "ulimit -l", marks=pytest.mark.long),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_where_io_uring_is_refused_it_says_why_and_all_works(
    error: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringtls._engine.availability.seccomp_mode", lambda: 2)  # as in the child
    done = run_refused(error, "doctor", "--json")
    assert done.stderr == ""
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    found = by_name(report)
    assert list(found) == NAMES
    refusal = found.pop("io_uring")
    assert refusal["status"] == "warning"
    assert os.strerror(error) in refusal["found"]
    assert advice in refusal["remedy"]
    assert f"{refusal['found']}: {refusal['remedy']}" == unavailable(error).strerror
    assert found.pop("io_uring operations")["status"] == "skipped"
    assert found["engine"]["found"] == "epoll, because io_uring is not available"
    assert found["close_notify"]["status"] == "ok"
    assert found.pop("seccomp")["found"].startswith("2 ")
    assert {check["status"] for check in found.values()} <= {"ok", "warning"}


def test_where_io_uring_is_refused_and_forced() -> None:
    done = run_refused(errno.EPERM, "doctor", "--json", engine="io_uring")
    assert done.returncode == 1
    found = by_name(json.loads(done.stdout))
    assert found["engine"]["status"] == "failed"
    assert os.strerror(errno.EPERM) in found["engine"]["found"]
    assert "unset RINGTLS_ENGINE" in found["engine"]["remedy"]
    assert found["wake-ups"]["status"] == found["close_notify"]["status"] == "skipped"


@pytest.mark.parametrize("engine", ["", pytest.param("epoll", marks=pytest.mark.long)])
def test_demo_where_io_uring_is_refused(engine: str) -> None:
    done = run_refused(errno.EPERM, "demo", "-n", "2", engine=engine)
    assert done.returncode == 0
    assert "Connections whose end was not clean: ringtls 0 of 12" in done.stdout


def test_demo_says_what_to_change_where_io_uring_is_refused_and_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ringtls._engine.availability.seccomp_mode", lambda: 2)  # as in the child
    done = run_refused(errno.EPERM, "demo", engine="io_uring")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"ringtls: {unavailable(errno.EPERM)}\n"


NO_SETTING = (
    "RINGTLS_ENGINE is 'kqueue': set it to io_uring or epoll, or unset it to have what works here"
)


def test_a_setting_that_is_none() -> None:
    done = run_refused(errno.EPERM, "demo", engine="kqueue")
    assert done.returncode == 2
    assert done.stderr == f"ringtls: {NO_SETTING}\n"


def test_the_doctor_tells_of_a_setting_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RINGTLS_ENGINE", "kqueue")
    assert main(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    found = by_name(json.loads(out))
    assert found["engine"]["status"] == "failed"
    assert found["engine"]["remedy"] == NO_SETTING
    assert found["wake-ups"]["status"] == found["close_notify"]["status"] == "skipped"


def test_check_that_crashes_has_failed_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> Finding:
        raise ZeroDivisionError("by zero")

    def pass_with_warning() -> Finding:
        return Finding(Status.WARNING, "not much", "get more")

    warned = Check("second", pass_with_warning)
    monkeypatch.setattr(checks, "CHECKS", (Check("first", crash), warned))
    assert main(["doctor"]) == 1
    crashed, its_remedy, *rest = capsys.readouterr().out.splitlines()
    assert crashed == "[failed]  first: ZeroDivisionError: by zero"
    assert its_remedy.startswith("          ")
    assert rest == ["[warning] second: not much", "          get more"]

    monkeypatch.setattr(checks, "CHECKS", (warned,))
    assert main(["doctor"]) == 0


def test_without_a_directory_for_files_that_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    finding = finding_of("close_notify")
    assert finding.status is Status.WARNING
    assert "No such file or directory" in finding.found
    assert finding.remedy is not None
    assert "set TMPDIR" in finding.remedy


def run_in_a_new_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where the loopback interface is down."""
    unshare = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("there can be no network namespace here")
    return subprocess.run(
        [*unshare, sys.executable, "-m", "ringtls", *arguments],
        env=os.environ | {"RINGTLS_ENGINE": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_without_loopback_the_doctor_warns() -> None:
    done = run_in_a_new_network("doctor", "--json")
    assert done.stderr == ""
    assert done.returncode == 0
    finding = by_name(json.loads(done.stdout))["close_notify"]
    assert finding["status"] == "warning"
    assert finding["found"] == f"OSError: [Errno 101] {os.strerror(errno.ENETUNREACH)}"
    assert "ip link set lo up" in finding["remedy"]


def test_without_loopback_the_demo_says_so_in_a_line() -> None:
    done = run_in_a_new_network("demo", "-n", "3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ringtls: [Errno 101] {os.strerror(errno.ENETUNREACH)}"
    assert "Traceback" not in done.stderr


LOW = ("sh", "-c", 'ulimit -n 10; exec "$@"', "-")


def test_too_few_descriptors_for_a_connection() -> None:
    done = subprocess.run(
        [*LOW, sys.executable, "-m", "ringtls", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    assert done.returncode == 1
    found = by_name(json.loads(done.stdout))
    assert found["RLIMIT_NOFILE"]["status"] == "failed"
    assert "ulimit -n" in found["RLIMIT_NOFILE"]["remedy"]
    assert found["close_notify"]["status"] == "skipped"
    assert found["close_notify"]["found"] == "there are too few file descriptors"


@pytest.mark.parametrize("name", ["engine", "wake-ups", "close_notify"])
def test_an_engine_that_lacks_descriptors_is_not_missing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise unavailable(errno.EMFILE)

    monkeypatch.setattr(checks, "Ring", refuse)
    finding = finding_of(name)
    assert finding.status is Status.FAILED
    assert finding.found == os.strerror(errno.EMFILE)
    assert finding.remedy is not None
    assert "ulimit -n" in finding.remedy


@pytest.mark.parametrize(
    ("error", "status", "found", "advice"),
    [
        (OSError(errno.ENETUNREACH, "no net"), Status.WARNING, "[Errno 101] no net", "lo up"),
        (OSError(errno.EMFILE, "no number"), Status.FAILED, "[Errno 24] no number", "ulimit -n"),
        (OSError(errno.EIO, "no disk"), Status.FAILED, "[Errno 5] no disk", "as a bug"),
    ],
    ids=lambda value: errno.errorcode[value.errno or 0] if isinstance(value, OSError) else None,
)
def test_a_group_is_told_by_what_is_in_it(
    monkeypatch: pytest.MonkeyPatch, error: OSError, status: Status, found: str, advice: str
) -> None:
    lack = OSError(errno.ENETUNREACH, "no net")

    def go_wrong() -> Finding:
        raise ExceptionGroup("two", [error, ExceptionGroup("one", [lack])])

    monkeypatch.setattr(checks, "CHECKS", (Check("all", go_wrong),))
    finding = finding_of("all")
    assert finding.status is status
    words = dict.fromkeys((f"OSError: {found}", f"OSError: {lack}"))
    assert finding.found == "; ".join(words)
    assert finding.remedy is not None
    assert advice in finding.remedy


def test_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "kernel_version", lambda: (5, 15))
    finding = finding_of("kernel")
    assert finding.status is Status.WARNING
    assert finding.remedy is not None
    assert "run Linux 6.1 or newer" in finding.remedy


def test_sysctl_that_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringtls._engine.availability.io_uring_disabled", lambda: 2)
    monkeypatch.setattr(checks, "io_uring_disabled", lambda: 2)
    finding = finding_of("kernel.io_uring_disabled")
    assert finding.status is Status.WARNING
    assert finding.found == "2"
    assert finding.remedy is not None
    assert "sysctl -w kernel.io_uring_disabled=0" in finding.remedy


def test_sysctl_that_lets_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "io_uring_disabled", lambda: 1)
    monkeypatch.setattr(checks, "sysctl_forbids", lambda: False)
    finding = finding_of("kernel.io_uring_disabled")
    assert finding == Finding(Status.OK, "1 (open to few, of which this process is one)")


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ringtls._engine.availability._PROC", tmp_path)
    assert finding_of("seccomp").status is Status.SKIPPED
    assert finding_of("kernel.io_uring_disabled").status is Status.OK
    assert not any("report it" in (result.finding.remedy or "") for result in checks.run_checks())


def test_a_kernel_that_wakes_a_loop_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "wakes_event_loops", lambda: False)
    finding = finding_of("wake-ups")
    assert finding.status is Status.OK  # there is nothing that a user could do
    assert os.uname().release in finding.found
    assert "without DEFER_TASKRUN" in finding.found


def test_old_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", (1, 0, 2, 0, 0))
    finding = finding_of("OpenSSL")
    assert finding.status is Status.FAILED
    assert finding.remedy is not None
    assert "1.1.1" in finding.remedy


@pytest.fixture(params=["RLIMIT_NOFILE", "RLIMIT_MEMLOCK"])
def lowered_limit(request: pytest.FixtureRequest) -> Iterator[str]:
    limit = getattr(resource, request.param)
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (512, hard))
    yield request.param
    resource.setrlimit(limit, (soft, hard))


def test_low_limit(lowered_limit: str) -> None:
    finding = finding_of(lowered_limit)
    assert finding.status is Status.WARNING
    assert "512" in finding.found
    assert finding.remedy is not None
    assert "raise the limit" in finding.remedy


@io_uring_only
def test_ring_smaller_than_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringtls._engine.ring.SQ_ENTRIES", 64)
    finding = finding_of("io_uring")
    assert finding.status is Status.WARNING
    assert "a ring of 64/" in finding.found
    assert finding.remedy is not None
    assert "ulimit -l" in finding.remedy


def test_close_notify_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*arguments: object) -> Counter[End]:
        return Counter({End.TRUNCATED: 1})

    monkeypatch.setattr(ends, "measure", measure)
    finding = finding_of("close_notify")
    assert finding.status is Status.FAILED
    assert "truncated" in finding.found
    assert finding.remedy


WITHOUT_CRYPTOGRAPHY = """
import sys
sys.modules["cryptography"] = None
from ringtls._cli import main
sys.exit(main(["doctor", "--json"]))
"""


def test_without_cryptography_all_else_is_checked() -> None:
    command = [sys.executable, "-c", WITHOUT_CRYPTOGRAPHY]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    found = {check["name"]: check for check in json.loads(run.stdout)["checks"]}
    skipped = {name for name, check in found.items() if check["status"] == "skipped"}
    skipped_anyway = {
        result.name for result in checks.run_checks() if result.finding.status is Status.SKIPPED
    }
    assert skipped == {"close_notify", *skipped_anyway}
    assert "pip install 'ringtls[server]', for cryptography" in found["close_notify"]["found"]
