"""Signals to this process: at a chosen bytecode, or where the calling thread waits in its ring."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ringtls

from .waiting import is_in_the_ring, wait_until

__all__ = ["PACKAGE", "SignalAtBytecode", "signal_in_the_ring"]

PACKAGE = str(Path(ringtls.__file__).parent)


class SignalAtBytecode:
    """A trace function that counts bytecodes of the package, or of some modules, and raises SIGINT
    at one."""

    def __init__(self, number: int, where: str | tuple[str, ...] = PACKAGE) -> None:
        self.left = number
        self._where = where

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._where):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


@contextmanager
def signal_in_the_ring(
    number: int = signal.SIGINT, *, when: Callable[[], object] = lambda: True
) -> Iterator[threading.Event]:
    """Send this process a signal once the calling thread sleeps in its ring, and ``when`` holds.

    None is sent if the block is left before. Its value is set when one was.
    """
    thread = threading.get_native_id()
    left = threading.Event()
    sent = threading.Event()

    def send() -> None:
        wait_until(lambda: left.is_set() or (when() and is_in_the_ring(thread)))
        if not left.is_set():
            os.kill(os.getpid(), number)
            sent.set()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        left.set()
        sender.join()
