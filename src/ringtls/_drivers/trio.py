"""How a trio run drives a ring.

Rules:

1. Each run has one driver, and one ring if it needs one: streams over other streams do
   not. An instrument submits before trio sleeps and reaps after it woke, so a task runs in the
   tick in which its operation completed.
2. Nothing is rescheduled before the sleep: trio has computed its timeout by then. What is
   complete already makes the eventfd readable instead (csrc/reap.c).
3. The pump, a system task, waits for the descriptor that the ring has to sleep on, so that trio
   wakes; before there is a ring, for the driver's eventfd. It clears that; all dispatching is
   the instrument's. While trio is awake anyway the descriptor is not used. In a busy poll
   (busy_poll.py) it is the pump that keeps trio awake. It keeps nothing to itself: one in which
   something was raised is followed by another, which begins where the run is by then.
4. trio removes an instrument that raises, which would leave every waiter asleep. So a failure
   is caught, and ends every request in flight with itself as the reason. What a signal's handler
   raises at the very entry of the instrument can't be caught: a second instrument, called after
   the first, sees that it is missing and puts it back. trio ends a run whose system task raises,
   or a function that run_sync_soon calls: all of ours begin in a frame that is not ours, and
   which catches. An abort function must not raise, either: ours leave what is to be done to the
   instrument (rule 2 of trio_waiting.py), before what was cancelled is submitted.
5. The run's end waits for every closing. trio ends it in three steps, and we keep up:
   a. The main task is done and the system tasks are cancelled. The pump stays until it is the
      last of them and every close that has begun is done. A task of ours that sends over a stream
      below has the time that an end has, and then that end begins: its peer may take in nothing.
   b. Async generators are finalized, one by one, and may close streams. System tasks can't be
      started any more, so a second pump is started in the nursery of trio's run_sync_soon
      task, the only one that is still open. Other tasks of ours then run there as well.
   c. That nursery is cancelled. What is still open ends here, as if it had been dropped:
      destructors first, which are the last user code, and may use streams and threads. So the
      run_sync_soon task, by which threads come back, is shielded until then. Then the streams, and
      what else is in flight has GRACE seconds to end.
   What ends these waits is looked for in each tick, and not told once: that would be lost where a
   signal's handler raises in its midst. So are the late pump that was asked for, and the calls
   that other threads, finalizers and cancellations have left: what raises in one is called once
   more.
   After the run the ring is drained and freed. Every wait of these is bounded: an end that is
   not there LATE seconds after its deadline is given up (rule C16).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import trio
from outcome import capture
from trio.lowlevel import RunVar, current_task

from .._clock import now
from .._engine.eventfd import open_eventfd
from .._engine.wakeups import open_for_event_loop
from .._errors import wrong_caller
from .._log import log
from .._statistics import Statistics, Tally
from .._task import Task as Work
from .busy_poll import BUSY_POLL_NS, Polling
from .deadlines import Deadlines
from .end_of_run import Patience, adopt, give_up
from .trio_waiting import (
    TrioWaitQueue,
    cancel_shielded_checkpoint,
    leaving,
    raise_cancelled,
    uncancellable_checkpoint,
)

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT

    from .._engine.handle import Handle
    from .._engine.ring import Ring
    from .._interfaces import Ending, WaitQueue

__all__ = ["TrioDriver"]

#: Seconds that sends which nobody waits for may take after the last task has ended.
GRACE = 5.0


#: Pumps that a run has at most (rule 3): what ends so many would end each.
MOST_PUMPS = 8


def _are_system_tasks_done() -> bool:
    """True if their nursery is gone, too (rule 5b)."""
    root = trio.lowlevel.current_root_task()
    return root is not None and len(root.child_nurseries) == 1


_drivers: WeakSet[TrioDriver] = WeakSet()


def _die_in_child() -> None:
    for driver in _drivers:
        driver.is_forked = True


os.register_at_fork(after_in_child=_die_in_child)


class _Guard(trio.abc.Instrument):
    """Puts the driver back among the instruments if trio has removed it, and repeats what was
    interrupted (rule 4)."""

    def __init__(self, driver: TrioDriver) -> None:
        self._driver = driver

    def before_io_wait(self, timeout: float) -> None:
        driver = self._driver
        if driver.is_at_work:
            driver.is_at_work = False
        else:
            trio.lowlevel.add_instrument(driver)
            driver.before_io_wait(timeout)
            driver.is_at_work = False

    def after_run(self) -> None:
        self._driver.after_run()


class TrioDriver(trio.abc.Instrument):
    """What the streams of one trio run share, and how its tasks wait for the ring."""

    runs_between_calls: ClassVar[bool] = True

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._ring: Ring | None = None
        self._eventfd = open_eventfd()
        self.is_forked = False
        self._thread = get_ident()
        _drivers.add(self)
        self._token = trio.lowlevel.current_trio_token()
        self._endings: dict[Ending, None] = {}  # in the order in which they were made
        self.tally = Tally()
        self._polling = Polling()
        self.deadlines = Deadlines()
        self.move_on_at = self.deadlines.move_on_at
        self._submitted = False
        self.is_at_work = False  # seen and cleared by the guard in each tick
        self._due: deque[Callable[[], object]] = deque()
        self._cancellations: deque[Callable[[], object]] = deque()
        self._pumps = 0  # that were started: the last one counts
        self._pump_runs = False
        self._draining = False  # the pump waits for the ends of closings, and not for the eventfd
        self._outlasts: trio.Nursery | None = None  # whose other tasks the pump waits for
        self._late_nursery: trio.Nursery | None = None
        self._wants_late_pump = False
        self._shield = trio.CancelScope()  # of the run_sync_soon task (rule 5c)
        self._is_shielding = False
        self._late_tasks: list[Callable[[], Awaitable[object]]] = []

    @classmethod
    def current(cls) -> TrioDriver:
        """The driver of this run, made on first use.

        Raises:
          RuntimeError: not called from inside a trio run.
        """
        try:
            return _current.get()
        except LookupError:
            driver = cls()
            driver._start()
            _current.set(driver)
            return driver
        except RuntimeError:
            raise RuntimeError(
                "ringtls streams can be used only inside trio.run(), "
                "or anyio.run(..., backend='trio')"
            ) from None

    def _start(self) -> None:
        trio.lowlevel.add_instrument(self)
        trio.lowlevel.add_instrument(_Guard(self))
        self._start_pump()

    # What streams use (Driver of _interfaces)

    @property
    def ring(self) -> Ring:
        """The ring of this run, made on first use.

        Raises:
          RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
        """
        if self._ring is None:
            self._ring = open_for_event_loop(self._eventfd.fileno())
            self.wake()  # the pump sleeps on the ring from now on
        return self._ring

    def start_task(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a system task, also at the end of the run. It must shield itself."""
        if self._late_nursery is not None:
            self._late_nursery.start_soon(function)
            return
        try:
            trio.lowlevel.spawn_system_task(function)
        except RuntimeError:  # rule 5b
            self._late_tasks.append(function)
            self._ask_for_late_pump()

    def wait_queue(self) -> TrioWaitQueue:
        return TrioWaitQueue()

    async def wait(self, handle: Handle) -> int | bytes:
        caller = TrioWaitQueue()
        is_cancelled = False

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True
            if not handle.done:
                handle.cancel()

        handle.notify(lambda request: caller.wake())
        await caller.wait_with(self.abort_by(cancel))
        try:
            return handle.take()
        except OSError as error:
            if error.errno == errno.ECANCELED:
                await trio.lowlevel.checkpoint_if_cancelled()
                if is_cancelled:
                    await raise_cancelled()
            raise

    def abort_by(self, function: Callable[[], object]) -> Callable[[RaiseCancelT], Abort]:
        """What a cancellation does to a task that waits (see trio.lowlevel.wait_task_rescheduled):
        it goes on waiting, and the function is called before trio sleeps."""
        return leaving(self._cancellations, function)

    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(cancel_shielded_checkpoint)
    uncancellable_checkpoint = staticmethod(uncancellable_checkpoint)

    def register(self, ending: Ending) -> None:
        self._endings[ending] = None
        if not self._pump_runs:
            self._ask_for_late_pump()

    def unregister(self, ending: Ending) -> None:
        self._endings.pop(ending, None)

    def call_soon(self, function: Callable[[], object]) -> None:
        self._due.append(function)
        self._token.run_sync_soon(bool)  # one more tick

    def check_caller(self) -> None:
        if self.is_forked or get_ident() != self._thread:
            raise wrong_caller(is_forked=self.is_forked)

    def look(self) -> None:
        try:
            self.ring.submit()
            self._reap()
        except BaseException as failure:
            self._fail(failure)

    async def wait_at_most(self, queue: WaitQueue, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await queue.wait()

    def statistics(self) -> Statistics:
        """The figures of this run."""
        connections = [ending for ending in self._endings if not ending.runs_user_code]
        closing = sum(ending.started for ending in connections)
        engine = None if self._ring is None else self._ring.counters()
        return Statistics(
            engine=str(self._ring.engine) if self._ring else None,
            connections_open=len(connections) - closing,
            connections_closing=closing,
            closings=dict(self.tally.closings),
            handshakes=dict(self.tally.handshakes),
            handshake_failures=dict(self.tally.handshake_failures),
            orphans_adopted=self.tally.orphans_adopted,
            bytes_sent=self.tally.bytes_sent + (engine.bytes_sent if engine else 0),
            bytes_received=self.tally.bytes_received + (engine.bytes_received if engine else 0),
            operations_in_flight=engine.in_flight - engine.idle if engine else 0,
            operations_submitted=engine.submitted if engine else 0,
            operations_retried=engine.retries if engine else 0,
            buffers_in_use=engine.buffers_lent if engine else 0,
            completion_queue_overflows=engine.cq_overflows if engine else 0,
        )

    # The instrument

    def before_io_wait(self, timeout: float) -> None:
        try:
            if timeout > 0 and self.deadlines.not_before < inf:
                self._mind_deadlines(timeout)
            if self._draining:
                self._mind_the_end()
            if self._due or self._cancellations:
                self._have_one_more_tick()
            if self._cancellations:
                self._make_calls(self._cancellations)
            if self._wants_late_pump and _are_system_tasks_done():
                self._call_for_late_pump()
            self.is_at_work = True
            ring = self._ring
            if ring is None or ring.forked or self.failure is not None:
                return
            self._submitted = ring.submit()
            if timeout > 0:
                ring.arm()
                self._polling.falls_asleep()
            if not self._pump_runs and ring.in_flight:
                self._ask_for_late_pump()
        except BaseException as failure:
            self._fail(failure)

    def _mind_deadlines(self, timeout: float) -> None:
        if not (self.is_forked or self.deadlines.before_sleep(timeout, self)):
            self.wake()

    def _mind_the_end(self) -> None:
        """Wake who waits for what has come by now (rule 5)."""
        if self._outlasts is not None and self._is_last_of(self._outlasts):
            self.wake()
        late = self._late_nursery
        if self._is_shielding and late is not None and len(late.child_tasks) == 1:
            with suppress(trio.RunFinishedError):  # that task has ended: it was not shielded
                self._token.run_sync_soon(capture, self._end_shield)

    def _have_one_more_tick(self) -> None:
        try:
            self._token.run_sync_soon(bool)
        except trio.RunFinishedError:  # but the late pump runs
            self.wake()

    def after_io_wait(self, timeout: float) -> None:
        try:
            if timeout > 0:
                self._polling.wakes()
            if self._due:
                self._make_calls(self._due)
            self._reap()
        except BaseException as failure:
            self._fail(failure)

    def _make_calls(self, calls: deque[Callable[[], object]]) -> None:
        if self.is_forked:
            calls.clear()  # the parent makes them
        for _ in range(len(calls)):  # what they add is for the next tick
            function = calls[0]
            try:
                try:
                    function()
                except BaseException:
                    function()
            finally:
                calls.popleft()

    def after_run(self) -> None:
        """To be repeated if something is raised in here."""
        if self.is_forked:
            return  # all of it is the parent's
        give_up(self._endings)  # none is left, unless the run has crashed
        if self._ring is not None:
            self._ring.close(timeout=1.0)
        self._eventfd.close()  # the kernel has it open by itself

    def __del__(self) -> None:
        with suppress(AttributeError):  # its making was broken off
            self._eventfd.close()

    def _reap(self) -> None:
        ring = self._ring
        if ring is None or ring.forked or self.failure is not None:
            return
        polls = self._polling.awake and not self._submitted
        if polls:
            ring.busy_poll(BUSY_POLL_NS)
        found = ring.reap()
        if polls and not found:
            self._polling.stop()
        if found and self._draining:
            self.wake()
        self._polling.has_moved(ring.bytes_moved)

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self._polling.stop()
        if self._ring is not None:
            self._ring.fail(failure)
        self.wake()

    def wake(self) -> None:
        """Have the pump look again. Nothing after the run, which may have crashed: what it leaves
        behind is finalized then, and the number is another file's (rule C17)."""
        if not self._eventfd.closed:
            os.eventfd_write(self._eventfd.fileno(), 1)

    # The pump

    def _start_pump(self) -> None:
        self._pumps += 1
        number = self._pumps
        pump = Work(partial(self._pump, number), partial(self._lose_pump, number), shield=False)
        self._pump_runs = True
        pump.start(self._spawn_pump)

    def _spawn_pump(self, pump: Callable[[], Awaitable[object]]) -> None:
        if self._late_nursery is not None:
            self._late_nursery.start_soon(pump, name="ringtls late pump")
            return
        try:
            trio.lowlevel.spawn_system_task(pump, name="ringtls pump")
        except RuntimeError:  # rule 5b
            self._pumps += 1  # this one is not missed
            self._pump_runs = False
            if self._endings or self._in_flight:
                self._ask_for_late_pump()

    async def _pump(self, number: int) -> None:
        if number != self._pumps or _current.get(None) is not self:  # type: ignore[arg-type]
            return  # another one took its place; or the driver's making was broken off, as here
        late = self._late_nursery is not None
        try:
            while True:
                await self._next_wakeup()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._drain(late)
        self._pump_runs = False
        if not late and not self.is_forked and (self._endings or self._in_flight):
            self._ask_for_late_pump()

    def _lose_pump(self, number: int, failure: BaseException) -> None:
        """Something was raised in the pump (rule 3)."""
        if number != self._pumps or self._eventfd.closed or self.is_forked:
            return  # another one has its place, or the run is over
        log(logging.ERROR, "the pump of a run raised %r", failure, failure=failure)
        if number < MOST_PUMPS or self.failure is None:
            if number >= MOST_PUMPS:
                self._fail(failure)
            self._start_pump()
        else:
            self._pump_runs = False

    async def _next_wakeup(self) -> None:
        while self._polling.awake:
            await trio.lowlevel.checkpoint()
        ring = self._ring
        if ring is None or not ring.is_usable:
            await trio.lowlevel.wait_readable(self._eventfd)
            with suppress(BlockingIOError):
                os.eventfd_read(self._eventfd.fileno())
        else:
            await trio.lowlevel.wait_readable(ring.sleep_fd)
            if ring.is_usable:
                ring.clear()

    @property
    def _in_flight(self) -> int:
        return 0 if self._ring is None else self._ring.in_flight

    def _ask_for_late_pump(self) -> None:
        if self._late_nursery is None:
            self._wants_late_pump = True
            self._call_for_late_pump()

    def _call_for_late_pump(self) -> None:
        try:
            self._token.run_sync_soon(capture, self._start_late_pump)
        except trio.RunFinishedError:
            self._wants_late_pump = False
            raise

    def _start_late_pump(self) -> None:
        """In the run_sync_soon task. It is asked for again if something is raised in here."""
        nursery = current_task().parent_nursery
        assert nursery is not None
        if not self._wants_late_pump or not _are_system_tasks_done():
            return  # it was started; or it is too early
        try:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(bool)  # raises if the first use of ringtls came too late
                self._shield = trio.CancelScope(shield=True)
                self._is_shielding = True
                self._shield.__enter__()
            self._draining = True
            self._late_nursery = nursery
            while True:
                if not self._late_tasks:
                    break
                nursery.start_soon(self._late_tasks.pop(0))
            if not self._pump_runs:
                self._start_pump()
            self._wants_late_pump = False
        except BaseException:
            self._end_shield()
            raise

    def _end_shield(self) -> None:
        """To be repeated if something is raised in here."""
        if self._is_shielding:
            with suppress(RuntimeError):  # it was not entered yet, or was left before
                self._shield.__exit__(None, None, None)
            self._is_shielding = False

    async def _drain(self, late: bool) -> None:
        """Stay until this is the last task, and then until nothing is in flight (rule 5)."""
        if self.is_forked:
            return  # all of it is the parent's
        nursery = current_task().parent_nursery
        assert nursery is not None
        self._draining = True
        self._outlasts = nursery
        begin = now()
        while not self._is_last_of(nursery):
            holding = [ending for ending in self._endings if ending.holds_tasks]
            adopt(each for each in holding if begin + each.timeout <= now())
            with self.move_on_at(min((begin + each.timeout for each in holding), default=inf)):
                await self._next_wakeup()
        self._outlasts = None
        while True:
            await self._drain_destructors(late)
            if late:
                adopt(self._endings)
            if self._ring is not None and self.failure is None:
                self._ring.cancel_all(reads_only=True)
                self._ring.expedite_close()
            await self._await_endings()
            if not late or not any(ending.runs_user_code for ending in self._endings):
                break  # else a stream that is not ours has made some at its end
        if late and self._ring is not None:
            await self._drain_rest(self._ring)

    def _is_last_of(self, nursery: trio.Nursery) -> bool:
        """Does the pump outlast all of its siblings, but for a run_sync_soon task that is there as
        long as it is shielded?"""
        return len(nursery.child_tasks) <= 1 + self._is_shielding

    async def _await_endings(self) -> None:
        patience = Patience()
        while started := [ending for ending in self._endings if ending.started]:
            end = patience.lasts_until(started)
            if end <= now():
                give_up(started)
                continue
            with self.move_on_at(end):
                await self._next_wakeup()

    async def _drain_destructors(self, late: bool) -> None:
        """Stay until all destructors that have begun are done; late, all that there are."""
        patience = Patience()
        while True:
            waited_for = [ending for ending in self._endings if ending.runs_user_code]
            if late:
                adopt(waited_for)
            else:
                waited_for = [ending for ending in waited_for if ending.started]
            if not waited_for:
                return
            time = now()
            give_up(each for each in waited_for if patience.lasts_until([each]) <= time)
            with self.move_on_at(min(patience.lasts_until([each]) for each in waited_for)):
                await self._next_wakeup()

    async def _drain_rest(self, ring: Ring) -> None:
        """What nobody waits for may take GRACE seconds."""
        if self.failure is not None or not ring.in_flight:
            return
        timer = ring.timer(now() + GRACE)
        while self.failure is None and not timer.is_over and ring.in_flight > 1:
            await self._next_wakeup()
        if self.failure is None and not timer.is_over:
            ring.cancel(timer)


_current: RunVar[TrioDriver] = RunVar("ringtls driver")
