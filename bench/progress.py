"""Shows how far a run is: a bar on a terminal, elsewhere a line for each measurement."""

from __future__ import annotations

from typing import TextIO

from ringtls._cli.demo.progress import ERASE_LINE, bar

__all__ = ["Progress"]


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
        if self._is_terminal:
            self._file.write(ERASE_LINE + bar(self._done, self._total, label))
        else:
            self._file.write(f"{100 * self._done // self._total:3} %  {label}\n")
        self._file.flush()
        self._done += 1

    def end(self) -> None:
        if self._is_terminal:
            self._file.write(ERASE_LINE)
            self._file.flush()
