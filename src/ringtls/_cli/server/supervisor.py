"""``--workers``: a supervisor, and the processes in which connections are served.

Rules:

1. The supervisor owns the listening sockets, and accepts nothing itself. Each worker has its own
   share of them, and so has the one that takes its place after a crash: connections that wait
   to be accepted wait for that one.
2. Workers are forked from the supervisor, which therefore never has a thread, a trio run or a
   ring. So they share the memory of what is loaded and, until SIGHUP, the keys of session
   tickets.
3. A signal is never lost and never comes amid something: they are all blocked, and the
   supervisor takes one after the other from the kernel.
4. Workers hear of signals from the supervisor alone: it sends their numbers over a channel. Those
   that reach workers directly (Ctrl-C goes to all processes of a terminal, ``systemctl stop`` to
   all of a unit) stay blocked there: as second signals they would cut the drain short.
5. The end of the channel is a SIGTERM, so workers do not outlive a supervisor that is killed. For
   that nobody but the supervisor may hold its end: a worker closes those of the others.
6. A worker that ends is replaced after a pause, which doubles while workers in this place
   end soon. At the start there is no such patience: if one can't begin, all end.
7. The supervisor waits for nothing but the kernel's signals. So it has files read by a process
   of its own, which ends with what it read, or when it took too long. What is short, this process
   included, is tried again (rule 2 of reloading.py).
8. What was read is handed on in memory that all workers have from their start (``_Content``): to
   take it out needs no descriptor, of which a worker may have none left.
9. A worker that does not end when it should (it is stopped, or hangs) is killed: while draining,
   when the graceful timeout and the time that ends of connections take have passed.

What happens to the supervisor, and what it does:

    ===================  ==================================  =========================
                         while it serves                     while it drains
    ===================  ==================================  =========================
    SIGHUP               has the certificates read, once     nothing
                         more if that is under way
    they are read        if they are good, passes them       nothing
                         on to the workers; if something
                         was short, tries again in a
                         second
    SIGINT, SIGTERM      closes the sockets, tells the       tells the workers: they
                         workers: they drain                 cut short what is left
    a worker ends        starts another after a pause        notes it
    time is up (9)                                           kills the workers
    the last one ends    the same                            ends; 1 if one crashed
    SIGKILL              the workers drain                   they cut short what is left
    ===================  ==================================  =========================
"""

from __future__ import annotations

import hashlib
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

from .errors import StartError
from .notify import notify, notify_reloading, watchdog_interval
from .reloading import KEPT, READ_TIMEOUT, RETRY_INTERVAL, Result

__all__ = ["SIGNALS", "Loader", "PassedSignals", "Work", "supervise"]

logger = logging.getLogger("ringtls.server")

#: What a server is told by.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: See rule 3.
BLOCKED = [*SIGNALS, signal.SIGCHLD]

#: Seconds; see rule 6. A worker that lived longer than the longest pause did not end soon.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

#: Seconds after which a worker that has not begun is taken for stuck.
START_TIMEOUT = 30.0

#: Seconds that the ends of connections take at most, and some more; see rule 9.
END_TIMEOUT = 10.0

#: What a worker reports when it has begun. Anything else is why it can't.
READY = b"\n"
REPORT_SIZE = 4096


class PassedSignals:
    """The worker's end of rule 4: an iterator of what a process is told.

    That is the numbers of signals, and what the supervisor had read after SIGHUP.
    """

    def __init__(self, channel: socket.socket, content: _Content) -> None:
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


class _Content:
    """What was read after SIGHUP, for all workers (rule 8).

    A worker may come upon it while it is being replaced. The digest tells, and the signal for what
    is new is still to come.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("ringtls")

    def put(self, data: bytes) -> None:
        """Replace it.

        Raises:
          OSError: there is no room.
        """
        os.ftruncate(self._descriptor, 0)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.seek(0)
            file.writelines([hashlib.sha256(data).digest(), data])

    def take(self) -> bytes | None:
        """None if it is being replaced."""
        found = _read_all(self._descriptor)
        size = hashlib.sha256().digest_size
        digest, data = found[:size], found[size:]
        return data if hashlib.sha256(data).digest() == digest else None


class Loader(Protocol):
    """What SIGHUP loads anew (rule 7)."""

    def read(self) -> bytes:
        """What ``use`` wants. May block."""

    def use(self, data: bytes) -> Result:
        """Have workers inherit this from now on, if it can be used."""

    def give_up(self) -> None:
        """Reading took too long."""


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


def supervise(
    shares: list[list[socket.socket]],
    work: Work,
    loader: Loader,
    graceful_timeout: float,
    on_ready: Callable[[], object],
) -> int:
    """Keep a worker for each share of the sockets, until a signal ends that; the exit status.

    The signals stay blocked afterwards, so that none can change the exit status any more.

    Args:
      graceful_timeout: seconds that workers may take for what is being served.
      on_ready: is called when all workers have begun.

    Raises:
      StartError: a worker can't begin.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored nobody can be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    content = _Content()
    places = [_Place(number, sockets, content) for number, sockets in enumerate(shares, 1)]
    supervisor = _Supervisor(places, content, work, loader, graceful_timeout)
    supervisor.start()
    on_ready()
    return supervisor.run()


