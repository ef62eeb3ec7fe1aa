"""The version is kept in meson.build, and said in the same words everywhere else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import ringtls

ROOT = Path(__file__).parent.parent


def found(file: str, pattern: str) -> str:
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]


def test_version() -> None:
    command = [sys.executable, "-m", "ringtls", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert ringtls.__version__ == found("meson.build", r"^  version: '(.+)',$")
    assert ringtls.__version__ == found("CHANGELOG.md", r"^## (\S+)")
    assert said == f"ringtls {ringtls.__version__}\n"
