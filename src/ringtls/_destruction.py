"""Destruction: the end of one value of an AsyncDestructor, from before its start.

    phase       event      next        what is done
    OPEN        ADOPT      ADOPTED     nobody closed it: a task of the run's own is started
    OPEN        DESTROY    DESTROYING  adestroy() runs, until it ends or its time is over
    ADOPTED     DESTROY    DESTROYING  the same
    ADOPTED     YIELD      OPEN        its owner is being destroyed too, and will close it
    DESTROYING  RETURNED   DROPPING    its attributes that are async resources are closed
    DROPPING    CLOSED     DESTROYED   all who wait are woken
    OPEN        CRASH      DESTROYED   the run is gone, and with it all tasks (or see rule 7)
    ADOPTED     CRASH      DESTROYED   the same
    DESTROYING  CRASH      DESTROYED   the same
    DROPPING    CRASH      DESTROYED   the same

Rules:

1. The record of a value, its Destruction, is made with the value and outlives it. The run holds
   the record, and the record no more than a weak reference, until the value is dropped. Then the
   record takes it back from its finalizer, because adestroy() needs it.
2. Phases change in the run's thread only, and the first change is made with no await after the
   look at the phase. So adestroy() runs once, whoever else asks for it.
3. The end runs in a task of its own (rule 1 of _combinators): in a nursery of whoever closes the
   value, or as a task of the run.
4. It is noted where an end waits for another one. Nobody waits for an end that waits for its
   own: so a value may close itself, its parent, or values that close each other.
5. Who is dropped with its owner, in one reference cycle, or is still open with it at the end of the
   run, is the owner's to close: adestroy() needs it. The owner claims it before any of them ends.
6. A value whose ``__init__`` raises never was one. It has no adestroy() to run, but what it had
   taken by then is closed.
7. User code raises what it likes: nothing of that stops an end, or the run. If something is raised
   in here (short memory), the end is over at once: nobody waits for it for ever.
"""

from __future__ import annotations

import enum
import logging
import math
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import ref

import trio

from ._clock import now
from ._combinators import Grace, close_one, run_apart
from ._errors import taken_out
from ._log import log
from ._ownership import RECORD, Ownership, attributes
from ._streams import leaks
from ._streams.closing import checked_timeout
from ._streams.operation import check_run
from ._streams.socket import SocketStream
from ._streams.tls import TlsStream
from ._task import Task, call_user

if TYPE_CHECKING:
    from ._drivers.trio import TrioDriver

__all__ = ["TRANSITIONS", "Destruction", "Event", "Made", "Phase", "destruction_of"]

#: Seconds that adestroy() may take.
DESTROY_TIMEOUT = 5.0


class Phase(enum.IntEnum):
    OPEN = 0
    ADOPTED = 1
    DESTROYING = 2
    DROPPING = 3
    DESTROYED = 4


class Event(enum.IntEnum):
    ADOPT = 0
    DESTROY = 1
    YIELD = 2
    RETURNED = 3
    CLOSED = 4
    CRASH = 5


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPEN, Event.ADOPT): Phase.ADOPTED,
    (Phase.OPEN, Event.DESTROY): Phase.DESTROYING,
    (Phase.ADOPTED, Event.DESTROY): Phase.DESTROYING,
    (Phase.ADOPTED, Event.YIELD): Phase.OPEN,
    (Phase.DESTROYING, Event.RETURNED): Phase.DROPPING,
    (Phase.DROPPING, Event.CLOSED): Phase.DESTROYED,
    (Phase.OPEN, Event.CRASH): Phase.DESTROYED,
    (Phase.ADOPTED, Event.CRASH): Phase.DESTROYED,
    (Phase.DESTROYING, Event.CRASH): Phase.DESTROYED,
    (Phase.DROPPING, Event.CRASH): Phase.DESTROYED,
}


class Made(enum.Enum):
    """Whether the value's ``__init__`` has returned (rule 6)."""

    NOT_BEGUN = enum.auto()
    NOT_YET = enum.auto()
    YES = enum.auto()


class Value(Protocol):
    """An AsyncDestructor, as its record knows it."""

    @property
    def destroy_timeout(self) -> float: ...

    async def adestroy(self) -> None: ...


#: Whose adestroy() the current task runs in.
_current: ContextVar[Destruction] = ContextVar("ringtls destruction")