class _Process:
    """A worker, as the supervisor has it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self._pid = pid
        self.channel = channel
        self.channel.setblocking(False)
        self._has_begun = False

    def tell(self, number: int) -> None:
        """Pass a signal on."""
        # A worker that has ended, or has hundreds of them unread, is nothing to wait for.
        with suppress(BlockingIOError, ConnectionError):
            self.channel.send(bytes([number]))

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def wait_until_ready(self) -> None:
        """Wait until it has begun.

        Raises:
          StartError: it can't.
        """
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        if not poll.poll(START_TIMEOUT * 1000):
            raise StartError(f"process {self._pid} of a worker is stuck at its start")
        report = _receive(self.channel, REPORT_SIZE)
        self._has_begun = report == READY
        if not self._has_begun:
            text = f"process {self._pid} of a worker ended at its start"
            raise StartError(report.decode() or text)

    def end(self) -> None:
        """Have it end without a drain, and wait for that."""
        self.tell(signal.SIGTERM)
        self.tell(signal.SIGTERM)
        if not self._has_begun:
            self.kill()
        os.waitpid(self._pid, 0)
        self.channel.close()

    def exit_code(self) -> int | None:
        """As subprocess.Popen has it; None while it lives. To be called until it does not."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def obituary(self, code: int) -> str:
        """How it ended."""
        report = _receive(self.channel, REPORT_SIZE)
        self.channel.close()
        if text := report.decode().strip():
            return text
        if code < 0:
            return f"process {self._pid} was killed by signal {-code}"
        return f"process {self._pid} ended with exit status {code}"


def _read_all(descriptor: int) -> bytes:
    """What a file in memory holds."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _receive(channel: socket.socket, size: int) -> bytes:
    """What has come from the other end; b"" if that is gone."""
    try:
        return channel.recv(size)
    except ConnectionResetError:  # it has gone, and did not read all of ours before
        return b""


class _Reading:
    """The process that reads files (rule 7); the file in memory gets what it has read."""

    def __init__(self, loader: Loader, places: list[_Place]) -> None:
        self._descriptor = os.memfd_create("ringtls")
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._descriptor)
            raise
        if self._pid == 0:
            self._become(loader, places)

    def _become(self, loader: Loader, places: list[_Place]) -> NoReturn:
        status = 1
        try:
            for place in places:
                place.abandon()
            signal.alarm(READ_TIMEOUT)  # its default action ends this process
            with open(self._descriptor, "wb", closefd=False) as file:
                file.write(loader.read())
            status = 0
        finally:
            os._exit(status)

    def exit_code(self) -> int | None:
        """As subprocess.Popen has it; None while it lives. To be called until it does not."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def take(self) -> bytes:
        """What it has read, after its end: all of it, or a part if it came to no good end."""
        try:
            return _read_all(self._descriptor)
        finally:
            os.close(self._descriptor)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._descriptor)


class _Place:
    """One of the workers: its sockets stay, while processes come and go."""

    def __init__(self, number: int, sockets: list[socket.socket], content: _Content) -> None:
        self.number = number
        self.process: _Process | None = None
        self.start_at = 0.0  # on the monotonic clock, if there is no process
        self._sockets = sockets
        self._content = content
        self._started_at = 0.0
        self._next_pause = FIRST_PAUSE

    def start(self, work: Work, places: list[_Place]) -> None:
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
        self.process = _Process(pid, ours)

    def _become(
        self, work: Work, channel: socket.socket, far_end: socket.socket, places: list[_Place]
    ) -> NoReturn:
        """Be this worker, in the forked process."""

        def report(data: bytes) -> None:
            with suppress(ConnectionError):  # the supervisor is gone, as ``channel`` will say
                channel.send(data)

        status = 1
        try:
            far_end.close()  # rule 5
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
        """There is no process any more. Seconds until there may be another (rule 6)."""
        self.process = None
        now = time.monotonic()
        if now - self._started_at > LONGEST_PAUSE:
            self._next_pause = FIRST_PAUSE
        pause = self._next_pause
        self._next_pause = min(2 * pause, LONGEST_PAUSE)
        self.start_at = now + pause
        return pause


