"""Shows how far a run is: a bar on a terminal, elsewhere a line for each measurement."""

from __future__ import annotations

import shutil
from typing import TextIO

__all__ = ["Progress"]

BAR_WIDTH = 30
ERASE_LINE = "\r\x1b[K"


class Progress:
    """What is shown while it is measured.

    Args:
      total: how many measurements there will be.
    """

    def __init__(self, file: TextIO, total: int) -> None:
        self._file = file
        self._total = total
        self._is_terminal = file.isatty()
        self._done = 0

    def begin(self, label: str) -> None:
        """The next measurement begins."""
        percent = f"{100 * self._done // self._total:3} %"
        if self._is_terminal:
            filled = BAR_WIDTH * self._done // self._total
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            columns = shutil.get_terminal_size().columns
            self._file.write(ERASE_LINE + f"[{bar}] {percent}  {label}"[: columns - 1])
        else:
            self._file.write(f"{percent}  {label}\n")
        self._file.flush()
        self._done += 1

    def end(self) -> None:
        if self._is_terminal:
            self._file.write(ERASE_LINE)
            self._file.flush()
