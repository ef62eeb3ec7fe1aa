"""The building blocks of async destruction: must_complete, aclose_all, replace.

Rules:

1. Code that must complete runs in a task of its own, under a shield. The shield keeps
   cancellations out. The task keeps a KeyboardInterrupt out, which trio raises in the main task
   even through a shield. Neither can end the caller's wait: both stay pending, and are raised
   at the caller's next checkpoint.
2. Siblings start to close in the order given, each in a task of its own. None waits for
   another's end, and none is held up by another's error.
3. Until a cancellation comes, a resource may take as long as it wants to close. After one it
   gets GRACE more seconds, so that a foreign resource can't make a run unkillable; they pass where
   the run's clock stands still, too (_drivers/deadlines.py). Then its ``aclose`` is cancelled,
   which trio.abc.AsyncResource defines as "close at once". This does not affect ringtls' streams,
   which bound their own end.
4. When everything is closed, the errors are raised as one group. A note on each names its resource.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, enable_ki_protection

from ._drivers.deadlines import Deadlines
from ._drivers.trio import TrioDriver
from ._drivers.trio_waiting import TrioWaitQueue
from ._errors import taken_out
from ._log import log
from ._task import Task, call_user

__all__ = ["aclose_all", "must_complete", "replace"]

#: Seconds that closing a resource may take after a cancellation.
GRACE = 5.0

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
ResourceT = TypeVar("ResourceT", bound=trio.abc.AsyncResource)


@enable_ki_protection
async def must_complete(async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Run ``await async_fn(*args)`` to its end, whatever is cancelled meanwhile.

    Not a cancellation point: a cancellation, a deadline or a KeyboardInterrupt that comes before
    or meanwhile comes out at the caller's next checkpoint, after the result was handed back. It
    runs even if there is one already. Nothing bounds the time it takes: give ``async_fn`` a
    deadline of its own if it may hang.

    It runs in a task of its own, with a copy of the caller's context variables. So a lock that it
    takes is not the caller's.

    Returns:
      What ``async_fn`` returns. What it raises is raised as it is.

    Raises:
      TypeError: a coroutine was passed, instead of a function and its arguments.
    """
    if inspect.iscoroutine(async_fn):
        async_fn.close()
        raise TypeError(
            "must_complete() calls the function itself: "
            "write must_complete(f, x), not must_complete(f(x))"
        )
    return await run_apart(partial(async_fn, *args))


@enable_ki_protection
async def aclose_all(*resources: trio.abc.AsyncResource) -> None:
    """Close all of them together, and wait until all are closed.

    They start in the order given, and each goes on whatever becomes of the others.

    Not a cancellation point: all are closed in full, and a cancellation or KeyboardInterrupt comes
    out at the caller's next checkpoint. Each resource then has 5 seconds left to close in its own
    way, after which it is cancelled and so closes at once, and the logger "ringtls" hears of it.
    ringtls' streams keep to their own ``shutdown_timeout`` instead.

    Raises:
      ExceptionGroup: what their ``aclose`` raised, in the order given, each with a note
        that names the resource. A BaseExceptionGroup if one is not an Exception.
    """
    errors = await _close(resources)
    if errors:
        raise BaseExceptionGroup("closing failed", errors)


@enable_ki_protection
async def replace(old: trio.abc.AsyncResource, new: ResourceT) -> ResourceT:
    """Close ``old``, and then hand ``new`` back: ``stream = await replace(stream, new)``.

    Not a cancellation point, so neither gets lost: ``old`` is closed as by aclose_all(), ``new``
    is handed back, and a cancellation or KeyboardInterrupt comes out at the next checkpoint.

    Raises:
      ExceptionGroup: closing ``old`` failed, as in aclose_all(). Then nobody is handed ``new``,
        so it was closed too.
      ValueError: they are the same resource.
    """
    if old is new:
        raise ValueError(f"can't replace {old!r} with itself")
    errors = await _close([old])
    if errors:
        errors += await _close([new])
        raise BaseExceptionGroup(
            "closing the old one failed, so the new one was closed too", errors
        )
    return new


