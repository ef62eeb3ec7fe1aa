"""What the pytest plugin does around each test.

Rules:

1. What is dropped is reported at once, what is still open at the end of a trio run is then. So when
   a test's call is over everything is known, but for reference cycles in a run that goes on. They
   are collected if there is anything open that was not before the test.
2. The same after the teardown, for what fixtures made.
3. A failure or skip of the test's own is not replaced: what was left is in a section of its report.
4. What something still holds when the teardown is over may belong to a fixture of wider scope, say
   a pool that a test has made larger. A blocking stream that is held is therefore reported only
   when it is dropped, by the test in which that happens.
5. No warning filter has a say in this.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Hashable

import pytest

from ._streams.leaks import still_open

__all__ = ["Watch"]


class Watch:
    """One for a run of pytest.

    Args:
      marker: of tests that are let be.
    """

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.lost: list[str] = []
        self._open_before: set[Hashable] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        self._open_before = still_open.copy()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        return (yield from self._check(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        return (yield from self._check(item, "teardown"))

    def _check(self, item: pytest.Item, when: str) -> Generator[None]:
        try:
            result = yield
        except BaseException:
            if text := self._take_lost(item):
                item.add_report_section(when, "ringtls", text)
            raise
        if text := self._take_lost(item):
            pytest.fail(text, pytrace=False)
        return result

    def _take_lost(self, item: pytest.Item) -> str:
        if still_open - self._open_before:
            gc.collect()
        lost = list(dict.fromkeys(self.lost))
        self.lost.clear()
        return "" if item.get_closest_marker(self._marker) else "\n".join(lost)
