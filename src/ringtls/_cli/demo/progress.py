"""Shows how far a comparison is: a bar on a terminal, elsewhere a line for each case."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TextIO

from .peer import End

__all__ = ["ERASE_LINE", "Progress", "bar"]

BAR_WIDTH = 30
ERASE_LINE = "\r\x1b[K"


def bar(done: int, total: int, label: str) -> str:
    """A line for a terminal: how much is done, and what is being done."""
    filled = BAR_WIDTH * done // total
    line = f"[{'#' * filled:-<{BAR_WIDTH}}] {100 * done // total:3} %  {label}"
    return line[: shutil.get_terminal_size().columns - 1]


class Progress:
    """What is shown while connections are measured.

    Args:
      total: how many connections there will be.
      per_case: how many there are in each case.
    """

    def __init__(self, file: TextIO, total: int, per_case: int) -> None:
        self._file = file
        self._total = total
        self._per_case = per_case
        self._is_terminal = file.isatty()
        self._seen = 0
        self._clean: Counter[str] = Counter()

    def connection_ended(self, case: str, server: str, end: End) -> None:
        self._seen += 1
        self._clean[server] += end is End.CLEAN
        if self._is_terminal:
            self._draw(f"{case}, {server}")
        if self._seen % self._per_case == 0:
            self._finish_case(case)

    def _draw(self, label: str) -> None:
        self._file.write(ERASE_LINE + bar(self._seen, self._total, label))
        self._file.flush()

    def _finish_case(self, case: str) -> None:
        if self._is_terminal:
            self._file.write(ERASE_LINE)
        clean = ", ".join(f"{server} {count}" for server, count in self._clean.items())
        self._file.write(f"{case}: clean ends: {clean}\n")
        self._file.flush()
        self._clean.clear()
