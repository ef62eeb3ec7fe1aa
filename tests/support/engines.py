"""Which engine these tests run on, for those that are about one of them, or compile it."""

from __future__ import annotations

import shutil

import pytest

from ringtls._engine.choice import Engine
from ringtls._engine.ring import Ring

__all__ = ["ENGINE", "io_uring_only", "needs_compiler"]


def _engine() -> Engine:
    ring = Ring(buffers=1, buffer_size=4096, sq_entries=8)
    ring.close(timeout=1.0)
    return ring.engine


ENGINE = _engine()

io_uring_only = pytest.mark.skipif(ENGINE is not Engine.IO_URING, reason="is about io_uring")

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no compiler")
