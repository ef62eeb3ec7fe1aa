"""What ringtls needs of this machine, as checks that each find one thing out.

Rules:

1. A check that raises is a failed check; the others go on. If it lacks what ringtls itself can do
   without, a directory for its files or the loopback interface, that is a warning.
2. What is about io_uring is skipped where there is none: its check says why. That is a warning,
   as epoll does instead, unless the environment forbids that.
3. What needs an engine is skipped where there is none, for which that check fails.
4. A remedy says what to change. It is there whenever the status is a warning or failed.
"""

from __future__ import annotations

import enum
import errno
import os
import platform
import resource
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ..._engine.availability import (
    KERNEL_FLOOR,
    io_uring_disabled,
    kernel_version,
    remedy,
    seccomp_mode,
    sysctl_forbids,
)
from ..._engine.choice import VARIABLE, Engine, forced, may_be_replaced
from ..._engine.ring import SQ_ENTRIES, Ring
from ..._engine.wakeups import wakes_event_loops
from ..._errors import RingUnavailableError
from ..leaves import leaves

__all__ = ["CHECKS", "Check", "Finding", "Result", "Status", "run_checks"]

#: A run, a listener and both sides of one connection may need so many file descriptors.
FEWEST_DESCRIPTORS = 32

#: Fewer file descriptors than this are soon used up: each connection needs one.
FEW_DESCRIPTORS = 1024

#: Bytes of memory that may be locked, below which there is room for few rings only.
LITTLE_LOCKED_MEMORY = 1024 * 1024

RAISE_LOCKED_MEMORY = (
    "a ring takes about 140 KiB of the memory that all processes of a user may lock together "
    "(not on every kernel); raise the limit (ulimit -l, LimitMEMLOCK= in systemd)"
)

RAISE_DESCRIPTORS = "raise the limit (ulimit -n, LimitNOFILE= in systemd)"

OPENSSL_FLOOR = (1, 1, 1)

SECCOMP_MODES = {0: "none", 1: "strict", 2: "a filter is in force"}

SET_TMPDIR = "set TMPDIR to a directory that is writable and has room"
RAISE_LOOPBACK = "bring the loopback interface up: ip link set lo up"

#: What a check that went wrong may lack, by the errno.
LACKS = {
    errno.ENOENT: SET_TMPDIR,
    errno.EROFS: SET_TMPDIR,
    errno.ENOSPC: SET_TMPDIR,
    errno.EDQUOT: SET_TMPDIR,
    errno.ENETUNREACH: RAISE_LOOPBACK,
    errno.EADDRNOTAVAIL: RAISE_LOOPBACK,
}

REPORT = "report it as a bug, with the output of: ringtls doctor --json"


