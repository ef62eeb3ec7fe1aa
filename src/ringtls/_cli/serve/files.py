"""The files that are served, as they are kept open.

Rules:

1. What a target leads to is remembered with its open descriptor and all that answers need. So a
   request for what was asked for before does no disk I/O.
2. Once in CHECK_INTERVAL the target is opened again. It counts as the same file if device, inode,
   size, and the times of its content and its status are the same. For a file that changed a moment
   ago they prove nothing: it may change again within the tick of the clock that the times are from.
3. What is small is kept in memory; of the rest, pieces are read when they are sent: on the spot
   if they are in the page cache (RWF_NOWAIT), in a thread if the disk has to be asked. So are those
   of what holds less than its size says, as files of sysfs(5) do.
4. The cache is bounded, in entries and in bytes. The entry that was not asked for longest goes
   first: each check moves an entry to the end of the queue. A file that is being sent stays open.
5. A target that leads to nothing is not remembered: a client can make up any number of them.
6. A connection that asks for what another one is looking up waits for that. Else the first
   requests of many connections, for the same file, would each open and read it, all at the same
   time.
"""

from __future__ import annotations

import email.utils
import errno
import html
import http
import mimetypes
import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from .opening import Directory, OpenFile
from .paths import quoted, segments_of

__all__ = ["PIECE", "FileCache", "Found", "Page", "Policy", "Representation", "read_piece"]

INDEX = "index.html"

#: Seconds; see rule 2.
CHECK_INTERVAL = 1.0

#: Bytes of a file up to which it is kept in memory, and bytes of all of those.
SMALL = 128 * 1024
MEMORY_LIMIT = 32 * 1024 * 1024

#: Entries, and so descriptors but for precompressed files; and how many of the descriptors that
#: there may be they are at most.
ENTRIES = 1024
SHARE = 1 / 8

#: Bytes of a file that are read, and then sent, at a time. A peer that takes in nothing costs so
#: much: what is encrypted, and the kernel has not taken.
PIECE = 192 * 1024

#: Suffixes of files that hold another's content in another coding (RFC 9110, section 8.4.1),
#: the preferred first.
CODINGS = (("br", ".br"), ("gzip", ".gz"))

#: What may be asked for though it is hidden (RFC 8615).
WELL_KNOWN = ".well-known"


@dataclass(frozen=True)
class Policy:
    """What of a directory is served, and how.

    Attributes:
      hidden: also names that begin with a dot.
      listing: a directory without an index.html is listed.
      precompressed: what has a file with ".br" or ".gz" beside it is sent from there to those who
        understand it.
      spa: what leads to nothing is answered with /index.html.
      cache_control: the value of this header, if any.
    """

    hidden: bool = False
    listing: bool = True
    precompressed: bool = False
    spa: bool = False
    cache_control: str = ""


class Representation:
    """A file as it is sent: with the fields of the head that depend on it alone."""

    __slots__ = ("content", "etag", "fields", "file", "media_type", "modified", "size", "whole")

    def __init__(self, file: OpenFile, media_type: str, coding: str, more_fields: str) -> None:
        status = file.status
        self.file = file
        self.size = status.st_size
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}{coding and "-" + coding}"'
        self.modified = min(int(status.st_mtime), int(time.time()))  # RFC 9110, section 8.8.2.1
        self.media_type = media_type.encode()
        fields = f"ETag: {self.etag}\r\n"
        with suppress(ValueError, OverflowError):  # a year B.C.
            fields += f"Last-Modified: {email.utils.formatdate(self.modified, usegmt=True)}\r\n"
        if coding:
            fields += f"Content-Encoding: {coding}\r\n"
        self.fields = (fields + more_fields).encode()
        self.content: bytes | None = None
        if self.size <= SMALL:
            content = os.pread(file.descriptor, self.size, 0)
            if len(content) == self.size:  # else it is found out when a piece is sent
                self.content = content
        #: The answer to a plain request, and the date in it.
        self.whole: tuple[bytes, bytes] = b"", b""

    @property
    def memory(self) -> int:
        """Bytes; the whole answer is kept too."""
        return 0 if self.content is None else 2 * len(self.content)


class Found:
    """A file that a path leads to."""

    __slots__ = ("by_coding", "checked_at", "identity", "is_simple", "plain")

    def __init__(self, plain: Representation, by_coding: dict[str, Representation]) -> None:
        self.plain = plain
        self.by_coding = by_coding
        #: True if all plain requests are answered with the same bytes of memory.
        self.is_simple = plain.content is not None and not by_coding
        self.identity: object = tuple(each.file.identity for each in self.representations)
        if max(each.modified for each in self.representations) > time.time() - CHECK_INTERVAL:
            self.identity = object()
        self.checked_at = time.monotonic()

    @property
    def representations(self) -> tuple[Representation, ...]:
        return self.plain, *self.by_coding.values()

    @property
    def memory(self) -> int:
        return sum(each.memory for each in self.representations)


@dataclass(frozen=True)
class Page:
    """What is answered instead of a file: a listing, or a redirect to the directory's own path."""

    status: http.HTTPStatus
    content: bytes = b""
    location: str = ""


