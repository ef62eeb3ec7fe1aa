"""The log records of ringtls. Logging never raises into its caller.

Records are made in the ring's callbacks, where an exception would break off work that other tasks
wait for. So an exception from a user's filter or handler is printed to stderr, as logging itself
does with errors inside a handler, and goes no further (rule C16).
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
