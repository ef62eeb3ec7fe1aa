"""How a plain thread drives a ring.

Rules:

1. Each thread has one driver with one ring, made on first use. No other thread may use it.
2. A wait never suspends: it drives the ring until the awaited event has happened. So a coroutine
   that awaits nothing but this driver runs to completion at its first ``send`` (``complete``).
3. Nobody drives the ring between calls. So each call ends with a submit and a reap, and the
   thread's end does the work that is left after the last call.
4. SIGINT never interrupts a call between two steps that belong together: its handler runs where
   the call waits, or after the call. Masking the signal would not achieve that, because Python
   runs the handler in the main thread, at any bytecode, whichever thread took the signal. So
   during a call a handler of our own is installed, which records the signal for later.
   Another signal's handler may raise between any two steps, those that install and remove ours
   too: then they are undone, or done again. Where it raises at the entry of a call's end nobody can
   catch that. So a call is over, too, when the frame that entered it is no longer below; that is
   seen at the thread's next call, or SIGINT, and until then the frame is kept.
5. A finalizer may run in any thread, in the middle of any call, also of its first and last
   steps. It only queues work, unless the thread is in no call.
6. At the thread's end, streams that are still open are closed as if they had been dropped, and
   every close that has begun is waited for. What is interrupted there is tried once more. The
   main thread ends when the interpreter exits. In a
   process of multiprocessing it ends with that's finalizers: a forked one then leaves by os._exit.
7. Under gevent's monkey patching, a thread is expected to run other greenlets while one waits. A
   wait for the ring would stop all of them, so the driver refuses to be made.
"""

from __future__ import annotations

import atexit
import errno
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from threading import get_ident
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .._clock import now
from .._engine.ring import Ring
from .._errors import RingFailedError, wrong_caller
from .._statistics import Tally
from .end_of_run import Patience, adopt, give_up

if TYPE_CHECKING:
    from .._engine.handle import Handle
    from .._interfaces import Ending, WaitQueue

__all__ = ["BlockingDriver", "Call", "complete", "complete_into"]

T = TypeVar("T")

#: A thread has few streams, and passes on at once what has come. There may be many threads.
BUFFERS = 4
SQ_ENTRIES = 64

#: Seconds after which a sleeping call looks at what finalizers of other threads have left behind,
#: and at a signal that came just before it fell asleep.
LONGEST_SLEEP = 1.0


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends (rule 2)."""
    results: list[T] = []
    complete_into(results, coroutine)
    return results[0]


def complete_into(results: list[T], coroutine: Coroutine[Any, Any, T]) -> None:
    """The same; what a signal's handler raises when it has returned finds its result there."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        results.append(done.value)
        return
    raise AssertionError("a blocking driver's coroutine was suspended")


class _ExpiredError(Exception):
    """The call's time is over. Not an OSError, which would be the connection's."""


class _BlockingWaitQueue:
    """Waits for the next occurrence of something (WaitQueue of _interfaces)."""

    __slots__ = ("_driver", "_wakes")

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver
        self._wakes = 0

    def wake(self) -> None:
        self._wakes += 1

    async def wait(self) -> None:
        seen = self._wakes
        self._driver.drive_until(lambda: self._wakes > seen)

    async def wait_uncancellable(self) -> None:
        seen = self._wakes
        self._driver.drive_until(lambda: self._wakes > seen, interruptible=False)


class _Interrupts:
    """Keeps SIGINT back during a call of the main thread (rule 4)."""

    def __init__(self) -> None:
        self.calls: list[Call] = []  # each may be of a finalizer, or a handler, in the one before
        self._is_main_thread = get_ident() == threading.main_thread().ident
        self._handler: Callable[[int, FrameType | None], object] | None = None
        self._is_pending = False

    def hold(self) -> bool:
        """True if there is something to ``release``."""
        handler = signal.getsignal(signal.SIGINT)
        if not self._is_main_thread or not callable(handler):
            return False
        if handler != self._keep:  # else a call was broken off in these steps, or in its last
            self._handler = handler
            signal.signal(signal.SIGINT, self._keep)
        return True

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._is_pending = True
        if not self.is_in_call(frame):
            self.release()

    def is_in_call(self, frame: FrameType | None) -> bool:
        """Is this thread, which is at that frame, in a call? Those that were broken off are over
        (rule 4)."""
        for call in self.calls[::-1]:
            if call.is_below(frame):
                return True
            call.leave()
        return False

    def deliver(self) -> None:
        """Run the handler now, if there was a signal. It may raise."""
        if self._is_pending:
            assert self._handler is not None
            self._is_pending = False
            self._handler(signal.SIGINT, sys._getframe())

    def release(self) -> None:
        """Let the signal through again, and one that was kept. Doing it twice is harmless."""
        pending, self._is_pending = self._is_pending, False  # before a finalizer's call sees it
        try:
            if signal.getsignal(signal.SIGINT) == self._keep:  # else the handler set a successor
                signal.signal(signal.SIGINT, self._handler)
        finally:
            if pending or self._is_pending:
                self._is_pending = False
                signal.raise_signal(signal.SIGINT)


