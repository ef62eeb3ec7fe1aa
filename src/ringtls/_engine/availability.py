"""Why there is no io_uring here, and what to change: one wording for errors and for the doctor.

io_uring is refused in several ways. The errno of io_uring_setup(2), one sysctl, and whether this
process is under a seccomp filter tell them apart:

    EPERM    the sysctl is not 0       the sysctl forbids it
    EPERM    there is a filter         the filter forbids it, as a container's does
    EPERM    there is none             a security module (LSM) forbids it
    ENOSYS   the kernel is too old     and so is not asked for more
    ENOSYS   there is a filter         the filter hides it
    ENOSYS   there is none             a kernel built without it, or an emulator of one
    EINVAL                             the kernel is too old for our flags

/proc, which has the sysctl and the filter, may be missing. Then both causes are named.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .._errors import RingUnavailableError

__all__ = [
    "KERNEL_FLOOR",
    "io_uring_disabled",
    "kernel_version",
    "remedy",
    "seccomp_mode",
    "unavailable",
]

KERNEL_FLOOR = (6, 1)
_PROC = Path("/proc")

_BY_FILTER = (
    "a seccomp filter forbids it, as container engines do by default; allow the system calls "
    "io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile "
    "(Docker, Podman: --security-opt seccomp=PROFILE.json)"
)
_BY_SECURITY_MODULE = (
    "a security module of the kernel (SELinux, AppArmor) forbids it; allow io_uring in its policy"
)
_BY_KERNEL = (
    "this kernel was built without it (CONFIG_IO_URING), or is one that something else emulates "
    "(gVisor, qemu-user); run on a Linux kernel that has it"
)


def kernel_version() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or "0")


def io_uring_disabled() -> int | None:
    """The sysctl kernel.io_uring_disabled: 0 open to all, 1 privileged only, 2 nobody.

    None where there is no such sysctl: before Linux 6.6, or without /proc.
    """
    try:
        return int((_PROC / "sys/kernel/io_uring_disabled").read_text())
    except (OSError, ValueError):
        return None


def seccomp_mode() -> int | None:
    """Whether system calls of this process are filtered: 0 no, 1 strict mode, 2 by a filter.

    None where that can't be found out: without /proc.
    """
    try:
        lines = (_PROC / "self/status").read_text().splitlines()
    except OSError:
        return None
    modes = [int(line.split()[1]) for line in lines if line.startswith("Seccomp:")]
    return modes[0] if modes else None


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
        without_filter = _BY_SECURITY_MODULE if error == errno.EPERM else _BY_KERNEL
        mode = seccomp_mode()
        if mode is None:
            return f"either {_BY_FILTER}. Or {without_filter}"
        return _BY_FILTER if mode else without_filter
    if error == errno.ENOMEM:
        return (
            "not enough memory that may be locked for even the smallest ring; "
            "raise the limit (ulimit -l, LimitMEMLOCK= in systemd)"
        )
    if error in (errno.EMFILE, errno.ENFILE):
        return "no file descriptor is left; raise the limit (ulimit -n, LimitNOFILE= in systemd)"
    return "see io_uring_setup(2)"


def unavailable(error: int, engine: str = "io_uring") -> RingUnavailableError:
    """The exception for an errno of what opens a ring."""
    return RingUnavailableError(
        error, f"{engine} is not available: {os.strerror(error)}: {remedy(error)}"
    )
