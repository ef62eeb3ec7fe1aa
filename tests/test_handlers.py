"""No place where a signal's handler may raise is outside of the handlers that it stands in.

CPython looks for signals where a loop jumps back. From 3.12 on, a conditional jump back is two
bytecodes. The second of them, JUMP_BACKWARD, is in no row of the exception table: what is raised
there passes by the ``except``, ``finally`` or ``with`` around the loop. So within one of these

- either a call stands, of a function that has the loop;
- or the loop is ``while True``, with its condition and ``break`` at the top, and does not end with
  an ``if`` or a ``break``: its one jump back is unconditional, and in the table.

The commands are programs of their own, in which nobody else's handlers run.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType

import pytest

import ringtls

PACKAGE = Path(ringtls.__file__).parent
COMMANDS = {"_cli", "lint"}

GAP = """
def loop(things):
    try:
        for thing in things:
            if thing.is_new:
                look_at(thing)
    finally:
        end()
"""

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="its jumps have their rows")


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


def gaps(code: CodeType) -> Iterator[int]:
    """The lines of jumps that are in no row, to what the handlers of a statement are around."""
    rows = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    names = {each.offset: each.opname for each in instructions}

    def handler(offset: int) -> int | None:
        return next((row.target for row in rows if row.start <= offset < row.end), None)

    for before, jump in pairwise(instructions):
        is_thrown = before.opname == "CLEANUP_THROW"  # into an await; trio throws nothing
        if jump.opname == "JUMP_BACKWARD" and handler(jump.offset) is None and not is_thrown:
            around = handler(jump.argval)
            while around is not None and names[around] != "PUSH_EXC_INFO":
                around = handler(around)  # this one is the compiler's, and cleans up
            if around is not None:
                assert before.positions is not None
                yield before.positions.lineno or 0


def gaps_in(source: str, name: str) -> list[str]:
    return [
        f"{name}:{line} ({function.co_qualname})"
        for function in functions(compile(source, name, "exec"))
        if function.co_exceptiontable
        for line in gaps(function)
    ]


def test_c16_every_jump_back_is_within_its_handlers() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in COMMANDS:
            found += gaps_in(path.read_text(encoding="utf-8"), str(name))
    assert not found


def test_a_jump_outside_of_its_handlers_is_seen() -> None:
    assert len(gaps_in(GAP, "a")) == 1
