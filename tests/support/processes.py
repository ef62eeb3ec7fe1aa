"""Children of this process."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

from .waiting import LIMIT

__all__ = ["exit_status", "fork", "in_child", "wait_for_child"]


def fork() -> int:
    """os.fork(), though there may be other threads; SIGALRM ends a child that hangs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded")  # Python 3.12 and later
        child = os.fork()
    if child == 0:
        signal.alarm(int(LIMIT))
    return child


def exit_status(child: int) -> int:
    """Wait for its end."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def wait_for_child(child: int) -> None:
    assert exit_status(child) == 0


def in_child(function: Callable[[], object]) -> None:
    """Call a function in a forked child: what it raises is printed there, and fails here."""
    child = fork()
    if child == 0:
        status = 1
        try:
            gc.collect()  # what earlier tests have left: it may hold descriptors
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    wait_for_child(child)
