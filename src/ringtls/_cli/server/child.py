"""A process that was forked from this one."""

from __future__ import annotations

import os
import signal

__all__ = ["Child"]


class Child:
    """A process, which ``exit_code`` or ``wait`` reaps."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def exit_code(self) -> int | None:
        """As subprocess.Popen has it; None while it lives. To be called until it does not."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end."""
        os.waitpid(self.pid, 0)
