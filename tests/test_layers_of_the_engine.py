"""The modules of csrc/ are layers, too: none calls one that calls it."""

from __future__ import annotations

import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

from .conftest import ENGINE
from .support.engines import needs_compiler

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"


def test_the_table_on_the_page() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| module | its one job |\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(path.stem for path in ENGINE.glob("*.c"))


@needs_compiler
def test_no_circle_of_calls(compiled_engine: dict[str, Path]) -> None:
    defined: dict[str, str] = {}
    used: dict[str, set[str]] = {}
    for module, compiled in compiled_engine.items():
        names = subprocess.run(["nm", compiled], check=True, capture_output=True, text=True)
        for line in names.stdout.splitlines():
            kind, symbol = line.split()[-2:]
            if kind == "U":
                used.setdefault(module, set()).add(symbol)
            elif kind.isupper():
                defined[symbol] = module
    calls = {
        module: {defined[symbol] for symbol in symbols if symbol in defined}
        for module, symbols in used.items()
    }
    order = list(TopologicalSorter(calls).static_order())
    assert order.index("table") < order.index("request") < order.index("close")
    for generic in ("submit", "reap"):
        assert calls[generic] <= {"clock", "request", "submit"}
