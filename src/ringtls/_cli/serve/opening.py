"""Opening what is below the served directory, and nothing else.

Rules:

1. The kernel resolves a path below the directory in one step, and refuses what leads out of it
   on the way (openat2(2), RESOLVE_BENEATH). So there is no moment between a check and the
   opening in which a symlink could be exchanged. Symlinks are followed as long as they stay
   below; one with an absolute target does not, wherever that is.
2. Only regular files and directories are opened: a FIFO would block, and opening a device may
   have effects. So what a path leads to is looked at before (O_PATH).
3. This does disk I/O: it is called in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from ..server import StartError

__all__ = ["Directory", "OpenFile"]

#: From linux/openat2.h; the number is the same on all architectures.
SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08

#: How often a path is tried again that changes while it is resolved (EAGAIN).
RETRIES = 10

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_syscall = ctypes.CDLL(None, use_errno=True).syscall


def _openat2(directory: int, path: str, flags: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    for _ in range(RETRIES):
        descriptor: int = _syscall(
            SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return descriptor
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


class OpenFile:
    """A descriptor of a regular file or a directory; closed when nobody has this any more.

    Attributes:
      status: what it was when it was opened.
    """

    __slots__ = ("descriptor", "status")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.status = os.fstat(descriptor)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int, int, int, int]:
        """The same for a file that has not changed, or so its status says."""
        status = self.status
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def __del__(self) -> None:
        os.close(self.descriptor)


class Directory:
    """What is served.

    Raises:
      StartError: it can't be.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._root = OpenFile(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            os.close(_openat2(self._root.descriptor, ".", os.O_PATH))
        except OSError as error:
            what = f"can't serve the directory {path}: "
            if error.filename == ".":
                raise StartError(
                    f"{what}openat2: {error.strerror}; allow this system call, which keeps "
                    "symlinks from leading out of the directory"
                ) from error
            raise StartError(f"{what}{error.strerror}") from error

    def open(self, segments: list[str]) -> OpenFile:
        """Open what they name; an empty last segment wants a directory.

        Raises:
          FileNotFoundError: that is nothing (rules 1 and 2).
          PermissionError: it may not be read.
          OSError: this machine is to blame.
        """
        path = "/".join(segments) or "."
        try:
            seen = OpenFile(_openat2(self._root.descriptor, path, os.O_PATH))
            if not (stat.S_ISREG(seen.status.st_mode) or seen.is_directory):
                raise FileNotFoundError(path)
            flags = _FLAGS | os.O_DIRECTORY if seen.is_directory else _FLAGS
            found = OpenFile(_openat2(self._root.descriptor, path, flags))
        except OSError as error:
            if error.errno in _NAMES_NOTHING:
                raise FileNotFoundError(path) from error
            raise
        if not (stat.S_ISREG(found.status.st_mode) or found.is_directory):
            raise FileNotFoundError(path)
        return found


#: The fault of the name, and not of this machine.
_NAMES_NOTHING = {
    errno.EAGAIN,  # changed again and again
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EXDEV,  # leads out
}