class FileCache:
    """See the rules."""

    def __init__(self, directory: Directory, policy: Policy) -> None:
        self._directory = directory
        self._policy = policy
        self._found: dict[bytes, Found] = {}
        self._lookups: dict[bytes, trio.Event] = {}  # set when they are over
        self._memory = 0
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._entries = min(ENTRIES, int(descriptors * SHARE))

    def get(self, path: bytes) -> Found | None:
        """What is known of a path, if it need not be looked at."""
        found = self._found.get(path)
        if found is None or time.monotonic() - found.checked_at > CHECK_INTERVAL:
            return None
        return found

    async def find(self, path: bytes) -> Found | Page:
        """What a path leads to.

        Raises:
          BadTargetError, FileNotFoundError, PermissionError
          OSError: this machine is to blame.
        """
        if path in self._lookups:
            await self._lookups[path].wait()
            if (found_meanwhile := self.get(path)) is not None:
                return found_meanwhile
        known = self._found.get(path)
        if known is not None:
            known.checked_at = time.monotonic()  # the others go on with it meanwhile
        lookup = self._lookups.setdefault(path, trio.Event())
        try:
            found = await trio.to_thread.run_sync(self._look_up, path)
        except OSError:
            self._forget(path)
            raise
        finally:
            self._lookups.pop(path, None)
            lookup.set()
        if known is not None and isinstance(found, Found) and found.identity == known.identity:
            found = known
        self._forget(path)
        if isinstance(found, Found):
            self._remember(path, found)
        return found

    def _forget(self, path: bytes) -> None:
        found = self._found.pop(path, None)
        if found is not None:
            self._memory -= found.memory

    def _remember(self, path: bytes, found: Found) -> None:
        self._forget(path)
        self._found[path] = found
        self._memory += found.memory
        while len(self._found) > self._entries or self._memory > MEMORY_LIMIT:
            self._forget(next(iter(self._found)))

    # In a thread

    def _look_up(self, path: bytes) -> Found | Page:
        segments = segments_of(path)
        try:
            return self._look_at(segments)
        except FileNotFoundError:
            if not self._policy.spa or self._is_hidden(segments):
                raise
            return self._file(self._directory.open([INDEX]), [INDEX])

    def _look_at(self, segments: list[str]) -> Found | Page:
        if self._is_hidden(segments):
            raise FileNotFoundError(segments)
        file = self._directory.open(segments)
        if not file.is_directory:
            return self._file(file, segments)
        if segments[-1]:
            return Page(http.HTTPStatus.MOVED_PERMANENTLY, location=quoted([*segments, ""]))
        index = [*segments[:-1], INDEX]
        try:
            index_file = self._directory.open(index)
        except FileNotFoundError:
            if not self._policy.listing:
                raise
            return Page(http.HTTPStatus.OK, self._listing(file, segments))
        return self._file(index_file, index)

    def _is_hidden(self, segments: list[str]) -> bool:
        if self._policy.hidden:
            return False
        public = segments[1:] if segments[0] == WELL_KNOWN else segments
        return any(name.startswith(".") for name in public)

    def _file(self, file: OpenFile, segments: list[str]) -> Found:
        if file.is_directory:
            raise FileNotFoundError(segments)
        fields = ""
        if self._policy.cache_control:
            fields += f"Cache-Control: {self._policy.cache_control}\r\n"
        codings = self._codings(segments) if self._policy.precompressed else {}
        if codings:
            fields += "Vary: Accept-Encoding\r\n"
        media_type = _media_type(segments[-1])
        return Found(
            Representation(file, media_type, "", fields),
            {
                coding: Representation(other, media_type, coding, fields)
                for coding, other in codings.items()
            },
        )

    def _codings(self, segments: list[str]) -> dict[str, OpenFile]:
        found = {}
        for coding, suffix in CODINGS:
            try:
                file = self._directory.open([*segments[:-1], segments[-1] + suffix])
            except (FileNotFoundError, PermissionError):
                continue
            if not file.is_directory:
                found[coding] = file
        return found

    def _listing(self, directory: OpenFile, segments: list[str]) -> bytes:
        title = html.escape(f"Index of /{'/'.join(segments)}")
        lines = ["<!DOCTYPE html>", '<meta charset="utf-8">', f"<title>{title}</title>"]
        lines += [f"<h1>{title}</h1>", "<ul>"]
        if len(segments) > 1:
            lines.append('<li><a href="../">../</a>')
        with os.scandir(directory.descriptor) as entries:
            names = sorted(entry.name + "/" * _is_directory(entry) for entry in entries)
        for name in names:
            if self._is_hidden([*segments[:-1], name]):
                continue
            link = quoted([*segments[:-1], *name.split("/")])
            lines.append(f'<li><a href="{html.escape(link)}">{html.escape(name)}</a>')
        lines.append("</ul>\n")
        return "\n".join(lines).encode(errors="replace")  # names of files need not be UTF-8


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symlink to itself
        return False


def _media_type(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if kind is None or encoding is not None:  # a compressed file is served as it is
        return "application/octet-stream"
    return kind


async def read_piece(file: OpenFile, buffer: memoryview, offset: int) -> int:
    """Read into a buffer, and return how much that was (rule 3); 0 where the file ends."""
    try:
        return os.preadv(file.descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
    return await trio.to_thread.run_sync(partial(os.preadv, file.descriptor, [buffer], offset))
