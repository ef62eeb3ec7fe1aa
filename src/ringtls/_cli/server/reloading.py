"""SIGHUP: the files of the credentials are read again, and used if they are good.

Rules:

1. Reading may block, so it is done elsewhere: in a thread, or a process of its own. What it gives
   is bytes, to be passed on to other processes, which all use the same.
2. What is bad (a file, a key) stays so until somebody mends it, and sends the next SIGHUP. What is
   short (descriptors, memory, threads, processes) passes, so it is tried again each RETRY_INTERVAL
   until it has worked, or the next SIGHUP comes.
"""

from __future__ import annotations

import enum
import logging
import pickle
import ssl
from dataclasses import dataclass

from ringtls._accepting import SHORTAGES

from .credentials import Bundle, Credentials, Files

__all__ = ["KEPT", "READ_TIMEOUT", "RETRY_INTERVAL", "Reloader", "Result"]

logger = logging.getLogger("ringtls.server")

#: Seconds that reading may take.
READ_TIMEOUT = 30

#: Seconds; see rule 2.
RETRY_INTERVAL = 1.0

#: What the log says before the reason.
KEPT = "SIGHUP: the certificates stay as they were"


class Result(enum.Enum):
    """What came of it."""

    USED = enum.auto()
    REFUSED = enum.auto()
    SHORT = enum.auto()


@dataclass(frozen=True)
class _Failure:
    """Why nothing is used."""

    reason: str
    result: Result

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        reason = str(error) if isinstance(error, OSError) else repr(error)
        return cls(reason, Result.SHORT if _is_shortage(error) else Result.REFUSED)


class Reloader:
    """The credentials of a server, and the files that they are from."""

    def __init__(self, files: Files, credentials: Credentials) -> None:
        self._files = files
        self._credentials = credentials

    def read(self) -> bytes:
        """What ``use`` wants. May block; raises nothing, unless there is no memory to say why."""
        try:
            return pickle.dumps(self._files.read())
        except Exception as error:
            return pickle.dumps(_Failure.of(error))

    def use(self, data: bytes) -> Result:
        """Use what was read by this program: nothing, if who read it came to no good end. If that
        can't be, for whatever reason, all stays as it was."""
        try:
            read: Bundle | _Failure = (
                pickle.loads(data) if data else _Failure("reading the files failed", Result.SHORT)
            )
            if isinstance(read, _Failure):
                return self._keep(read)
            self._credentials.use(read)
        except Exception as error:
            return self._keep(_Failure.of(error))
        logger.info("SIGHUP: the certificates were loaded anew")
        return Result.USED

    def give_up(self) -> None:
        """Reading took too long."""
        logger.error("%s: reading the files takes more than %d s", KEPT, READ_TIMEOUT)

    def _keep(self, failure: _Failure) -> Result:
        logger.error("%s: %s", KEPT, failure.reason)
        return failure.result


def _is_shortage(error: BaseException | None) -> bool:
    """True if it, or what has led to it, is one. (Numbers in errors of OpenSSL's are its own.)"""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            if error.errno in SHORTAGES:
                return True
        elif isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False
