"""The ends table of ``ringtls proxy``: what happens on one side, as the other sees it.

By default a few rounds of each row. RINGTLS_ENDS=200 plays as many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from ringtls._cli.demo.proxy.cases import CASES, Case
from ringtls._cli.demo.proxy.comparison import Running, started
from ringtls._cli.demo.proxy.terminators import OWN

CONNECTIONS = int(os.environ.get("RINGTLS_ENDS", "16"))

AT_ONCE = 8
MANY = 64

#: Seconds that a slow reader makes its peer wait for each piece.
PAUSE = 0.001

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Running]:
    with started(OWN) as running:
        yield running


@cases
def test_r2_r3_what_each_end_becomes(proxy: Running, case: Case) -> None:
    assert proxy.count(case, CONNECTIONS, AT_ONCE) == {case.right: CONNECTIONS}


@cases
def test_r3_many_at_once(proxy: Running, case: Case) -> None:
    connections = max(CONNECTIONS, MANY)
    assert proxy.count(case, connections, MANY) == {case.right: connections}


@pytest.mark.long
@cases
def test_r1_slow_readers(proxy: Running, case: Case) -> None:
    def pause() -> None:
        time.sleep(PAUSE)

    assert proxy.count(case, CONNECTIONS, AT_ONCE, pause) == {case.right: CONNECTIONS}
