"""How a trio run drives a ring.

Rules:

1. Each run has one driver, and one ring if it needs one: streams over other streams do
   not. An instrument submits before trio sleeps and reaps after it woke, so a task runs in the
   tick in which its operation completed.
2. Nothing is rescheduled before the sleep: trio has computed its timeout by then. What is
   complete already makes the eventfd readable instead (csrc/reap.c).
3. The pump, a system task, waits for the driver's eventfd, so that epoll wakes. It clears it;
   all dispatching is the instrument's. While trio is awake anyway the eventfd is not used. In
   polling (_polling) it is the pump that keeps trio awake.
4. trio removes an instrument that raises, which would leave every waiter asleep. So a failure
   is caught, and ends every request in flight with itself as the reason.
5. The run's end waits for every closing. trio ends it in three steps, and we keep up:
   a. The main task is done and the system tasks are cancelled. The pump stays until it is the
      last of them and every close that has begun is done.
   b. Async generators are finalized, one by one, and may close streams. System tasks can't be
      started any more, so a second pump is started in the nursery of trio's run_sync_soon
      task, the only one that is still open. Other tasks of ours then run there as well.
   c. That nursery is cancelled: no user code is left. Streams still open are closed here, as
      if they had been dropped, and what else is in flight has GRACE seconds to end.
   After the run the ring is drained and freed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

import trio
from outcome import Value
from trio.lowlevel import Abort, RaiseCancelT, RunVar, Task, current_task, reschedule

from .._engine.wakeups import open_for_event_loop
from .._statistics import Statistics, Tally
from .busy_poll import LOOK, Polling
from .end_of_run import adopt

if TYPE_CHECKING:
    from .._engine.handle import Handle
    from .._engine.ring import Ring
    from .._interfaces import Ending

__all__ = ["TrioDriver"]

#: Seconds that sends which nobody waits for may take after the last task has ended.
GRACE = 5.0


def _message_of(coroutine: Coroutine[Any, Any, object]) -> Any:
    """What a coroutine of trio yields to trio's loop: to be yielded again by our own, which
    saves two coroutines each time a task sleeps."""
    message = coroutine.send(None)
    coroutine.close()
    return message


_CHECKPOINT = _message_of(trio.lowlevel.cancel_shielded_checkpoint())
_UNCANCELLABLE_WAIT = _message_of(trio.lowlevel.wait_task_rescheduled(lambda _: Abort.FAILED))

#: What a woken task is sent. It is never unwrapped, so one does for all.
_WOKEN = Value(None)


class TrioWaitQueue:
    """Tasks that wait for the next occurrence of something (WaitQueue of _interfaces).

    Most often that is one task: it has the place, and others queue.
    """

    __slots__ = ("__weakref__", "_message", "_queue", "_task")

    def __init__(self) -> None:
        self._task: Task | None = None
        self._queue: set[Task] | None = None  # an empty set is larger than all of this
        self._message: Any = None

    def wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            reschedule(task, _WOKEN)
        if self._queue is not None:
            queue, self._queue = self._queue, None
            for task in queue:
                reschedule(task)

    @coroutine
    def wait(self) -> Generator[Any, Any, None]:
        task = current_task()
        if self._task is not None:
            self._join_queue(task)
            yield from trio.lowlevel.wait_task_rescheduled(partial(self._abort_queued, task))
            return
        if self._message is None:
            abort = partial(_abort_waiter, ref(self))  # no reference cycle
            self._message = _message_of(trio.lowlevel.wait_task_rescheduled(abort))
        self._task = task
        sent = yield self._message
        if sent is not _WOKEN:
            sent.unwrap()

    async def wait_uncancellable(self) -> None:
        self._join_queue(current_task())
        await trio.lowlevel.wait_task_rescheduled(lambda _: Abort.FAILED)

    def _join_queue(self, task: Task) -> None:
        if self._queue is None:
            self._queue = set()
        self._queue.add(task)

    def _abort_queued(self, task: Task, _: RaiseCancelT) -> Abort:
        if self._queue is not None:
            self._queue.discard(task)
        return Abort.SUCCEEDED

    def abort_waiter(self) -> None:
        self._task = None


def _abort_waiter(queue: ref[TrioWaitQueue], _: RaiseCancelT) -> Abort:
    waited_for = queue()
    assert waited_for is not None  # its waiter holds it
    waited_for.abort_waiter()
    return Abort.SUCCEEDED


class _WakeOnTaskExit(trio.abc.Instrument):
    """Lets the pump see that it is the last system task."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def task_exited(self, task: Task) -> None:
        self._wake()


