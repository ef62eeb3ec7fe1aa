"""How a task of a trio run sleeps, and is woken.

Rules:

1. What trio's own functions yield to its loop is the same each time. So it is made once, and our
   coroutines yield it themselves, which saves two others each time a task sleeps.
2. trio crashes where an abort function raises. So ours have no Python code, in which a signal's
   handler could raise: they do nothing, or leave something to be called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from itertools import filterfalse, repeat
from types import coroutine
from typing import Any

import trio
from outcome import Value, acapture
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule

__all__ = [
    "TrioWaitQueue",
    "cancel_shielded_checkpoint",
    "leaving",
    "raise_cancelled",
    "uncancellable_checkpoint",
]


def _message_of(coroutine: Coroutine[Any, Any, object]) -> Any:
    """What a coroutine of trio yields to trio's loop (rule 1)."""
    message = coroutine.send(None)
    coroutine.close()
    return message


def _answering(answer: Abort) -> Callable[[RaiseCancelT], Abort]:
    """An abort function that does nothing (rule 2)."""
    return partial({"": answer}.get, "")  # type: ignore[return-value]


def leaving(
    calls: deque[Callable[[], object]], function: Callable[[], object]
) -> Callable[[RaiseCancelT], Abort]:
    """An abort function that leaves a function to be called, and fails (rule 2)."""
    left = filterfalse(calls.append, repeat(function))
    return partial(next, map({function: Abort.FAILED}.__getitem__, left))


_CHECKPOINT = _message_of(trio.lowlevel.cancel_shielded_checkpoint())
_WAIT = _message_of(trio.lowlevel.wait_task_rescheduled(_answering(Abort.SUCCEEDED)))
_UNCANCELLABLE_WAIT = _message_of(trio.lowlevel.wait_task_rescheduled(_answering(Abort.FAILED)))

#: What a woken task is sent. It is never unwrapped, so one does for all.
_WOKEN = Value(None)


class TrioWaitQueue:
    """Tasks that wait for the next occurrence of something (WaitQueue of _interfaces).

    A task waits here while its ``custom_sleep_data`` is this queue. trio forgets that in the moment
    in which it schedules the task, whoever woke or cancelled it. So an exception at any place loses
    nobody, wakes nobody twice, and nobody out of another sleep. Most often one task waits: it has
    the place, and others queue.
    """

    __slots__ = ("_others", "_task")

    def __init__(self) -> None:
        self._task: Task | None = None
        self._others: dict[Task, None] | None = None

    def wake(self) -> None:
        task = self._task
        if task is not None and task.custom_sleep_data is self:
            reschedule(task, _WOKEN)
        if self._others:
            for task in self._others:
                if task.custom_sleep_data is self:
                    reschedule(task, _WOKEN)
            self._others.clear()

    @coroutine
    def wait(self, message: Any = _WAIT) -> Generator[Any, Any, None]:
        task = current_task()
        if self._task is None or self._task.custom_sleep_data is not self:
            self._task = task
        else:
            if self._others is None:
                self._others = {}
            self._others[task] = None
        try:
            task.custom_sleep_data = self
            sent = yield message
        finally:
            task.custom_sleep_data = None
            if self._others:
                self._others.pop(task, None)
        if sent is not _WOKEN:
            try:
                sent.unwrap()
            finally:
                del sent, task  # no reference cycle: what is raised has this frame

    def wait_uncancellable(self) -> Awaitable[None]:
        return self.wait(_UNCANCELLABLE_WAIT)

    def wait_with(self, abort: Callable[[RaiseCancelT], Abort]) -> Awaitable[None]:
        """Wait for the next ``wake``; what a cancellation does, the function decides (see
        trio.lowlevel.wait_task_rescheduled)."""
        return self.wait(_message_of(trio.lowlevel.wait_task_rescheduled(abort)))


@coroutine
def cancel_shielded_checkpoint() -> Generator[Any, Any, None]:
    """See Driver of _interfaces."""
    yield _CHECKPOINT


@coroutine
def uncancellable_checkpoint() -> Generator[Any, Any, None]:
    """See Driver of _interfaces."""
    task = current_task()
    try:
        reschedule(task, _WOKEN)
        yield _UNCANCELLABLE_WAIT
    except GeneratorExit:  # this coroutine is finalized: the run has crashed
        raise
    except BaseException:  # a task that is scheduled must sleep, or trio crashes
        if task._next_send_fn is None:  # else it is
            reschedule(task, _WOKEN)
        yield _UNCANCELLABLE_WAIT
        raise


async def raise_cancelled() -> None:
    """Let a cancellation out that has come, and that its scope has been shielded from since."""
    with trio.CancelScope() as scope:
        scope.cancel()
        cancelled = await acapture(trio.lowlevel.checkpoint)
    try:
        cancelled.unwrap()
    finally:
        del cancelled  # no reference cycle: what is raised has this frame