class Call:
    """A context manager for what a thread does with its streams, until a deadline."""

    __slots__ = ("_deadline", "_driver", "_frame", "_holds", "_outer_deadline")

    def __init__(self, driver: BlockingDriver, timeout: float | None) -> None:
        self._driver = driver
        self._deadline = None if timeout is None else now() + timeout

    def __enter__(self) -> None:
        driver = self._driver
        driver.check_caller()
        interrupts = driver.interrupts
        self._holds = False
        self._frame: FrameType | None = sys._getframe(1)
        is_outermost = not interrupts.is_in_call(self._frame)
        self._outer_deadline = driver.deadline
        try:
            interrupts.calls.append(self)
            if is_outermost:
                self._holds = True
                self._holds = interrupts.hold()
            driver.deadline = self._deadline
        except BaseException:
            self.leave()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        driver = self._driver
        try:
            driver.go_on()
        finally:
            self.leave()
        if exc_type is _ExpiredError:
            raise TimeoutError("timed out") from None

    def leave(self) -> None:
        """It is over. Doing it twice is harmless."""
        driver = self._driver
        self._frame = None  # no reference cycle
        driver.deadline = self._outer_deadline
        try:
            if self._holds:
                try:
                    driver.interrupts.release()
                except BaseException:
                    driver.interrupts.release()
                    raise
        finally:
            if self in driver.interrupts.calls:
                driver.interrupts.calls.remove(self)

    def is_below(self, frame: FrameType | None) -> bool:
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None


