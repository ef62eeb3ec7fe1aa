"""Why there is no io_uring here, and what to change: one wording for errors and for the doctor.

io_uring is refused in several ways. The errno of io_uring_setup(2), one sysctl and whom it lets,
and whether this process is under a seccomp filter tell them apart:

    EPERM    the sysctl lets few       the sysctl forbids it
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
    "EXTENSION",
    "KERNEL_FLOOR",
    "io_uring_disabled",
    "kernel_version",
    "not_loaded",
    "remedy",
    "seccomp_mode",
    "sysctl_forbids",
    "unavailable",
]

KERNEL_FLOOR = (6, 1)

#: The module that csrc/ is built into.
EXTENSION = "ringtls._engine._native"

#: See capabilities(7).
_CAP_SYS_ADMIN = 1 << 21

_PROC = Path("/proc")

_BY_SYSCTL = {
    2: "the sysctl kernel.io_uring_disabled is 2 (nobody); "
    "set it to 0 with: sysctl -w kernel.io_uring_disabled=0",
    1: "the sysctl kernel.io_uring_disabled is 1 (privileged processes only); "
    "set it to 0 with: sysctl -w kernel.io_uring_disabled=0, or set kernel.io_uring_group to the "
    "number of a group that this process is in",
}
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
    return _sysctl("io_uring_disabled")


def sysctl_forbids() -> bool:
    """Whether that sysctl keeps this process from io_uring."""
    disabled = io_uring_disabled()
    return disabled == 2 or (disabled == 1 and not _is_exempt())


def _is_exempt() -> bool:
    """Whether 1 lets it: by CAP_SYS_ADMIN outside of user namespaces, or by its group."""
    capabilities = _of_this_process("CapEff")
    if capabilities is not None and int(capabilities, 16) & _CAP_SYS_ADMIN and not _is_in_userns():
        return True
    return _sysctl("io_uring_group") in {os.getegid(), *os.getgroups()}


def _is_in_userns() -> bool:
    """Whether ids are mapped, or some are left out; see user_namespaces(7)."""
    try:
        return (_PROC / "self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]
    except OSError:
        return False


def _sysctl(name: str) -> int | None:
    try:
        return int((_PROC / "sys/kernel" / name).read_text())
    except (OSError, ValueError):
        return None


def _of_this_process(name: str) -> str | None:
    """A line of /proc/self/status."""
    try:
        lines = (_PROC / "self/status").read_text().splitlines()
    except OSError:
        return None
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)


def seccomp_mode() -> int | None:
    """Whether system calls of this process are filtered: 0 no, 1 strict mode, 2 by a filter.

    None where that can't be found out: without /proc.
    """
    mode = _of_this_process("Seccomp")
    return None if mode is None else int(mode)


def remedy(error: int) -> str:
    """What to change, for an errno of io_uring_setup(2) or io_uring_register(2)."""
    too_old = kernel_version() < KERNEL_FLOOR
    if error == errno.EINVAL or (error == errno.ENOSYS and too_old):
        return (
            f"this kernel ({os.uname().release}) does not know the flags that ringtls needs; "
            f"run Linux {KERNEL_FLOOR[0]}.{KERNEL_FLOOR[1]} or newer"
        )
    if error == errno.EPERM and sysctl_forbids():
        return _BY_SYSCTL[io_uring_disabled() or 2]
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


def not_loaded(error: ImportError) -> ImportError:
    """The exception for one of importing the extension module, as where liburing is missing."""
    return ImportError(
        f"the engine can't be loaded: {error}; if it is liburing that is missing, install the "
        "package liburing2 (Debian, Ubuntu) or liburing (Fedora); else install ringtls anew on "
        "this machine",
        name=EXTENSION,
    )
