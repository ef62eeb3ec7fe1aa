"""AsyncDestructor: an end for the values of any class, which runs once, whatever becomes of them.

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
3. The end runs in a task of its own (rule 1 of _combinators): in a nursery of who closes the value,
   or as a task of the run.
4. Who waits for an end inside of another end is noted. Nobody waits for an end that waits for its
   own: so a value may close itself, its parent, or values that close each other.
5. Who is dropped with its owner, in one reference cycle, or is still open with it at the end of the
   run, is the owner's to close: adestroy() needs it. The owner claims it before any of them ends.
6. A value whose ``__init__`` raises never was one. It has no adestroy() to run, but what it had
   taken by then is closed. Classes may get their ``__init__`` late (dataclasses do), so it is
   wrapped when the first value is made: in each class that has one, as any may be the first to be
   called, and with borrowed() arguments. Which is the next is left to the class of the value.
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
from functools import partial, wraps
from inspect import iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, final
from weakref import ref

import trio
from trio.lowlevel import enable_ki_protection

from ._clock import now
from ._combinators import Patience, close_one, run_apart
from ._drivers.trio import TrioDriver
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
    from typing import Self

__all__ = ["TRANSITIONS", "AsyncDestructor", "Event", "Phase"]

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


class _Made(enum.Enum):
    """Whether the value's ``__init__`` has returned (rule 6)."""

    NOT_BEGUN = enum.auto()
    NOT_YET = enum.auto()
    YES = enum.auto()


#: Whose adestroy() the current task runs in.
_current: ContextVar[Destruction] = ContextVar("ringtls destruction")


