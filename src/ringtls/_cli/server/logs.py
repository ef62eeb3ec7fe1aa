"""The log of a server: lines that never wait, and that no peer can forge.

Rules:

1. A line for which the reader of the log, or a disk, leaves no room is lost, and counted. When
   there is room again, the log says how many were. What is said of the start obeys this, too.
2. O_NONBLOCK belongs to the open file, which other processes may share. So the file is opened
   anew, as /proc/self/fd allows, and only that one does not block. A socket is sent to with
   MSG_DONTWAIT. Where neither is possible, as for a pipe of another user, poll(2) is asked first;
   between the two somebody else may take the room.
3. What is in a message may come from a peer: control characters are escaped in it.
4. What Python would write to stderr itself, and wait, about exceptions that it ignores, is a line
   of the log. ssl causes that for a peer whose SNI is not ASCII: it asks nobody, and the handshake
   fails, which has a line of its own.
5. No peer's text begins a line. So a line is written whole or not at all: between two parts another
   handler or process would write. Pipes promise that for PIPE_BUF bytes (pipe(7)), and sockets
   between processes do the same. So longer lines lose their middle. What does tear a line (a
   terminal that is full) has the next begin on a new one. An exception's text may have several
   lines, which are indented.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any

__all__ = [
    "FORMATS",
    "STDERR",
    "STDOUT",
    "LineHandler",
    "access_logger",
    "escaped",
    "say",
    "set_up",
]

#: Descriptors (stdin(3)).
STDOUT, STDERR = 1, 2

logger = logging.getLogger("ringtls.log")
access_logger = logging.getLogger("ringtls.access")

TEXT_FORMAT = "%(asctime)s %(levelname)s %(worker)s%(message)s"

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def escaped(text: str) -> str:
    """A text in which nothing ends a line or moves a cursor (rule 3)."""
    return text.translate(_ESCAPES)


#: What the texts of an object that is too long are shortened to, one size after the other.
_SIZES = (1024, 256, 64)


def shortened(text: str, size: int) -> str:
    """A text of at most so many bytes, without its middle if need be (rule 5)."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= size:
        return text
    half = (size - len("...")) // 2
    return (data[:half] + b"..." + data[-half:]).decode(errors="ignore")


class _TextFormatter(logging.Formatter):
    def __init__(self, worker: str) -> None:
        super().__init__(TEXT_FORMAT, defaults={"worker": f"{worker}: " if worker else ""})

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {escaped(line)}" for line in lines)


class _MessageFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return escaped(record.message)


class _JsonFormatter(logging.Formatter):
    """An object a line. ``extra={"fields": {...}}`` adds to it."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        if self._worker:
            line["worker"] = self._worker
        fields: Mapping[str, object] | None = getattr(record, "fields", None)
        line |= {"message": record.getMessage()} if fields is None else fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line)
        for size in _SIZES:
            if len(text) < select.PIPE_BUF:  # there is a newline, too
                break
            line = {
                name: shortened(value, size) if isinstance(value, str) else value
                for name, value in line.items()
            }
            text = json.dumps(line)
        return text


#: By the names of ``--log-format``: what formats the log, and what the access log.
FORMATS: dict[str, tuple[Callable[[str], logging.Formatter], Callable[[str], logging.Formatter]]]
FORMATS = {
    "text": (_TextFormatter, lambda worker: _MessageFormatter()),
    "json": (_JsonFormatter, _JsonFormatter),
}


def set_up(form: str, worker: str = "") -> None:
    """Have this process log to stderr, and accesses to stdout.

    Args:
      form: one of FORMATS.
      worker: a name to begin each message with.
    """
    make_formatter, make_access_formatter = FORMATS[form]
    for logger, descriptor, formatter in (
        (logging.getLogger(), STDERR, make_formatter(worker)),
        (access_logger, STDOUT, make_access_formatter(worker)),
    ):
        handler = LineHandler(descriptor)
        handler.setFormatter(formatter)
        for old in logger.handlers:
            old.close()
        logger.handlers[:] = [handler]
    access_logger.propagate = False
    access_logger.setLevel(logging.WARNING)
    sys.unraisablehook = _log_unraisable


def say(lines: Iterable[str]) -> None:
    """Write lines to stdout, in whatever format the logs are."""
    with closing(LineHandler(STDOUT)) as handler:
        for line in lines:
            handler.emit(logging.makeLogRecord({"msg": line}))


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """See rule 4. A name that it is about is the object; newer Pythons have it in the text."""
    error, origin = unraisable.exc_value, unraisable.object
    has_name = origin is None or isinstance(origin, bytes)
    is_about_a_name = has_name and isinstance(error, UnicodeDecodeError)
    level = logging.DEBUG if is_about_a_name else logging.ERROR
    what = unraisable.err_msg or "Exception ignored in"
    where = "" if origin is None else f" {origin!r}"
    logger.log(level, "%s%s: %r", what, where, error)


class LineHandler(logging.Handler):
    """Writes lines to a descriptor of this process, and never waits (rules 1, 2 and 5)."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._write, self._close = _non_blocking_writer(descriptor)
        self._newline = b""  # that is missing from a torn line
        self._lost = 0

    def close(self) -> None:
        """Close what was opened. The descriptor stays open."""
        close, self._close = self._close, _do_nothing
        close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            line = self._format_own(f"a line can't be formatted: {error!r}")
        loss = f"log lines lost, for which there was no room: {self._lost}"
        if self._lost and self._write_all(self._format_own(loss)):
            self._lost = 0
        if self._lost or not self._write_all(line):
            self._lost += 1

    def _format_own(self, text: str) -> str:
        values = {"msg": text, "levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(logging.makeLogRecord({"name": logger.name, **values}))

    def _write_all(self, text: str) -> bool:
        """False if there is not enough room: a traceback may lack its last lines then."""
        most = select.PIPE_BUF - len("\n")
        return all(self._write_line(shortened(line, most)) for line in text.split("\n"))

    def _write_line(self, line: str) -> bool:
        data = self._newline + f"{line}\n".encode(errors="backslashreplace")
        try:
            is_whole = self._write(data) == len(data)
        except BlockingIOError:
            return False
        except OSError as error:  # the reader is gone, or the disk is full
            return error.errno not in (errno.ENOSPC, errno.EDQUOT)
        self._newline = b"" if is_whole else b"\n"
        return is_whole


def _non_blocking_writer(
    descriptor: int,
) -> tuple[Callable[[bytes], int], Callable[[], object]]:
    """What writes (see rule 2), and what closes that."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return partial(os.write, descriptor), _do_nothing
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(descriptor))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
        own = os.open(f"/proc/self/fd/{descriptor}", flags)
        return partial(os.write, own), partial(os.close, own)
    return partial(_write_if_ready, descriptor), _do_nothing


def _do_nothing() -> None:
    pass


def _write_if_ready(descriptor: int, data: bytes) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(descriptor, data)
