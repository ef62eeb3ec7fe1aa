"""What is built and installed: which files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src/ringtls"


def test_no_package_brings_its_bytecode() -> None:
    """Of a tree that is in use: meson installs all files that are there."""
    text = (ROOT / "meson.build").read_text(encoding="utf-8")
    [listed] = re.findall(r"exclude_directories: \[(.*?)\]", text, re.DOTALL)
    packages = {path.parent.relative_to(SOURCES) for path in SOURCES.rglob("*.py")}
    assert sorted(re.findall(r"'(.*?)'", listed)) == sorted(
        str(package / "__pycache__") for package in packages
    )
