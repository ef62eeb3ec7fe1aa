"""The modules of csrc/ are layers, too: none calls one that calls it."""

from __future__ import annotations

import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

from .support.engines import needs_compiler


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
