"""Why there is no io_uring here, and what to change: one wording for errors and for the doctor.

io_uring is refused in four ways, which the errno of io_uring_setup(2) and one sysctl tell
apart: the sysctl forbids it (EPERM), a container's seccomp filter does (EPERM or ENOSYS),
the kernel was built without it (ENOSYS), or the kernel is too old for our flags (EINVAL).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .._errors import RingUnavailableError

__all__ = ["KERNEL_FLOOR", "io_uring_disabled", "kernel_version", "remedy", "unavailable"]

KERNEL_FLOOR = (6, 1)
_SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


def kernel_version() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or "0")


def io_uring_disabled() -> int:
    """The sysctl kernel.io_uring_disabled: 0 open to all, 1 privileged only, 2 nobody.

    Kernels before 6.6 do not have it; that counts as 0.
    """
    try:
        return int(_SYSCTL.read_text())
    except (OSError, ValueError):
        return 0


def remedy(error: int) -> str:
    """What to change, for an errno of io_uring_setup(2) or io_uring_register(2)."""
    too_old = kernel_version() < KERNEL_FLOOR
    disabled = io_uring_disabled()
    if error == errno.EINVAL or (error == errno.ENOSYS and too_old):
        return (
            f"this kernel ({os.uname().release}) does not know the flags that ringtls needs; "
            f"run Linux {KERNEL_FLOOR[0]}.{KERNEL_FLOOR[1]} or newer"
        )
    if error == errno.EPERM and disabled:
        who = "privileged processes only" if disabled == 1 else "nobody"
        return (
            f"the sysctl kernel.io_uring_disabled is {disabled} ({who}); "
            "set it to 0 with: sysctl -w kernel.io_uring_disabled=0"
        )
    if error in (errno.EPERM, errno.ENOSYS):
        return (
            "a seccomp filter forbids it, as container engines do by default; allow the system "
            "calls io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile "
            "(Docker, Podman: --security-opt seccomp=PROFILE.json)"
        )
    if error == errno.ENOMEM:
        return (
            "not enough memory that may be locked for even the smallest ring; "
            "raise the limit (ulimit -l, LimitMEMLOCK= in systemd)"
        )
    if error in (errno.EMFILE, errno.ENFILE):
        return "no file descriptor is left; raise the limit (ulimit -n, LimitNOFILE= in systemd)"
    return "see io_uring_setup(2)"


def unavailable(error: int) -> RingUnavailableError:
    """The exception for an errno of io_uring_setup(2) or io_uring_register(2)."""
    return RingUnavailableError(
        error, f"io_uring is not available: {os.strerror(error)}: {remedy(error)}"
    )
