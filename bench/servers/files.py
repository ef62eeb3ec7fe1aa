"""The files that servers of files serve."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["FILES", "make_files"]

#: By their paths, bytes.
FILES = {"files/small": 13, "files/100k": 100 * 1024, "files/10m": 10 * 1024 * 1024}

#: Seconds. What changed a moment ago may be treated as if it changed still.
AGE = 3600


def make_files(directory: Path) -> None:
    """Make them, with content that can't be compressed."""
    for name, size in FILES.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size))
        os.utime(path, (time.time() - AGE,) * 2)
