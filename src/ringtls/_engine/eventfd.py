"""An eventfd(2) that is closed once, whatever interrupts its owner.

An owner that was interrupted closes it again. By a number that would close another's file (rule
C17); this object knows whether it is closed.
"""

from __future__ import annotations

import os
from io import FileIO

__all__ = ["open_eventfd"]


def open_eventfd() -> FileIO:
    # In one step of C, within which no signal's handler runs: the number is always somebody's.
    [opened] = map(FileIO, map(os.eventfd, [0], [os.EFD_CLOEXEC | os.EFD_NONBLOCK]))
    return opened