async def run_apart(
    function: Callable[[], Awaitable[T]], *, on_cancel: Callable[[], object] | None = None
) -> T:
    """Rule 1. ``on_cancel`` is called soon after the caller is cancelled or interrupted."""
    results: list[outcome.Outcome[T]] = []
    caller = TrioWaitQueue()
    wait = caller.wait_uncancellable
    if on_cancel is not None:
        wait = partial(caller.wait_with, _abort_by(on_cancel))

    def hand_back(result: outcome.Outcome[T]) -> None:
        results.append(result)
        caller.wake()

    async def work() -> None:
        hand_back(await outcome.acapture(function))

    def fail(error: BaseException) -> None:
        hand_back(outcome.Error(error))

    async with trio.open_nursery() as nursery:
        Task(work, fail).start(partial(nursery.start_soon, name=function))
        while True:
            if results:
                break
            await wait()
    return results.pop().unwrap()  # no reference cycle: what it raises has this frame


def _abort_by(function: Callable[[], object]) -> Callable[[RaiseCancelT], Abort]:
    """As the driver's. Where there can't be one, what is raised in it ends the run."""
    try:
        return TrioDriver.current().abort_by(function)
    except (
        OSError,  # no descriptor is left, and that must keep nothing from being closed
        RuntimeError,  # there is no run, as trio will say
    ):

        def abort(_: RaiseCancelT) -> Abort:
            function()
            return Abort.FAILED

        return abort


class Grace:
    """How long resources may take to close: as long as they want, until ``limit`` (rule 3)."""

    def __init__(self) -> None:
        self._is_limited = False
        self._scopes: WeakKeyDictionary[trio.CancelScope, Deadlines] = WeakKeyDictionary()

    def limit(self) -> None:
        """There was a cancellation: GRACE for each that is closing, and for each to come. To be
        repeated if something is raised in here."""
        self._is_limited = True
        for scope, deadlines in self._scopes.items():
            deadlines.end_after(scope, GRACE)

    def scope(self) -> trio.CancelScope:
        scope, deadlines = trio.CancelScope(), _deadlines()
        if self._is_limited:
            deadlines.end_after(scope, GRACE)
        self._scopes[scope] = deadlines
        return scope


def _deadlines() -> Deadlines:
    """Those of this run. Where it can't have a driver, nobody looks at them: then they hold by the
    run's clock alone."""
    try:
        return TrioDriver.current().deadlines
    except OSError:  # no descriptor is left, and that must keep nothing from being closed
        return Deadlines()


async def close_one(resource: trio.abc.AsyncResource, grace: Grace) -> list[BaseException]:
    """Close a resource; returns what that raised, if it did, with a note that names it."""
    try:
        with grace.scope() as scope:
            await call_user(resource.aclose)
        if scope.cancelled_caught:
            text = "%s did not close within %g s, it was cancelled"
            log(logging.WARNING, text, _name(resource), GRACE)
    except GeneratorExit:  # this coroutine is finalized: the run has crashed
        raise
    except BaseException as error:
        with suppress(Exception):  # an exception may take no notes: a frozen dataclass
            error.add_note(f"raised by closing {_name(resource)}")
        return [error]
    return []


def _name(resource: object) -> str:
    try:
        return repr(resource)
    except Exception:  # it must not hide what closing has raised
        return object.__repr__(resource)


async def _close(resources: Sequence[trio.abc.AsyncResource]) -> list[BaseException]:
    """Close them side by side (rules 2 and 3); returns what that raised, in their order."""
    grace = Grace()
    errors: list[list[BaseException]] = [[] for _ in resources]

    @enable_ki_protection
    async def close(number: int) -> None:
        errors[number] += await close_one(resources[number], grace)

    async def close_each() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(len(resources)):
                nursery.start_soon(close, number)
                await trio.lowlevel.cancel_shielded_checkpoint()  # tasks of a tick have no order

    await run_apart(close_each, on_cancel=grace.limit)
    return [error for raised in errors for error in taken_out(raised)]
