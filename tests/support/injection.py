"""An exception at a place of ringtls' own code that is chosen by its number."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import ringtls

from .tracing import traced_by

__all__ = ["InjectedError", "RaiseAt", "raise_at_each_bytecode"]

#: The bytecodes of an await after its first step.
AWAIT = {"SEND", "YIELD_VALUE", "RESUME", "JUMP_BACKWARD_NO_INTERRUPT"}

#: What can't raise in CPython 3.14, and is outside of the handlers that it stands in.
HARMLESS = {"NOT_TAKEN"}

PACKAGE = str(Path(ringtls.__file__).parent)


class InjectedError(Exception):
    """What a signal's handler, or the lack of memory, raises where nobody expects it."""


class RaiseAt:
    """Counts the calls, or the bytecodes, of the package in this thread, and raises at one.

    Args:
      number: at which; counted from 1.
      event: "call" or "opcode".
      function: only the one with this qualified name, where it begins and where it goes on.
      in_awaits: also at a bytecode by which an await goes on. CPython looks for signals at calls,
        and where it jumps back, but not there. What is awaited is finalized then, and a nursery of
        trio's that is open in it can't end any more.
    """

    def __init__(
        self, number: int, event: str, function: str = "", *, in_awaits: bool = True
    ) -> None:
        self.left = number
        self._passed_over = HARMLESS if in_awaits else HARMLESS | AWAIT
        self._event = event
        self._function = function
        self.place = ""

    @property
    def has_raised(self) -> bool:
        return self.left <= 0

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        is_counted = self._function in ("", frame.f_code.co_qualname)
        frame.f_trace_opcodes = is_counted and self._event == "opcode"
        frame.f_trace_lines = False
        if is_counted and event == self._event:
            self.left -= 1
            if self.left == 0 and event == "opcode" and _opcode(frame) in self._passed_over:
                self.left = 1
            elif self.left == 0:
                sys.settrace(None)
                self.place = _where(frame)
                raise InjectedError(self.place)
        return self._trace

    def tracing(self) -> AbstractContextManager[None]:
        return traced_by(self._trace)


def raise_at_each_bytecode(
    function: str, play: Callable[[RaiseAt], object], *, in_awaits: bool = True
) -> None:
    """Play with an exception at each bytecode of a function, one after the other.

    And once without one before: CPython 3.13 traces the bytecodes of a function only from its
    second call on.
    """
    play(RaiseAt(sys.maxsize, "opcode", function))
    for number in count(1):
        injection = RaiseAt(number, "opcode", function, in_awaits=in_awaits)
        play(injection)
        if not injection.has_raised:
            break
    assert number > 1, f"{function} was not called"


def _opcode(frame: FrameType) -> str:
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def _where(frame: FrameType | None) -> str:
    """The frames of the package that lead here, the innermost first."""
    places = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            file = code.co_filename.removeprefix(PACKAGE)
            places.append(f"{code.co_qualname} ({file}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(places)