class BlockingDriver:
    """What the streams of one thread share, and how it waits for its ring (Driver of _interfaces).

    Raises:
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      RuntimeError: gevent has patched this process (rule 7).
    """

    runs_between_calls: ClassVar[bool] = False

    def __init__(self) -> None:
        _refuse_greenlets()
        self.ring = Ring(buffers=BUFFERS, sq_entries=SQ_ENTRIES)
        self.tally = Tally()
        self.interrupts = _Interrupts()
        self.deadline: float | None = None
        self.has_ended = False  # or is about to: no stream is made any more
        self._is_over = False
        self._thread = get_ident()
        self._endings: set[Ending] = set()
        self._left_behind: deque[Callable[[], object]] = deque()

    @classmethod
    def current(cls) -> BlockingDriver:
        """The driver of this thread, made on first use."""
        end: _ThreadEnd | None = getattr(_this_thread, "end", None)
        if end is None:
            _this_thread.end = end = _ThreadEnd()
        if end.driver is None or end.driver.is_forked or end.driver.has_ended:
            _end_with_multiprocessing()
            end.driver = cls()
        return end.driver

    def call(self, timeout: float | None = None) -> Call:
        """Enter this around all that uses the ring. Waits in it raise TimeoutError after
        ``timeout`` seconds, but not before they have tried. It is to be left in the frame that
        entered it, which is no generator's.

        Raises:
          RuntimeError: this thread, or this process, is not the driver's.
        """
        return Call(self, timeout)

    # What streams use

    @property
    def is_forked(self) -> bool:
        return self.ring.forked

    def wait_queue(self) -> _BlockingWaitQueue:
        return _BlockingWaitQueue(self)

    async def wait(self, handle: Handle) -> int | bytes:
        try:
            self.drive_until(lambda: handle.done)
        except BaseException as interruption:
            handle.cancel()
            self.drive_until(lambda: handle.done, interruptible=False)
            if isinstance(interruption, _ExpiredError):
                try:
                    return handle.take()
                except OSError as error:
                    if error.errno != errno.ECANCELED:
                        raise
            raise
        return handle.take()

    async def checkpoint(self) -> None:
        """Nobody else could run; and what interrupts a call, does so where it waits."""

    checkpoint_if_cancelled = cancel_shielded_checkpoint = uncancellable_checkpoint = checkpoint

    def register(self, ending: Ending) -> None:
        self._endings.add(ending)

    def unregister(self, ending: Ending) -> None:
        self._endings.discard(ending)

    def call_soon(self, function: Callable[[], object]) -> None:
        self._left_behind.append(function)
        if get_ident() == self._thread and not self.interrupts.is_in_call(sys._getframe()):
            with self.call():
                pass

    def check_caller(self) -> None:
        if self.is_forked or get_ident() != self._thread:
            raise wrong_caller(is_forked=self.is_forked)

    def look(self) -> None:
        self.go_on()

    async def wait_at_most(self, queue: WaitQueue, seconds: float) -> None:
        timer = self.ring.timer(now() + seconds, on_done=lambda timer: queue.wake())
        try:
            await queue.wait()
        finally:
            if self.ring.is_usable:
                self.ring.cancel(timer)

    # Driving

    def drive_until(self, is_over: Callable[[], bool], *, interruptible: bool = True) -> None:
        """Sleep and work until ``is_over``.

        Raises:
          BaseException: what a signal's handler raised, if this is interruptible.
          _ExpiredError: the call's time is over, if this is interruptible.
          OSError: the ring has failed.
        """
        expired = False
        while not is_over():
            timeout = LONGEST_SLEEP
            if interruptible:
                self.interrupts.deliver()
                if expired:
                    raise _ExpiredError
                if self.deadline is not None:
                    timeout = min(timeout, self.deadline - now())
                    expired = timeout <= 0
            self._look_after_the_left_behind()
            self.ring.wait(0 if self._left_behind else timeout)
            self._reap()

    def go_on(self) -> None:
        """Do what can be done without waiting."""
        self._look_after_the_left_behind()
        if self.ring.is_usable:
            self.ring.submit()
            self._reap()

    def _await_endings(self) -> None:
        started = [ending for ending in self._endings if ending.started]
        if started:
            latest = Patience().lasts_until(started)
            self.drive_until(
                lambda: self._endings.isdisjoint(started) or now() >= latest, interruptible=False
            )

    def _look_after_the_left_behind(self) -> None:
        for _ in range(len(self._left_behind)):  # what they add is for the next time
            self._left_behind.popleft()()

    def _reap(self) -> None:
        try:
            self.ring.reap()
        except BaseException as failure:
            self.ring.fail(failure)
            if not isinstance(failure, Exception):
                raise

    # The end

    def end(self) -> None:
        """End all connections, and the ring (rule 6). Nothing in a thread that is not its own.

        To be repeated if something is raised in here.
        """
        if self._is_over or self.is_forked or get_ident() != self._thread:
            return
        self.has_ended = True
        try:
            with self.call():
                self._look_after_the_left_behind()
                adopt(self._endings)
                if self.ring.is_usable:
                    self.ring.cancel_all(reads_only=True)
                    self.ring.expedite_close()
                    self._await_endings()
        except RingFailedError as failure:
            self.ring.fail(failure)
        give_up(self._endings)
        self.ring.close(timeout=1.0)
        self._is_over = True


def _refuse_greenlets() -> None:
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and (
        monkey.is_module_patched("socket") or monkey.is_module_patched("thread")
    ):
        raise RuntimeError(
            "gevent has monkey-patched this process, and a call of ringtls.blocking would stop all "
            "greenlets of its thread: use the ssl module, which gevent patches, or leave "
            "monkey.patch_all() away in the process that uses ringtls"
        )


class _ThreadEnd:
    """Goes when its thread does: the only thing that refers to it is thread-local."""

    driver: BlockingDriver | None = None

    def __del__(self) -> None:
        self()

    def __call__(self) -> None:
        if self.driver is not None:
            try:
                self.driver.end()
            except BaseException:
                self.driver.end()
                raise


_this_thread = threading.local()


def _end_this_thread() -> None:
    end: _ThreadEnd | None = getattr(_this_thread, "end", None)
    if end is not None:
        end()


def _end_with_multiprocessing() -> None:
    """If this is the main thread of a process of multiprocessing (rule 6)."""
    process: Any = sys.modules.get("multiprocessing.process")
    is_its_own = process is not None and process.parent_process() is not None
    if is_its_own and get_ident() == threading.main_thread().ident:
        util: Any = sys.modules["multiprocessing.util"]
        util.Finalize(None, _end_this_thread, exitpriority=0)


# Before the rings are closed: _engine.ring was imported, and registered itself, earlier.
atexit.register(_end_this_thread)
