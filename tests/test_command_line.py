"""What all commands, and the lint, do with Ctrl-C, and with an output that can't be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from ringtls._cli import doctor, main

from .support.waiting import LIMIT, wait_until

#: Ctrl-C comes as a module is imported; the signal does what it does by default.
INTERRUPTED = """
import signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder)
from ringtls.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["ringtls._cli", "trio", "ringtls._cli.doctor.checks"])
def test_an_interruption_amid_the_imports_is_the_end(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module, "doctor"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert (run.returncode, run.stdout, run.stderr) == (-signal.SIGINT, "", "")


def command(*words: str, stdout: int, unbuffered: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ringtls", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        text=True,
        timeout=LIMIT,
    )


outputs = pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (["--version"], ""),
        pytest.param(["doctor"], "", marks=pytest.mark.long),
        pytest.param(["--version"], "1", marks=pytest.mark.long),
        pytest.param(["doctor"], "1", marks=pytest.mark.long),
    ],
)


@outputs
def test_an_output_that_is_full(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        run = command(*words, stdout=full.fileno(), unbuffered=unbuffered)
    said = "ringtls: [Errno 28] No space left on device\n"
    assert (run.returncode, run.stderr) == (1, said)


@outputs
def test_an_output_that_nobody_reads_any_more(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = command(*words, stdout=writer, unbuffered=unbuffered)
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


def test_help_that_can_not_be_written() -> None:
    with Path("/dev/full").open("wb") as full:
        run = command("demo", "--help", stdout=full.fileno(), unbuffered="")
    said = "ringtls: [Errno 28] No space left on device\n"
    assert (run.returncode, run.stderr) == (1, said)


def test_an_output_that_a_command_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an application of ``ringtls asgi`` may."""
    output = TextIOWrapper(BytesIO())

    def run(arguments: object) -> int:
        output.close()
        return 0

    monkeypatch.setattr(doctor, "run", run)
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["doctor"]) == 0


def lint(*words: str | Path, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ringtls.lint", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_findings_of_the_lint_that_nobody_reads(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import ringtls\nasync def main(sock):\n    ringtls.SocketStream(sock)\n")
    reader, writer = os.pipe()
    os.close(reader)
    with lint(path, stdout=writer) as process:
        os.close(writer)
        _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said) == (-signal.SIGPIPE, "")


def test_an_interrupted_lint(tmp_path: Path) -> None:
    path = tmp_path / "fifo.py"
    os.mkfifo(path)
    opened: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    with lint(path) as process:
        wait_until(is_read)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
        os.close(opened[0])
    assert (process.returncode, said) == (-signal.SIGINT, "")
