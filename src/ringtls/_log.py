"""The log records of ringtls, which can do no harm.

They are made in the ring's callbacks, where an exception would break off what others wait for.
So one that a filter or a handler of the user's raises is printed, as logging does it with what
goes wrong inside a handler, and nothing else happens (rule C16).
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress

__all__ = ["log"]

logger = logging.getLogger("ringtls")


def log(level: int, message: str, *args: object, failure: BaseException | None = None) -> None:
    """Log a record of the logger ``ringtls``, with the traceback of ``failure`` if there is one."""
    try:
        logger.log(level, message, *args, exc_info=failure)
    except BaseException as error:
        if logging.raiseExceptions and sys.stderr is not None:
            with suppress(Exception):
                traceback.print_exception(error)
