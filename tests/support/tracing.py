"""A trace function for a while; what traced before, as coverage does, goes on afterwards.

CPython 3.12 gives the events of opcodes only if a frame asked for them before ``sys.settrace``:
what a trace function asks for counts from the next ``sys.settrace`` on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["traced_by"]


@contextmanager
def traced_by(function: Callable[..., Any]) -> Iterator[None]:
    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)
