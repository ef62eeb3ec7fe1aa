"""``ringtls demo --proxy``: which TLS terminator forges which end."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TextIO

from ..interruptions import unwound_by_signals
from .cases import CASES, Case
from .comparison import started
from .terminators import OWN, TERMINATORS

__all__ = ["compare"]

AT_ONCE = 8

GAP = "  "

#: Before what must not come of a case.
MARK = "!"


def compare(connections: int, file: TextIO) -> bool:
    """Play all cases through what is installed here, and write a row of the table for each.

    Args:
      connections: for each case and terminator.

    Returns:
      True if all came out right through ringtls' own.
    """
    there = [terminator for terminator in TERMINATORS if terminator.is_installed]
    missing = [terminator for terminator in TERMINATORS if terminator not in there]
    label_width = max(len(case.name) for case in CASES)
    cell_width = max(len(MARK) + len(case.right) + 5 for case in CASES) + 4
    is_right = True

    def write(label: str, cells: list[str]) -> None:
        row = GAP.join((f"{label:{label_width}}", *(f"{cell:{cell_width}}" for cell in cells)))
        print(row.rstrip(), file=file, flush=True)

    print(f"What became of {connections} connections for each case:\n", file=file)
    write("", [terminator.name for terminator in there])
    with unwound_by_signals(), ExitStack() as stack:
        runs = [stack.enter_context(started(terminator)) for terminator in there]
        for case in CASES:
            counts = [run.count(case, connections, AT_ONCE) for run in runs]
            write(case.name, [_cell(case, count) for count in counts])
            is_right = is_right and set(counts[there.index(OWN)]) == {case.right}
    print(
        f"\n{MARK} is an end that was forged, or data that was lost: the peer can't know what "
        "happened.",
        file=file,
    )
    for terminator in missing:
        text = f"{terminator.name} is not installed: apt-get install {terminator.package}"
        print(text, file=file)
    return is_right


def _cell(case: Case, count: Counter[str]) -> str:
    """The words, with their numbers if there are several."""
    words = [
        f"{'' if word == case.right else MARK}{word}{f' {number}' if len(count) > 1 else ''}"
        for word, number in count.most_common()
    ]
    return ", ".join(words)
