"""A test fails if it leaves a ringtls stream, destructor or operation unclosed.

pytest finds this by itself. ``@pytest.mark.ringtls_allow_unclosed`` lets a test do that, and as a
``pytestmark`` all tests of a module. It needs pytest 8, or an older one with pluggy 1.2. Elsewhere
the tests run as if this were not there, and the summary says so.
"""

from __future__ import annotations

import pytest

from ._streams.leaks import observers

__all__ = ["pytest_configure", "pytest_terminal_summary"]

MARKER = "ringtls_allow_unclosed"

#: No warning: where those are errors it would end the run.
TOO_OLD = "ringtls has not looked for what tests leave unclosed: that needs pytest 8 or newer"


def pytest_configure(config: pytest.Config) -> None:
    """pytest's hook: register the marker and the plugin."""
    config.addinivalue_line("markers", f"{MARKER}: the test may leave what is of ringtls unclosed.")
    if not _has_wrappers():
        return
    from ._pytest_watch import Watch

    watch = Watch(MARKER)
    config.pluginmanager.register(watch)
    observers.append(watch.lost.append)
    config.add_cleanup(lambda: observers.remove(watch.lost.append))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """pytest's hook: say that it is too old."""
    if not _has_wrappers():
        terminalreporter.write_line(TOO_OLD, yellow=True)


def _has_wrappers() -> bool:
    """Does pluggy know hooks that are wrappers as Watch has them? They came with its 1.2."""
    try:
        pytest.hookimpl(wrapper=True)
    except TypeError:
        return False
    return True
