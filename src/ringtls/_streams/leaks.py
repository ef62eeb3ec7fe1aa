"""What is still open, and what was dropped before it was closed: the pytest plugin reads both.

Every object that has to be closed is listed in ``still_open``, by a weak reference, from its
creation until its end begins. If it is dropped before that, ``report`` tells the observers, in
whichever thread the garbage collector noticed it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable
from pathlib import Path
from types import CodeType
from typing import NamedTuple

__all__ = ["Place", "caller", "observers", "report", "still_open"]

_PACKAGE = str(Path(__file__).parent.parent) + os.sep

#: Those of this package that were met, because a server asks at each connection.
_own_files: set[str] = set()

still_open: set[Hashable] = set()

observers: list[Callable[[str], object]] = []


def report(text: str) -> None:
    """Tell the observers what was lost, and where it was made. They must not raise."""
    for observer in observers:
        observer(text)


class Place(NamedTuple):
    """A place in the code; ``str`` gives "file:line". To find the line takes a while."""

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        lines = (at for start, end, at in self.code.co_lines() if start <= self.instruction < end)
        return f"{self.code.co_filename}:{next(lines, None)}"


def caller() -> Place:
    """Where outside this package something is being made."""
    frame = sys._getframe(1)
    while (back := frame.f_back) is not None:
        file = frame.f_code.co_filename
        if file not in _own_files:
            if not file.startswith(_PACKAGE):
                break
            _own_files.add(file)
        frame = back
    return Place(frame.f_code, frame.f_lasti)
