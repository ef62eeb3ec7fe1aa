"""Signals that end a program which has started others.

1. What is started is ended, and what is made removed, as the stack unwinds. So a signal has to be
   an exception: SIGINT is KeyboardInterrupt, and SIGHUP and SIGTERM are SystemExit.
2. No exception comes between the start of a process and the moment in which somebody is to end it.
3. Once one of SIGHUP and SIGTERM has come both are ignored: they don't interrupt the unwinding.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptions_held", "unwound_by_signals"]

SIGNALS = (signal.SIGHUP, signal.SIGTERM)


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Meanwhile SIGHUP and SIGTERM raise SystemExit, with the status that a shell gives (128 + n).

    A signal that is ignored, as by nohup(1), or handled stays so. For the main thread.
    """

    def unwind(number: int, frame: object) -> None:
        for each in ended:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    ended = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ended:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number in ended:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interruptions_held() -> Iterator[None]:
    """SIGINT, SIGHUP and SIGTERM come when this is left. For the main thread."""
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in (signal.SIGINT, *SIGNALS)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in held:
            signal.raise_signal(each)
