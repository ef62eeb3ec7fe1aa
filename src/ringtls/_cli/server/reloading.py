"""SIGHUP: the files of the credentials are read again, and used if they are good.

Reading may block, so it is done elsewhere: in a thread, or a process of its own. What it gives is
bytes, to be passed on to other processes, which all use the same.
"""

from __future__ import annotations

import logging
import pickle

from .credentials import Bundle, Credentials, Files

__all__ = ["KEPT", "READ_TIMEOUT", "Reloader"]

logger = logging.getLogger("ringtls.server")

#: Seconds that reading may take.
READ_TIMEOUT = 30

#: What the log says before the reason.
KEPT = "SIGHUP: the certificates stay as they were"


class Reloader:
    """The credentials of a server, and the files that they are from."""

    def __init__(self, files: Files, credentials: Credentials) -> None:
        self._files = files
        self._credentials = credentials

    def read(self) -> bytes:
        """What ``use`` wants. May block; raises nothing."""
        result: Bundle | str
        try:
            result = self._files.read()
        except Exception as error:
            result = _reason(error)
        return pickle.dumps(result)

    def use(self, data: bytes) -> bool:
        """Use what was read by this program; False if it can't be used, for whatever reason: all
        stays as it was."""
        try:
            result = pickle.loads(data) if data else "reading the files failed"
            if isinstance(result, str):
                return self._keep(result)
            self._credentials.use(result)
        except Exception as error:
            return self._keep(_reason(error))
        logger.info("SIGHUP: the certificates were loaded anew")
        return True

    def give_up(self) -> None:
        """Reading took too long."""
        self._keep(f"reading the files takes more than {READ_TIMEOUT} s")

    def _keep(self, reason: str) -> bool:
        logger.error("%s: %s", KEPT, reason)
        return False


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else repr(error)
