"""What SIGHUP has read for a supervisor and its workers: by whom, and how workers get it.

Rules:

1. A file may block whoever reads it. So a process of its own reads, and ends with what it has read,
   or when that took too long.
2. What was read is handed on in memory that all workers have from their start (``Content``): to
   take it out needs no descriptor, of which a worker may have none left.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from .child import Child
from .reloading import READ_TIMEOUT

__all__ = ["Content", "Reading"]


class Content:
    """What was read after SIGHUP, for all workers (rule 2).

    A worker may come upon it while it is being replaced. The digest tells, and the signal for what
    is new is still to come.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("ringtls")

    def put(self, data: bytes) -> None:
        """Replace it.

        Raises:
          OSError: there is no room.
        """
        os.ftruncate(self._descriptor, 0)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.seek(0)
            file.writelines([hashlib.sha256(data).digest(), data])

    def take(self) -> bytes | None:
        """None if it is being replaced."""
        found = _read_all(self._descriptor)
        size = hashlib.sha256().digest_size
        digest, data = found[:size], found[size:]
        return data if hashlib.sha256(data).digest() == digest else None


class Reading(Child):
    """The process that reads files (rule 1); the file in memory gets what it has read.

    Args:
      read: called there; may block.
      begin: called there before: to let go of what is the supervisor's.
    """

    def __init__(self, read: Callable[[], bytes], begin: Callable[[], object]) -> None:
        self._descriptor = os.memfd_create("ringtls")
        try:
            pid = os.fork()
        except OSError:
            os.close(self._descriptor)
            raise
        if pid == 0:
            self._become(read, begin)
        super().__init__(pid)

    def _become(self, read: Callable[[], bytes], begin: Callable[[], object]) -> NoReturn:
        status = 1
        try:
            begin()
            signal.alarm(READ_TIMEOUT)  # its default action ends this process
            with open(self._descriptor, "wb", closefd=False) as file:
                file.write(read())
            status = 0
        finally:
            os._exit(status)

    def take(self) -> bytes:
        """What it has read, after its end: all of it, or a part if it came to no good end."""
        try:
            return _read_all(self._descriptor)
        finally:
            os.close(self._descriptor)

    def end(self) -> None:
        """End it: what it reads is of no use any more."""
        self.kill()
        self.wait()
        os.close(self._descriptor)


def _read_all(descriptor: int) -> bytes:
    """What a file in memory holds."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
