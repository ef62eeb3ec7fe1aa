"""What systemd wants to know of a service: sd_notify(3), without a library."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

__all__ = ["notify", "notify_reloading", "watchdog_interval"]


def notify(*assignments: str) -> None:
    """Tell the service manager, if there is one that wants to know. Never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    # A manager that is gone, or busy, is no reason to stop serving.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(assignments).encode(), address)


def notify_reloading() -> None:
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Seconds between two ``notify("WATCHDOG=1")``; None if nobody waits for them."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", "") not in (
        "",
        str(os.getpid()),
    ):
        return None
    return int(microseconds) / 1e6 / 2
