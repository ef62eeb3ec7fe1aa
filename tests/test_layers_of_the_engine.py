"""The modules of csrc/ are layers, too: none calls one that calls it."""

from __future__ import annotations

import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no compiler")
def test_no_circle_of_calls(tmp_path: Path) -> None:
    defined: dict[str, str] = {}
    used: dict[str, set[str]] = {}
    for source in (ROOT / "csrc").glob("*.c"):
        module = source.stem
        compiled = str(tmp_path / f"{module}.o")
        build = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-c", str(source), "-o", compiled]
        subprocess.run(build, check=True)
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
