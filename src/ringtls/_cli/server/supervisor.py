"""``--workers``: a supervisor of the processes in which connections are served (workers.py).

Rules:

1. The supervisor owns the listening sockets, and accepts nothing itself. Each worker has its own
   share of them, and so has the one that takes its place after a crash: connections that wait
   to be accepted wait for that one.
2. Workers are forked from the supervisor, which therefore never has a thread, a trio run or a
   ring. So they share the memory of what is loaded and, until SIGHUP, the keys of session
   tickets.
3. A signal is never lost and never comes amid something: they are all blocked, and the
   supervisor takes one after the other from the kernel.
4. The supervisor waits for nothing but the kernel's signals. So it has files read by a process
   of its own (reading.py). What is short, this process included, is tried again (rule 2 of
   reloading.py).
5. A worker that does not end when it should (it is stopped, or hangs) is killed: while draining,
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
    time is up (5)                                           kills the workers
    the last one ends    the same                            ends; 1 if one crashed
    SIGKILL              the workers drain                   they cut short what is left
    ===================  ==================================  =========================
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

from .errors import StartError
from .notify import notify, notify_reloading, watchdog_interval
from .reading import Content, Reading
from .reloading import KEPT, RETRY_INTERVAL, Result
from .workers import Place, Process, Work

__all__ = ["SIGNALS", "Loader", "supervise"]

logger = logging.getLogger("ringtls.server")

#: What a server is told by.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: See rule 3.
BLOCKED = [*SIGNALS, signal.SIGCHLD]

#: Seconds that the ends of connections take at most, and some more; see rule 5.
END_TIMEOUT = 10.0

#: Seconds that are waited for a signal at once: more than C's types hold may be asked for.
LONGEST_WAIT = 24 * 60 * 60.0


class Loader(Protocol):
    """What SIGHUP loads anew (rule 4)."""

    def read(self) -> bytes:
        """What ``use`` wants. May block."""

    def use(self, data: bytes) -> Result:
        """Have workers inherit this from now on, if it can be used."""

    def give_up(self) -> None:
        """Reading took too long."""


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
    content = Content()
    places = [Place(number, sockets, content) for number, sockets in enumerate(shares, 1)]
    supervisor = _Supervisor(places, content, work, loader, graceful_timeout)
    supervisor.start()
    on_ready()
    return supervisor.run()


class _Supervisor:
    def __init__(
        self,
        places: list[Place],
        content: Content,
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
        self._reading: Reading | None = None
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
        times = [self._kill_at, now + LONGEST_WAIT]
        if self._reading is None:
            times.append(self._read_at)
        if self._watchdog is not None:
            times.append(now + self._watchdog)
        if not self._draining:
            times += [place.start_at for place in self._places if place.process is None]
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
            self._reading.end()
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
                self._reading = Reading(self._loader.read, self._abandon_workers)
            except OSError as error:
                logger.error("%s: can't start a process: %s", KEPT, error.strerror)
                notify("READY=1")
                self._read_soon()

    def _abandon_workers(self) -> None:
        for place in self._places:
            place.abandon()

    def _end_reading(self, reading: Reading, code: int) -> None:
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

    def _processes(self) -> list[Process]:
        return [place.process for place in self._places if place.process is not None]

    def _look_at(self, place: Place) -> None:
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

    def _bury(self, place: Place, code: int, obituary: str) -> None:
        pause = place.bury()
        if not self._draining:
            logger.error("worker %d: %s; another starts in %g s", place.number, obituary, pause)
        elif code != 0:
            logger.error("worker %d: %s", place.number, obituary)
            self._status = 1