class Destruction:
    """The end of one value, from before its start (Ending of _interfaces)."""

    __slots__ = (
        "_afterwards",
        "_awaited",
        "_dropped",
        "_grace",
        "_over",
        "_ref",
        "deadline",
        "driver",
        "made",
        "made_at",
        "name",
        "owner",
        "ownership",
        "phase",
        "timeout",
    )

    runs_user_code = True
    holds_tasks = False

    def __init__(self, driver: TrioDriver, value: Value, made: Made) -> None:
        self.driver = driver
        self.name = type(value).__name__
        self.made = made
        self.made_at = leaks.caller()
        self.phase = Phase.OPEN
        self.timeout = DESTROY_TIMEOUT
        self.deadline = math.inf  # all it waits for has its own: rule A2, rule 3 of _combinators
        self.owner: Destruction | None = None
        self._ref = ref(value)
        self._dropped: Value | None = None
        self.ownership = Ownership()
        self._awaited: list[Destruction] = []
        self._afterwards: list[Callable[[], object]] = []
        self._grace = Grace()
        self._over = driver.wait_queue()

    def hold_the_run(self) -> None:
        """To be called when the value refers to this: from now on its end is waited for."""
        leaks.still_open.add(self)
        self.driver.register(self)

    # Its owner (rule 5)

    @property
    def _has_owner(self) -> bool:
        return self.owner is not None and self.owner.phase is not Phase.DESTROYED

    def _claim(self, value: Value) -> None:
        for resource in self.ownership.of(value):
            child = destruction_of(resource)
            if child is not None:
                if not child._has_owner and not self._is_owned_by(child):
                    child.owner = self
            elif isinstance(resource, (SocketStream, TlsStream)):
                resource._closing.owner = self

    def _is_owned_by(self, other: Destruction) -> bool:
        owner: Destruction | None = self
        while owner is not None and owner is not other:
            owner = owner.owner
        return owner is other

    def postpone(self, function: Callable[[], object]) -> bool:
        """Have a function called when this has ended. False if it has already."""
        if self.phase is Phase.DESTROYED:
            return False
        self._afterwards.append(function)
        return True

    # Values that nobody closed

    @property
    def started(self) -> bool:
        return self.phase is not Phase.OPEN

    def was_never_made(self, value: Value) -> None:
        """The value's ``__init__`` has raised (rule 6), where perhaps nothing can be called."""
        if not self.driver.is_forked:
            self._dropped = value
            self.driver.call_soon(self.start_as_orphan)

    def drop(self, value: Value) -> None:
        """The value was garbage-collected, perhaps in another thread."""
        if self.started or self.driver.is_forked:
            return
        self._dropped = value
        self._claim(value)
        self.driver.call_soon(self.start_as_orphan)
        self.warn_unclosed()

    def start_as_orphan(self) -> None:
        value = self._value()
        if self.started:
            return
        if value is None:  # another thread is about to finalize it, or its finalizer has failed
            self.deadline = min(self.deadline, now())
            return
        if self.owner is not None and self.owner.postpone(self.start_as_orphan):
            return
        try:
            self._claim(value)
            self._step(Event.ADOPT)
            Task(partial(self._destroy_orphan, value), self._lose).start(self.driver.start_task)
        except BaseException as failure:
            self._crash(failure)

    def _value(self) -> Value | None:
        return self._ref() if self._dropped is None else self._dropped

    def warn_unclosed(self) -> None:
        """Give the ResourceWarning of a value that nobody closed."""
        value = self._value()
        if value is None or self._has_owner or not self._is_made(value):
            return
        text = f"unclosed {self.name}, made at {self.made_at}"
        leaks.report(text)
        warnings.warn(
            f"{text}; it is destroyed in the background. Use 'async with' to destroy it in time",
            ResourceWarning,
            stacklevel=3,
            source=self,
        )

    def give_up(self) -> None:
        """The run has crashed."""
        if self.phase is not Phase.DESTROYED:
            self._step(Event.CRASH)
            self._dropped = None
            self.driver.unregister(self)

    def _crash(self, failure: BaseException) -> None:
        """Something was raised in this module, or in what it calls of ringtls (rule 7)."""
        self.deadline = -math.inf  # the run gives up what can't be ended here
        try:
            text = "the end of %s, made at %s, was cut short: %r was raised inside ringtls"
            log(logging.ERROR, text, self.name, self.made_at, failure, failure=failure)
        finally:
            self._end(Event.CRASH)

    def _lose(self, failure: BaseException) -> None:
        """The task in which it is destroyed as an orphan has failed."""
        if not isinstance(failure, GeneratorExit):  # by which the run has crashed
            self._crash(failure)

    async def _destroy_orphan(self, value: Value) -> None:
        if self.phase is not Phase.ADOPTED:
            return  # somebody closes it after all
        if self.owner is not None and self.owner.postpone(self.start_as_orphan):
            self._step(Event.YIELD)
            return
        self._step(Event.DESTROY)
        self._grace.limit()
        errors = await self._destroy(value)
        if errors:
            text = f"destroying {self.name}, made at {self.made_at}, failed"
            log(logging.ERROR, "%s", text, failure=BaseExceptionGroup(text, taken_out(errors)))

    # The end

    async def close(self, value: Value) -> None:
        """See AsyncDestructor.aclose."""
        if self.phase is Phase.DESTROYED:
            await self.driver.uncancellable_checkpoint()
            return
        check_run(self.driver)
        current = _current.get(None)
        if current is None:
            await self._close(value)
        elif self._needs(current):
            await self.driver.uncancellable_checkpoint()
        else:
            current._awaited.append(self)
            try:
                await self._close(value)
            finally:
                current._awaited.remove(self)

    async def _close(self, value: Value) -> None:
        if self.phase > Phase.ADOPTED:
            while self.phase is not Phase.DESTROYED:
                await self._over.wait_uncancellable()
            return
        try:
            self._step(Event.DESTROY)
            if self.made is Made.NOT_BEGUN:
                self.made = Made.YES
            errors = await run_apart(partial(self._destroy, value), on_cancel=self._grace.limit)
        except GeneratorExit:  # this coroutine is finalized: the run has crashed
            raise
        except BaseException as failure:
            self._crash(failure)
            raise
        if errors:
            raise BaseExceptionGroup(f"destroying {self.name} failed", errors)

    def _needs(self, other: Destruction) -> bool:
        """Is the end of ``other`` this one, or one that this one waits for (rule 4)?"""
        waiting, seen = [self], {self}
        while waiting:
            destruction = waiting.pop()
            if destruction is other:
                return True
            waiting.extend(each for each in destruction._awaited if each not in seen)
            seen.update(destruction._awaited)
        return False

    async def _destroy(self, value: Value) -> list[BaseException]:
        """From DESTROYING to DESTROYED; returns what was raised meanwhile."""
        errors: list[BaseException] = []
        _current.set(self)
        try:
            if self._is_made(value):
                await self._run_adestroy(value, errors)
        except GeneratorExit:  # this coroutine is finalized: the run has crashed
            raise
        except BaseException as error:
            errors.append(error)
        self._step(Event.RETURNED)
        for resource in self.ownership.of(value):
            errors += await close_one(resource, self._grace)
        self._end(Event.CLOSED)
        return taken_out(errors)

    def _end(self, event: Event) -> None:
        """To be repeated if something is raised in here."""
        if self.phase is not Phase.DESTROYED:
            self._step(event)
        self._dropped = None
        self.driver.unregister(self)
        self._over.wake()
        self.driver.wake()
        for start_as_orphan in self._afterwards:
            start_as_orphan()

    def _is_made(self, value: Value) -> bool:
        """Rule 6. Without a call of ``__init__`` it is one as soon as it has attributes."""
        return self.made is Made.YES or (self.made is Made.NOT_BEGUN and bool(attributes(value)))

    async def _run_adestroy(self, value: Value, errors: list[BaseException]) -> None:
        timeout = DESTROY_TIMEOUT
        try:
            timeout = checked_timeout(value.destroy_timeout)
        except Exception as error:  # a class can say anything
            errors.append(error)
        with self.driver.deadlines.move_on_after(timeout) as scope:
            await call_user(value.adestroy)
        if scope.cancelled_caught:
            log(
                logging.WARNING,
                "%s, made at %s, was not destroyed within %g s: its adestroy() was cancelled",
                self.name,
                self.made_at,
                timeout,
            )

    def _step(self, event: Event) -> None:
        self.phase = TRANSITIONS[self.phase, event]
        leaks.still_open.discard(self)

    # Use

    def check_open(self) -> None:
        """See AsyncDestructor.check_open."""
        if self.driver.is_forked:
            raise RuntimeError(
                f"this {self.name} belongs to the parent process: "
                "a forked child can't use it, make a new one"
            )
        if self.phase in (Phase.OPEN, Phase.ADOPTED):
            return
        current = _current.get(None)
        if self.phase is not Phase.DESTROYING or current is None or not self._needs(current):
            raise trio.ClosedResourceError(f"this {self.name} was closed")


def destruction_of(value: object) -> Destruction | None:
    """The record of an AsyncDestructor; None of anything else."""
    slot = getattr(type(value), RECORD, None)
    return None if slot is None else slot.__get__(value)
