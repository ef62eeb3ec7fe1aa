"""From the target of a request to a file below the served directory.

Rules:

1. A target is split at its slashes first and percent-decoded then. A part that decodes to
   something with a slash or NUL in it, or that is empty, "." or "..", names nothing.
2. Symlinks are followed, and where that ends must be below the directory.
3. Only regular files are opened: a FIFO would block, and opening a device may have effects.

All functions here do disk I/O, so they are called in a thread.
"""

from __future__ import annotations

import os
import stat
import urllib.parse
from pathlib import Path
from typing import Self

__all__ = ["PIECE", "OpenFile", "quoted", "resolve", "segments_of"]

#: Bytes of a file that are read, and then sent, at a time.
PIECE = 256 * 1024


def segments_of(path: str) -> list[str]:
    """The names in the path of a target; the last is empty if the path ends with a slash.

    Raises:
      FileNotFoundError: the path can't name a file (rule 1).
    """
    if not path.startswith("/"):
        raise FileNotFoundError(path)
    segments = [os.fsdecode(urllib.parse.unquote_to_bytes(part)) for part in path[1:].split("/")]
    for segment in segments:
        if segment in (".", "..") or "/" in segment or "\0" in segment:
            raise FileNotFoundError(path)
    if "" in segments[:-1]:
        raise FileNotFoundError(path)
    return segments


def quoted(segments: list[str]) -> str:
    """The path that ``segments_of`` takes apart."""
    return "/" + "/".join(urllib.parse.quote(os.fsencode(segment)) for segment in segments)


def resolve(root: Path, segments: list[str]) -> Path:
    """The real path of an existing file or directory; ``root`` must be a real path too.

    Raises:
      OSError: among others FileNotFoundError if it is not below ``root`` (rule 2).
    """
    path = Path(os.path.realpath(root.joinpath(*segments), strict=True))
    if not path.is_relative_to(root):
        raise FileNotFoundError(path)
    return path


class OpenFile:
    """A regular file that is open for reading. It must be closed.

    Args:
      path: as ``resolve`` returns it.

    Raises:
      OSError: among others FileNotFoundError if it is not a regular file (rule 3).

    Attributes:
      stat: what it was when it was opened.
    """

    def __init__(self, path: Path) -> None:
        _check_regular(os.lstat(path), path)
        # The name may stand for another file by now: hence the flags, and a second check.
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            self.stat = os.fstat(self._fd)
            _check_regular(self.stat, path)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, size: int) -> bytes:
        """At most PIECE bytes, and less than asked for only for that or where the file ends."""
        return os.pread(self._fd, min(size, PIECE), offset)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(path)
