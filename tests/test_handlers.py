"""No place where a signal's handler may raise is outside of the handlers that it stands in.

CPython looks for signals where a loop jumps back. What is raised there passes by the ``except``,
``finally`` or ``with`` around the loop, if the place is in no row of the exception table:

- From 3.12 to 3.14, a conditional jump back is two bytecodes, of which the second, JUMP_BACKWARD,
  is in none. (3.12 itself still looks as 3.11 does, but there, too, tests raise at each bytecode.)
- Before, it looks when it has jumped, and what counts is the bytecode before the loop. That is in
  none if a loop with ``continue`` is the first in its ``try``.

So within one of these either a call stands, of a function that has the loop; or the loop is
``while True``, not the first statement, with its condition and ``break`` at the top, and does not
end with an ``if``: its one jump back is unconditional.

The commands are programs of their own, in which nobody else's handlers run.
"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType

import ringtls

PACKAGE = Path(ringtls.__file__).parent
COMMANDS = {"_cli", "lint"}

#: Where CPython looks for signals; it does not in an await.
IS_LOOKED_AT = re.compile(r"(POP_)?JUMP_BACKWARD(?!_NO_INTERRUPT)\w*")

GAPS = """
def before_3_12(things):
    try:
        while True:
            if things.are_new():
                continue
            things.renew()
    finally:
        end()

def from_3_12_to_3_14(things):
    try:
        for thing in things:
            if thing.is_old:
                thing.renew()
    finally:
        end()
"""


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


def gaps(code: CodeType) -> Iterator[int]:
    """The lines of jumps back within the handlers of a statement, at which these are passed by."""
    rows = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    names = {each.offset: each.opname for each in instructions}

    def handler(offset: int) -> int | None:
        return next((row.target for row in rows if row.start <= offset < row.end), None)

    for before, jump in pairwise(instructions):
        if not IS_LOOKED_AT.fullmatch(jump.opname):
            continue
        is_thrown = before.opname == "CLEANUP_THROW"  # into an await; trio throws nothing
        place = jump.offset if sys.version_info >= (3, 12) else jump.argval - 2
        if handler(place) is None and not is_thrown:
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


def test_a_jump_back_outside_of_its_handlers_is_seen() -> None:
    assert len(gaps_in(GAPS, "things.py")) == (sys.version_info < (3, 15))
