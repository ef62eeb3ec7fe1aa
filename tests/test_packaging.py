"""What is built and installed: which files, and with which notices."""

from __future__ import annotations

import importlib.metadata
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


def test_the_notice_of_liburing_is_installed() -> None:
    """Wheels have it in them, and its licence wants that."""
    files = importlib.metadata.files("ringtls") or []
    [notice] = [file for file in files if file.match("licenses/LICENSES/liburing.txt")]
    text = notice.read_text(encoding="utf-8")
    assert text.startswith("Copyright 2020 Jens Axboe\n\nPermission is hereby granted")
    assert text == (ROOT / "LICENSES/liburing.txt").read_text(encoding="utf-8")
