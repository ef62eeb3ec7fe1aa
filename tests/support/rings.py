"""How tests drive a ring without an event loop."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

import pytest

from ringtls._engine.ring import Ring

from .waiting import LIMIT

__all__ = ["Pair", "drive", "drive_until", "is_awake", "small_queues"]

Pair = tuple[socket.socket, socket.socket]


def small_queues(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """Have rings that are opened from now on hold so many requests, and as many completions."""
    monkeypatch.setattr("ringtls._engine.ring.SQ_ENTRIES", entries)
    monkeypatch.setattr("ringtls._engine.opening.CQ_ENTRIES", entries)


def drive(ring: Ring, timeout: float = 0.0) -> None:
    """Submit, wait for at most so many seconds, and reap."""
    ring.wait(timeout)
    ring.reap()


def drive_until(ring: Ring, is_enough: Callable[[], object]) -> None:
    """Drive the ring until that is true."""
    deadline = time.monotonic() + LIMIT
    while not is_enough():
        assert time.monotonic() < deadline
        drive(ring, 0.01)


def is_awake(ring: Ring) -> bool:
    """True if an event loop would come back to the ring at once."""
    return bool(select.select([ring.sleep_fd], [], [], 0)[0])
