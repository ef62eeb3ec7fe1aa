"""Leaks of the engine, found by LeakSanitizer when all tests are over (script/test-asan).

1. CPython, cffi and cryptography leave memory behind, some on purpose. So a leak counts if it was
   allocated in the extension: its stack goes through csrc.
2. The check is made while the interpreter lives: what Python can still reach is not a leak.
3. A check that finds nothing must be able to find something: some memory is leaked on purpose, and
   must be reported.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import tempfile
from pathlib import Path

import pytest

#: A size that nothing else has.
_OUR_OWN = 54321


def _leak_on_purpose(libc: ctypes.CDLL) -> None:
    for _ in range(10):  # a register or a stack slot may still hold one
        libc.malloc(_OUR_OWN)


def _report(libc: ctypes.CDLL) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "report")
        libc.__sanitizer_set_report_path(path.encode())
        libc.__lsan_do_recoverable_leak_check()
        libc.__sanitizer_set_report_path(b"stderr")
        return "".join(part.read_text() for part in Path(directory).iterdir())


def engine_leaks() -> list[str]:
    """What the extension has allocated and nobody can reach, with its stack."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    _leak_on_purpose(libc)
    gc.collect()
    leaks = _report(libc).split("\n\n")
    if not any(f"leak of {_OUR_OWN * n} byte" in leak for leak in leaks for n in range(1, 11)):
        raise RuntimeError("LeakSanitizer did not find what was leaked on purpose")
    return [leak for leak in leaks if re.search(r"^ *#\d.*(csrc/|/_native\.)", leak, re.MULTILINE)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if leaks := engine_leaks():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\n\nThe engine leaks:", *leaks, sep="\n\n")
