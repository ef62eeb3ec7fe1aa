"""The workers as their supervisor has them: processes that come and go, and places that stay.

Rules:

1. Workers hear of signals from the supervisor alone: it sends their numbers over a channel. Those
   that reach workers directly (Ctrl-C goes to all processes of a terminal, ``systemctl stop`` to
   all of a unit) stay blocked there: as second signals they would cut the drain short.
2. The end of the channel is a SIGTERM, so workers do not outlive a supervisor that is killed. For
   that nobody but the supervisor may hold its end: a worker closes those of the others.
3. A worker that ends is replaced after a pause, which doubles while workers in this place
   end soon. At the start there is no such patience: if one can't begin, all end.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, Protocol

import trio

from .child import Child
from .errors import StartError
from .reading import Content

__all__ = ["PassedSignals", "Place", "Process", "Work"]

logger = logging.getLogger("ringtls.server")

#: Seconds; see rule 3. A worker that lived longer than the longest pause did not end soon.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

#: Seconds after which a worker that has not begun is taken for stuck.
START_TIMEOUT = 30.0

#: What a worker reports when it has begun. Anything else is why it can't.
READY = b"\n"
REPORT_SIZE = 4096


class PassedSignals:
    """The worker's end of rule 1: an iterator of what a process is told.

    That is the numbers of signals, and what the supervisor had read after SIGHUP.
    """

    def __init__(self, channel: socket.socket, content: Content) -> None:
        self._channel = channel
        self._content = content
        self._ended = False

    def __aiter__(self) -> PassedSignals:
        return self

    async def __anext__(self) -> int | bytes:
        if self._ended:
            await trio.sleep_forever()
        while True:
            await trio.lowlevel.wait_readable(self._channel)
            number = _receive(self._channel, 1)
            if not number:
                logger.error("the supervisor is gone")
                self._ended = True
                return signal.SIGTERM
            if number[0] != signal.SIGHUP:
                return number[0]
            if (content := self._content.take()) is not None:
                return content


class Work(Protocol):
    """What a worker does, until it returns.

    Raises:
      StartError: it can't begin; ``on_ready`` has not been called.
    """

    def __call__(
        self,
        number: int,
        sockets: list[socket.socket],
        signals: PassedSignals,
        on_ready: Callable[[], object],
    ) -> None: ...


class Process(Child):
    """A worker, as the supervisor has it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        super().__init__(pid)
        self.channel = channel
        self.channel.setblocking(False)
        self._has_begun = False

    def tell(self, number: int) -> None:
        """Pass a signal on."""
        # A worker that has ended, or has hundreds of them unread, is nothing to wait for.
        with suppress(BlockingIOError, ConnectionError):
            self.channel.send(bytes([number]))

    def wait_until_ready(self) -> None:
        """Wait until it has begun.

        Raises:
          StartError: it can't.
        """
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        if not poll.poll(START_TIMEOUT * 1000):
            raise StartError(f"process {self.pid} of a worker is stuck at its start")
        report = _receive(self.channel, REPORT_SIZE)
        self._has_begun = report == READY
        if not self._has_begun:
            text = f"process {self.pid} of a worker ended at its start"
            raise StartError(report.decode() or text)

    def end(self) -> None:
        """Have it end without a drain, and wait for that."""
        self.tell(signal.SIGTERM)
        self.tell(signal.SIGTERM)
        if not self._has_begun:
            self.kill()
        self.wait()
        self.channel.close()

    def obituary(self, code: int) -> str:
        """How it ended."""
        report = _receive(self.channel, REPORT_SIZE)
        self.channel.close()
        if text := report.decode().strip():
            return text
        if code < 0:
            return f"process {self.pid} was killed by signal {-code}"
        return f"process {self.pid} ended with exit status {code}"


class Place:
    """One of the workers: its sockets stay, while processes come and go."""

    def __init__(self, number: int, sockets: list[socket.socket], content: Content) -> None:
        self.number = number
        self.process: Process | None = None
        self.start_at = 0.0  # on the monotonic clock, if there is no process
        self._sockets = sockets
        self._content = content
        self._started_at = 0.0
        self._next_pause = FIRST_PAUSE

    def start(self, work: Work, places: list[Place]) -> None:
        """Fork.

        Raises:
          StartError: there is no room for another process.
        """
        self._started_at = time.monotonic()
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    raise
                if pid == 0:
                    self._become(work, theirs, ours, places)
        except OSError as error:
            raise StartError(f"can't start a process: {error.strerror}") from error
        self.process = Process(pid, ours)

    def _become(
        self, work: Work, channel: socket.socket, far_end: socket.socket, places: list[Place]
    ) -> NoReturn:
        """Be this worker, in the forked process."""

        def report(data: bytes) -> None:
            with suppress(ConnectionError):  # the supervisor is gone, as ``channel`` will say
                channel.send(data)

        status = 1
        try:
            far_end.close()  # rule 2
            for place in places:
                if place is not self:
                    place.abandon()
            orders = PassedSignals(channel, self._content)
            work(self.number, self._sockets, orders, lambda: report(READY))
            status = 0
        except StartError as error:
            report(str(error).encode())
        except BaseException:
            logger.critical("this worker crashes", exc_info=True)
        finally:
            os._exit(status)

    def abandon(self) -> None:
        """Hold nothing of it any more, in another process."""
        self.close_sockets()
        if self.process is not None:
            self.process.channel.close()

    def close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    def bury(self) -> float:
        """There is no process any more. Seconds until there may be another (rule 3)."""
        self.process = None
        now = time.monotonic()
        if now - self._started_at > LONGEST_PAUSE:
            self._next_pause = FIRST_PAUSE
        pause = self._next_pause
        self._next_pause = min(2 * pause, LONGEST_PAUSE)
        self.start_at = now + pause
        return pause


def _receive(channel: socket.socket, size: int) -> bytes:
    """What has come from the other end; b"" if that is gone."""
    try:
        return channel.recv(size)
    except ConnectionResetError:  # it has gone, and did not read all of ours before
        return b""
