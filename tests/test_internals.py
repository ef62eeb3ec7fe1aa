"""What only the engine's own code can bring about, as C programs (tests/internals)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .support.engines import io_uring_only, needs_compiler
from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "tests/internals").glob("*.c"))


@io_uring_only
@needs_compiler
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program: Path, compiled_engine: dict[str, Path], tmp_path: Path) -> None:
    flags = ["pkg-config", "--cflags", "--libs", "liburing"]
    liburing = subprocess.run(flags, check=True, capture_output=True, text=True).stdout.split()
    sources = map(str, (program, *compiled_engine.values()))
    built = str(tmp_path / "program")
    build = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-Icsrc", *sources, *liburing, "-o", built]
    subprocess.run(build, check=True, cwd=ROOT)
    subprocess.run([built], check=True, timeout=LIMIT)