class Destruction:
    """The end of one value, from before its start (Ending of _interfaces)."""

    __slots__ = (
        "_afterwards",
        "_awaited",
        "_dropped",
        "_over",
        "_patience",
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

    def __init__(self, driver: TrioDriver, value: AsyncDestructor, made: _Made) -> None:
        self.driver = driver
        self.name = type(value).__name__
        self.made = made
        self.made_at = leaks.caller()
        self.phase = Phase.OPEN
        self.timeout = DESTROY_TIMEOUT
        self.deadline = math.inf  # all it waits for has its own: rule A2, rule 3 of _combinators
        self.owner: Destruction | None = None
        self._ref = ref(value)
        self._dropped: AsyncDestructor | None = None
        self.ownership = Ownership()
        self._awaited: list[Destruction] = []
        self._afterwards: list[Callable[[], object]] = []
        self._patience = Patience()
        self._over = driver.wait_queue()

    def hold_the_run(self) -> None:
        """To be called when the value refers to this: from now on its end is waited for."""
        leaks.still_open.add(self)
        self.driver.register(self)

    # Its owner (rule 5)

    @property
    def _has_owner(self) -> bool:
        return self.owner is not None and self.owner.phase is not Phase.DESTROYED

    def _claim(self, value: AsyncDestructor) -> None:
        for resource in self.ownership.of(value):
            if isinstance(resource, AsyncDestructor):
                child = destruction_of(resource)
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

    def was_never_made(self, value: AsyncDestructor) -> None:
        """The value's ``__init__`` has raised (rule 6)."""
        if not self.driver.is_forked:
            self._dropped = value
            self.start_as_orphan()

    def drop(self, value: AsyncDestructor) -> None:
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

    def _value(self) -> AsyncDestructor | None:
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
        try:
            text = "the end of %s, made at %s, was cut short: %r was raised inside ringtls"
            log(logging.ERROR, text, self.name, self.made_at, failure, failure=failure)
        finally:
            self._end(Event.CRASH)

    def _lose(self, failure: BaseException) -> None:
        """The task in which it is destroyed as an orphan has failed."""
        if not isinstance(failure, GeneratorExit):  # by which the run has crashed
            self._crash(failure)

    async def _destroy_orphan(self, value: AsyncDestructor) -> None:
        if self.phase is not Phase.ADOPTED:
            return  # somebody closes it after all
        if self.owner is not None and self.owner.postpone(self.start_as_orphan):
            self._step(Event.YIELD)
            return
        self._step(Event.DESTROY)
        self._patience.limit()
        errors = await self._destroy(value)
        if errors:
            text = f"destroying {self.name}, made at {self.made_at}, failed"
            log(logging.ERROR, "%s", text, failure=BaseExceptionGroup(text, taken_out(errors)))

    # The end

    async def close(self, value: AsyncDestructor) -> None:
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

    async def _close(self, value: AsyncDestructor) -> None:
        if self.phase > Phase.ADOPTED:
            while self.phase is not Phase.DESTROYED:
                await self._over.wait_uncancellable()
            return
        try:
            self._step(Event.DESTROY)
            if self.made is _Made.NOT_BEGUN:
                self.made = _Made.YES
            errors = await run_apart(partial(self._destroy, value), on_cancel=self._patience.limit)
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

    async def _destroy(self, value: AsyncDestructor) -> list[BaseException]:
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
            errors += await close_one(resource, self._patience)
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

    def _is_made(self, value: AsyncDestructor) -> bool:
        """Rule 6. Without a call of ``__init__`` it is one as soon as it has attributes."""
        return self.made is _Made.YES or (self.made is _Made.NOT_BEGUN and bool(attributes(value)))

    async def _run_adestroy(self, value: AsyncDestructor, errors: list[BaseException]) -> None:
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


class AsyncDestructor(trio.abc.AsyncResource):
    """A base class for what has an end that must run: once, to its end, and whatever happens.

    A subclass writes its end as ``async def adestroy(self)``. It runs on the first of: leaving
    ``async with value``, ``await value.aclose()``, the value being dropped, the end of the trio
    run. Afterwards the attributes that are async resources (that have ``aclose``) are closed, one
    after the other, in the order in which they were first assigned; borrowed() exempts one. A
    class without an ``adestroy`` has this alone.

    It works for any class: with ``__slots__``, a dataclass, in a hierarchy (``adestroy`` calls
    ``await super().adestroy()`` like any other method). It needs no ring. A value can be made, and
    used, inside of ``trio.run()`` only, and not be copied.

    A value that is dropped, or open at the end of the run, gives a ResourceWarning that says where
    it was made, and is destroyed in the background; the run waits. What that raises is logged (the
    logger is "ringtls"). A value whose ``__init__`` raises has its attributes closed, and no more.

    Raises:
      RuntimeError: it is made outside of a trio run.
      TypeError: at the definition of a subclass: it has a ``__del__``, or an ``adestroy`` that is
        not async.
    """

    __slots__ = (RECORD, "__weakref__")

    __destruction: Destruction

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__del__ is not AsyncDestructor.__del__:
            raise TypeError(f"{cls.__name__} has a __del__: write 'async def adestroy' instead")
        adestroy = cls.__dict__.get("adestroy")
        if isinstance(adestroy, FunctionType) and not (
            iscoroutinefunction(adestroy) or hasattr(adestroy, "__wrapped__")
        ):
            raise TypeError(f"{cls.__name__}.adestroy must be 'async def', without 'yield'")
        timeout = cls.__dict__.get("destroy_timeout")
        if isinstance(timeout, (int, float)):
            checked_timeout(timeout)

    if not TYPE_CHECKING:  # type checkers are to look at __init__, and at what a class declares

        @enable_ki_protection
        def __new__(cls, *args: object, **kwargs: object) -> Self:
            try:
                driver = TrioDriver.current()
            except RuntimeError:
                raise RuntimeError(
                    f"a {cls.__name__} can be made only inside trio.run(), which sees to its end"
                ) from None
            made = _Made.NOT_BEGUN if _guard_init(cls) else _Made.YES
            if made is _Made.YES and (args or kwargs):
                raise TypeError(f"{cls.__name__}() takes no arguments")
            value = super().__new__(cls)
            destruction = Destruction(driver, value, made)
            object.__setattr__(value, RECORD, destruction)
            destruction.hold_the_run()
            return value

        @enable_ki_protection
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, self.__destruction.ownership.assigned(name, value))

        @enable_ki_protection
        def __delattr__(self, name: str) -> None:
            super().__delattr__(name)
            self.__destruction.ownership.deleted(name)

    async def adestroy(self) -> None:
        """The end, to be written by a subclass. Called once, by ringtls: call ``aclose()``.

        It is not cancelled by what cancels who closes the value, but after ``destroy_timeout``.
        It runs in a task of its own: a nursery or cancel scope that a method has entered can't be
        left here. It may call methods that use ``check_open``, and close what it likes.
        """

    @property
    def destroy_timeout(self) -> float:
        """Seconds that ``adestroy`` may take, by default 5; then it is cancelled. They pass by the
        run's clock, and in real time where that stands still.

        To be set on a value, or by a subclass: ``destroy_timeout = 30``.
        """
        return self.__destruction.timeout

    @destroy_timeout.setter
    def destroy_timeout(self, seconds: float) -> None:
        self.__destruction.timeout = checked_timeout(seconds)

    @final
    @enable_ki_protection
    async def aclose(self) -> None:
        """Destroy the value, and wait until that is done; later calls do nothing.

        Called again meanwhile, from another task, it waits as well. Called by the value's own end,
        also if it is a part of that which closes what owns it, it does not wait.

        Not a cancellation point: a cancellation or KeyboardInterrupt comes out at the caller's next
        checkpoint. ``adestroy`` has ``destroy_timeout`` all the same; an attribute that is not of
        ringtls then has 5 seconds, as in aclose_all().

        Raises:
          ExceptionGroup: what ``adestroy`` and the closing of attributes raised, in this order.
            A BaseExceptionGroup if one is not an Exception. The first caller gets it.
          RuntimeError: the value is of another trio run, or of the parent process.
        """
        await self.__destruction.close(self)

    @final
    def check_open(self) -> None:
        """For methods that can't be used after the end: raise if that has begun.

        ``adestroy``, and what it calls and waits for, may still use them.

        Raises:
          trio.ClosedResourceError: its end has begun.
          RuntimeError: it belongs to the parent process.
        """
        self.__destruction.check_open()

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        self.check_open()
        return self

    @enable_ki_protection
    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError(f"use 'async with' with a {type(self).__name__}, not 'with'")

    def __exit__(self, *exc_info: object) -> None:
        raise AssertionError("__enter__ does not return")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled: it ends once")

    def __del__(self) -> None:
        if hasattr(self, RECORD):  # else its making was broken off
            self.__destruction.drop(self)