_drivers: WeakSet[TrioDriver] = WeakSet()


def _die_in_child() -> None:
    for driver in _drivers:
        driver.is_forked = True


os.register_at_fork(after_in_child=_die_in_child)


class TrioDriver(trio.abc.Instrument):
    """What the streams of one trio run share, and how its tasks wait for the ring."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._ring: Ring | None = None
        self._wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_forked = False
        _drivers.add(self)
        self._token = trio.lowlevel.current_trio_token()
        self._endings: set[Ending] = set()
        self.tally = Tally()
        self._polling = Polling()
        self._submitted = False
        self._pump_runs = False
        self._draining = False  # the pump waits for the ends of closings, and not for the eventfd
        self._late_nursery: trio.Nursery | None = None
        self._late_pump_asked_for = False
        self._late_tasks: list[Callable[[], Awaitable[None]]] = []

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
            _current.set(driver)
            driver._start()
            return driver
        except RuntimeError:
            raise RuntimeError("ringtls streams can be used only inside trio.run()") from None

    def _start(self) -> None:
        trio.lowlevel.add_instrument(self)
        try:
            trio.lowlevel.spawn_system_task(self._pump, name="ringtls pump")
        except RuntimeError:
            return  # rule 5b; before_io_wait will see that no pump runs
        self._pump_runs = True

    # What streams use (Driver of _interfaces)

    @property
    def ring(self) -> Ring:
        """The ring of this run, made on first use.

        Raises:
          RingUnavailableError: there is no io_uring here.
        """
        if self._ring is None:
            self._ring = open_for_event_loop(self._wakeup_fd)
        return self._ring

    def start_task(self, function: Callable[[], Awaitable[None]]) -> None:
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

    async def wait(self, operation: Handle) -> int | bytes:
        task = current_task()
        raise_cancel: RaiseCancelT | None = None

        def abort(raise_cancel_: RaiseCancelT) -> Abort:
            nonlocal raise_cancel
            raise_cancel = raise_cancel_
            operation.cancel()
            return Abort.FAILED

        operation.notify(lambda request: reschedule(task))
        await trio.lowlevel.wait_task_rescheduled(abort)
        try:
            return operation.take()
        except OSError as error:
            if error.errno == errno.ECANCELED and raise_cancel is not None:
                raise_cancel()
            raise

    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)

    @staticmethod
    @coroutine
    def cancel_shielded_checkpoint() -> Generator[Any, Any, None]:
        yield _CHECKPOINT

    @staticmethod
    @coroutine
    def uncancellable_checkpoint() -> Generator[Any, Any, None]:
        reschedule(current_task(), _WOKEN)
        yield _UNCANCELLABLE_WAIT

    def register(self, ending: Ending) -> None:
        self._endings.add(ending)

    def unregister(self, ending: Ending) -> None:
        self._endings.discard(ending)

    def call_soon(self, function: Callable[[], object]) -> None:
        self._token.run_sync_soon(function)

    def check_process(self) -> None:
        if self.is_forked:
            raise RuntimeError(
                "this connection belongs to the parent process: "
                "a forked child can't use it, open a new one"
            )

    def statistics(self) -> Statistics:
        """The figures of this run."""
        closing = sum(ending.started for ending in self._endings)
        engine = None if self._ring is None else self._ring.counters()
        return Statistics(
            connections_open=len(self._endings) - closing,
            connections_closing=closing,
            closings=dict(self.tally.closings),
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
        ring = self._ring
        if ring is None or ring.forked or self.failure is not None:
            return
        try:
            self._submitted = ring.submit()
            if timeout > 0:
                ring.arm()
                self._polling.falls_asleep()
        except BaseException as failure:
            self._fail(failure)
        if not self._pump_runs and ring.in_flight:
            self._ask_for_late_pump()

    def after_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            self._polling.wakes()
        self._reap()

    def after_run(self) -> None:
        if self._ring is None or self._ring.close(timeout=1.0):
            os.close(self._wakeup_fd)  # else the kernel may still write to it

    def _reap(self) -> None:
        ring = self._ring
        if ring is None or ring.forked or self.failure is not None:
            return
        try:
            looks = self._polling.awake and not self._submitted
            if looks:
                ring.look(LOOK)
            found = ring.reap()
            if looks and not found:
                self._polling.stop()
            if found and self._draining:
                self.wake()
            self._polling.has_moved(ring.bytes_moved)
        except BaseException as failure:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self.ring.fail(failure)
        self.wake()

    def wake(self) -> None:
        """Have the pump look again."""
        os.eventfd_write(self._wakeup_fd, 1)

    # The pump

    async def _pump(self, *, late: bool = False) -> None:
        try:
            while True:
                await self._next_wakeup()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._drain(late)
            raise
        finally:
            self._pump_runs = False
            if self._endings or self._in_flight:
                self._ask_for_late_pump()

    async def _next_wakeup(self) -> None:
        while self._polling.awake:
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.wait_readable(self._wakeup_fd)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakeup_fd)

    @property
    def _in_flight(self) -> int:
        return 0 if self._ring is None else self._ring.in_flight

    def _ask_for_late_pump(self) -> None:
        if not self._late_pump_asked_for:
            self._late_pump_asked_for = True
            self._token.run_sync_soon(self._start_late_pump)

    def _start_late_pump(self) -> None:
        root = trio.lowlevel.current_root_task()
        nursery = current_task().parent_nursery
        assert root is not None
        assert nursery is not None
        if len(root.child_nurseries) > 1:  # the system nursery is not quite gone
            self._token.run_sync_soon(self._start_late_pump)
            return
        self._pump_runs = True
        self._late_nursery = nursery
        for function in self._late_tasks:
            nursery.start_soon(function)
        nursery.start_soon(partial(self._pump, late=True), name="ringtls late pump")

    async def _drain(self, late: bool) -> None:
        """Stay until this is the last task, and then until nothing is in flight (rule 5)."""
        nursery = current_task().parent_nursery
        assert nursery is not None
        self._draining = True
        watch = _WakeOnTaskExit(self.wake)
        trio.lowlevel.add_instrument(watch)
        try:
            while len(nursery.child_tasks) > 1:
                await self._next_wakeup()
        finally:
            trio.lowlevel.remove_instrument(watch)
        if late:
            adopt(self._endings)
        if self._ring is not None and self.failure is None:
            self._ring.cancel_all(reads_only=True)
            self._ring.hurry()
        while any(ending.started for ending in self._endings):
            await self._next_wakeup()
        if late and self._ring is not None:
            await self._drain_rest(self._ring)

    async def _drain_rest(self, ring: Ring) -> None:
        """What nobody waits for may take GRACE seconds."""
        if self.failure is not None or not ring.in_flight:
            return
        timer = ring.timer(time.monotonic() + GRACE)
        while self.failure is None and not timer.is_over and ring.in_flight > 1:
            await self._next_wakeup()
        if self.failure is None and not timer.is_over:
            ring.cancel(timer)


_current: RunVar[TrioDriver] = RunVar("ringtls driver")
