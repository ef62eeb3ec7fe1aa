"""Interruptions that come a little later."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptions_held"]


@contextmanager
def interruptions_held() -> Iterator[None]:
    """SIGINT and SIGTERM come when this is left: a process that was started must not get lost."""
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in held:
            signal.raise_signal(each)