class Status(enum.Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What a check found out."""

    status: Status
    found: str
    remedy: str | None = None


NO_ENGINE = Finding(Status.SKIPPED, "there is no engine")


@dataclass(frozen=True)
class Check:
    name: str
    look: Callable[[], Finding]


@dataclass(frozen=True)
class Result:
    name: str
    finding: Finding


def run_checks() -> list[Result]:
    return [Result(check.name, _finding_of(check)) for check in CHECKS]


def _finding_of(check: Check) -> Finding:
    try:
        return check.look()
    except Exception as error:
        return _went_wrong(leaves(error))


def _went_wrong(errors: list[BaseException]) -> Finding:
    found = "; ".join(dict.fromkeys(map(_in_words, errors)))
    codes = {(error.errno or 0) if isinstance(error, OSError) else 0 for error in errors}
    for code in codes & {errno.EMFILE, errno.ENFILE}:
        return Finding(Status.FAILED, found, remedy(code))
    if codes <= LACKS.keys():
        return Finding(Status.WARNING, found, "; ".join({LACKS[code] for code in codes}))
    return Finding(Status.FAILED, found, f"the check itself went wrong: {REPORT}")


def _in_words(error: BaseException) -> str:
    if isinstance(error, RingUnavailableError):  # its text has the remedy, too
        return os.strerror(error.errno or 0)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _open_io_uring() -> Iterator[Ring]:
    ring = Ring(engine=Engine.IO_URING)
    try:
        yield ring
    finally:
        ring.close(timeout=1.0)


def _kernel() -> Finding:
    found = f"Linux {os.uname().release}"
    if kernel_version() >= KERNEL_FLOOR:
        return Finding(Status.OK, found)
    return Finding(Status.WARNING, found, remedy(errno.EINVAL))


def _sysctl() -> Finding:
    disabled = io_uring_disabled()
    if disabled is None:
        return Finding(Status.OK, "none here: before Linux 6.6, or without /proc")
    if not disabled:
        return Finding(Status.OK, "0 (open to all)")
    if sysctl_forbids():
        return Finding(Status.WARNING, str(disabled), remedy(errno.EPERM))
    return Finding(Status.OK, f"{disabled} (open to few, of which this process is one)")


def _seccomp() -> Finding:
    mode = seccomp_mode()
    if mode is None:
        return Finding(Status.SKIPPED, "unknown: /proc does not say")
    return Finding(Status.OK, f"{mode} ({SECCOMP_MODES[mode]})")


def _io_uring() -> Finding:
    try:
        with _open_io_uring() as ring:
            counters = ring.counters()
    except RingUnavailableError as error:
        code = error.errno or errno.EIO
        found = f"io_uring is not available: {os.strerror(code)}"
        return Finding(Status.WARNING, found, remedy(code))
    found = (
        f"a ring of {counters.sq_entries}/{counters.cq_entries} entries, "
        f"{counters.buffers} buffers of {counters.buffer_size} bytes"
    )
    if counters.sq_entries < SQ_ENTRIES:
        return Finding(Status.WARNING, f"{found}, smaller than usual", RAISE_LOCKED_MEMORY)
    return Finding(Status.OK, found)


def _operations() -> Finding:
    try:
        with _open_io_uring() as ring:
            missing = ring.unsupported()
    except RingUnavailableError:
        return Finding(Status.SKIPPED, "io_uring is not available")
    if missing:
        names = ", ".join(opcode.name.lower() for opcode in missing)
        return Finding(Status.FAILED, f"the kernel lacks: {names}", "run a newer kernel")
    return Finding(Status.OK, "all that are needed")


def _wake_ups() -> Finding:
    if not _has_engine():
        return NO_ENGINE
    if wakes_event_loops():
        return Finding(Status.OK, "a sleeping event loop is woken at once, each time")
    return Finding(
        Status.OK,
        f"Linux {os.uname().release} wakes a sleeping event loop late, or only once, so rings are "
        "opened without DEFER_TASKRUN: nothing is late, at some cost",
    )


def _engine() -> Finding:
    try:
        ring = Ring()
    except RingUnavailableError as error:
        if not may_be_replaced(error):
            raise
        return Finding(Status.FAILED, f"none: {error.strerror}", f"unset {VARIABLE}, to have epoll")
    except ValueError as error:
        return Finding(Status.FAILED, "none", str(error))
    ring.close(timeout=1.0)
    if ring.engine is Engine.IO_URING:
        return Finding(Status.OK, ring.engine)
    reason = f"{VARIABLE} asks for it" if forced() else "io_uring is not available"
    return Finding(Status.OK, f"{ring.engine}, because {reason}")


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= LITTLE_LOCKED_MEMORY:
        return Finding(Status.OK, _limit(soft, " bytes"))
    return Finding(Status.WARNING, f"{soft} bytes", RAISE_LOCKED_MEMORY)


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_DESCRIPTORS:
        return Finding(Status.OK, _limit(soft))
    if soft < FEWEST_DESCRIPTORS:
        return Finding(Status.FAILED, f"{soft}, too few for one connection", RAISE_DESCRIPTORS)
    return Finding(Status.WARNING, f"{soft}, and each connection needs one", RAISE_DESCRIPTORS)


def _limit(value: int, unit: str = "") -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value}{unit}"


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding(Status.OK, found)


def _trio() -> Finding:
    return Finding(Status.OK, trio.__version__)


def _openssl() -> Finding:
    if ssl.OPENSSL_VERSION_INFO >= OPENSSL_FLOOR:
        return Finding(Status.OK, ssl.OPENSSL_VERSION)
    floor = ".".join(map(str, OPENSSL_FLOOR))
    use = f"use a Python that is built with OpenSSL {floor} or newer"
    return Finding(Status.FAILED, ssl.OPENSSL_VERSION, use)


def _close_notify() -> Finding:
    try:
        from .ends import End, ends_over_loopback
    except ModuleNotFoundError as error:
        needed = f"pip install 'ringtls[server]', for {error.name}, has it tried here"
        return Finding(Status.SKIPPED, needed)
    if not _has_engine():
        return NO_ENGINE
    if _descriptors().status is Status.FAILED:
        return Finding(Status.SKIPPED, "there are too few file descriptors")
    ends = trio.run(ends_over_loopback)
    unclean = [f"{case}: {end.value}" for case, end in ends.items() if end is not End.CLEAN]
    if unclean:
        see = f"see what interferes with connections over loopback; else {REPORT}"
        return Finding(Status.FAILED, ", ".join(unclean), see)
    return Finding(Status.OK, f"follows the data when a handler {' or is '.join(ends)}")


def _has_engine() -> bool:
    return _engine().status is not Status.FAILED


CHECKS = (
    Check("kernel", _kernel),
    Check("kernel.io_uring_disabled", _sysctl),
    Check("seccomp", _seccomp),
    Check("io_uring", _io_uring),
    Check("io_uring operations", _operations),
    Check("engine", _engine),
    Check("wake-ups", _wake_ups),
    Check("RLIMIT_MEMLOCK", _locked_memory),
    Check("RLIMIT_NOFILE", _descriptors),
    Check("Python", _python),
    Check("trio", _trio),
    Check("OpenSSL", _openssl),
    Check("close_notify", _close_notify),
)