class _Supervisor:
    def __init__(
        self,
        places: list[_Place],
        content: _Content,
        work: Work,
        loader: Loader,
        graceful_timeout: float,
    ) -> None:
        self._places = places
        self._content = content
        self._work = work
        self._loader = loader
        self._graceful_timeout = graceful_timeout
        self._draining = False
        self._kill_at = float("inf")  # on the monotonic clock
        self._reading: _Reading | None = None
        self._read_at = float("inf")  # on the monotonic clock: when to read files
        self._watchdog = watchdog_interval()
        self._status = 0

    def start(self) -> None:
        """Start all workers.

        Raises:
          StartError: one can't begin; there is none now.
        """
        try:
            for place in self._places:
                place.start(self._work, self._places)
            for process in self._processes():
                process.wait_until_ready()
        except StartError:
            for process in self._processes():
                process.end()
            raise

    def run(self) -> int:
        """Obey signals until all workers have ended; the exit status."""
        while not self._draining or self._processes():
            number = self._next_signal()
            if self._watchdog is not None:
                notify("WATCHDOG=1")
            if number in (signal.SIGINT, signal.SIGTERM):
                self._drain()
                self._tell(number)
            elif number == signal.SIGHUP and not self._draining:
                self._read_at = time.monotonic()
            self._look_at_reading()
            for place in self._places:
                self._look_at(place)
            if time.monotonic() >= self._kill_at:
                self._kill_at = float("inf")
                self._kill()
        return self._status

    def _next_signal(self) -> int | None:
        """The next signal; None if it is time to do something without one."""
        now = time.monotonic()
        times = [self._kill_at]
        if self._reading is None:
            times.append(self._read_at)
        if self._watchdog is not None:
            times.append(now + self._watchdog)
        if not self._draining:
            times += [place.start_at for place in self._places if place.process is None]
        if min(times) == float("inf"):
            return signal.sigwait(BLOCKED)
        info = signal.sigtimedwait(BLOCKED, max(0.0, min(times) - now))
        return None if info is None else info.si_signo

    def _drain(self) -> None:
        notify("STOPPING=1")
        timeout = END_TIMEOUT if self._draining else self._graceful_timeout + END_TIMEOUT
        self._kill_at = min(self._kill_at, time.monotonic() + timeout)
        self._draining = True
        for place in self._places:
            place.close_sockets()
        self._read_at = float("inf")
        if self._reading is not None:
            self._reading.kill()
            self._reading = None

    def _kill(self) -> None:
        for place in self._places:
            if place.process is not None:
                logger.error("worker %d: does not end, and is killed", place.number)
                place.process.kill()

    def _look_at_reading(self) -> None:
        """See whether files have been read, or are to be."""
        if self._reading is not None:
            code = self._reading.exit_code()
            if code is not None:
                self._end_reading(self._reading, code)
                self._reading = None
        if self._reading is None and time.monotonic() >= self._read_at:
            self._read_at = float("inf")
            notify_reloading()
            try:
                self._reading = _Reading(self._loader, self._places)
            except OSError as error:
                logger.error("%s: can't start a process: %s", KEPT, error.strerror)
                notify("READY=1")
                self._read_soon()

    def _end_reading(self, reading: _Reading, code: int) -> None:
        data = reading.take()
        if code == -signal.SIGALRM:
            self._loader.give_up()
        else:
            match self._loader.use(data if code == 0 else b""):
                case Result.USED:
                    self._hand_on(data)
                case Result.SHORT:
                    self._read_soon()
        notify("READY=1")

    def _hand_on(self, data: bytes) -> None:
        try:
            self._content.put(data)
        except OSError as error:
            logger.error("SIGHUP: the workers can't have the certificates yet: %s", error.strerror)
            self._read_soon()
        else:
            self._tell(signal.SIGHUP)

    def _read_soon(self) -> None:
        """Something was short."""
        self._read_at = min(self._read_at, time.monotonic() + RETRY_INTERVAL)

    def _tell(self, number: int) -> None:
        for process in self._processes():
            process.tell(number)

    def _processes(self) -> list[_Process]:
        return [place.process for place in self._places if place.process is not None]

    def _look_at(self, place: _Place) -> None:
        """See whether its process has ended, or whether it is time for another."""
        if place.process is not None:
            code = place.process.exit_code()
            if code is not None:
                self._bury(place, code, place.process.obituary(code))
        elif not self._draining and time.monotonic() >= place.start_at:
            try:
                place.start(self._work, self._places)
            except StartError as error:
                self._bury(place, 1, str(error))

    def _bury(self, place: _Place, code: int, obituary: str) -> None:
        pause = place.bury()
        if not self._draining:
            logger.error("worker %d: %s; another starts in %g s", place.number, obituary, pause)
        elif code != 0:
            logger.error("worker %d: %s", place.number, obituary)
            self._status = 1