_slot = AsyncDestructor.__dict__[RECORD]


def destruction_of(value: AsyncDestructor) -> Destruction:
    destruction: Destruction = _slot.__get__(value)
    return destruction


def _guard_init(cls: type[AsyncDestructor]) -> bool:
    """Have the class' ``__init__`` say how it ended (rule 6). False if it has none."""
    if cls.__init__ is object.__init__:
        return False
    for each in cls.__mro__:
        if AsyncDestructor in each.__mro__ and "__init__" in vars(each) and not _is_guarded(each):
            _guard(each, each.__init__)  # type: ignore[misc]
    if not _is_guarded(cls):  # it has that of a class that is no AsyncDestructor
        _guard(cls, lambda self, *args, **kwargs: super(cls, self).__init__(*args, **kwargs))
    return True


def _is_guarded(cls: type[AsyncDestructor]) -> bool:
    return getattr(cls.__init__, "guard", None) is cls.__init__  # wraps() copies what it has


def _guard(cls: type[AsyncDestructor], init: Callable[..., None]) -> None:
    @wraps(cls.__init__)
    def guarded(self: AsyncDestructor, *args: Any, **kwargs: Any) -> None:
        destruction = destruction_of(self)
        lend = destruction.ownership.lend
        is_outermost = destruction.made is not _Made.NOT_YET
        destruction.made = _Made.NOT_YET
        try:
            init(self, *map(lend, args), **{name: lend(kwargs[name]) for name in kwargs})
        except BaseException:
            if is_outermost:
                destruction.was_never_made(self)
            raise
        if is_outermost:
            destruction.made = _Made.YES

    guarded.guard = guarded  # type: ignore[attr-defined]
    cls.__init__ = guarded  # type: ignore[assignment, method-assign]
