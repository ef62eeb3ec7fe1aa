"""What both drivers do with what is still open when their run, or their thread, ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._interfaces import Ending

__all__ = ["adopt"]

logger = logging.getLogger("ringtls")


def adopt(endings: Iterable[Ending]) -> None:
    """End what is still open, as if it had been dropped."""
    left_open = [ending for ending in endings if not ending.started]
    for ending in left_open:
        ending.start_as_orphan()
    for ending in left_open:
        try:
            ending.warn_unclosed()
        except ResourceWarning as warning:  # the user's filter makes it an error
            logger.error("%s", warning)
