"""What is still open, and what was lost before it was closed: for those who watch over tests.

All that has to be closed is in ``still_open`` from its making until its end begins, as something
that does not keep it alive. When it is lost before, ``report`` says so, from whatever thread and
garbage collection notices it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

__all__ = ["observers", "report", "still_open"]

still_open: set[Hashable] = set()

observers: list[Callable[[str], object]] = []


def report(text: str) -> None:
    """Tell the observers what was lost, and where it was made. They must not raise."""
    for observer in observers:
        observer(text)
