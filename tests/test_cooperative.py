"""Tests of other modules once more, on rings whose work the thread's next system call runs.

Event loops have such a ring where the kernel needs it (ringtls._engine.wakeups).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ringtls._drivers.trio import TrioDriver
from ringtls._engine import wakeups
from ringtls._engine.ring import Ring

# Collected here again, with the fixtures below.
from .contract.test_ending import (  # noqa: F401
    test_c1_all_that_was_accepted_goes_first,
    test_c1_order,
    test_c3_a_peer_that_never_reads_is_reset,
    test_c7_a_cancelled_send_leaves_the_stream_usable,
    test_c9_the_run_waits_for_its_closings,
)
from .contract.test_operations import (  # noqa: F401
    test_h4_a_cancelled_send_says_how_much_went_out,
    test_h6_a_dry_pool,
    test_h7_closing_cancels_and_drains,
)
from .test_input import (  # noqa: F401
    test_a_peer_that_floods_is_held_back,
    test_all_comes_in_order_and_then_the_end,
    test_one_reap_ends_however_fast_the_peer_is,
)
from .test_outbox import (  # noqa: F401
    narrow,
    test_finish_while_the_peer_reads,
    test_pieces_of_all_sizes_arrive_in_order,
)
from .test_trio_driver import (  # noqa: F401
    test_guest_mode,
    test_several_runs_at_once,
    test_the_last_close_ends_while_the_loop_stays_awake,
)


@pytest.fixture(autouse=True)
def kernel_that_signals_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "wakes_event_loops", lambda: False)


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(buffers=4, buffer_size=4096, cooperative=True)
    yield ring
    assert ring.close(timeout=5.0)


async def test_the_ring_is_cooperative() -> None:
    assert TrioDriver.current().ring.cooperative
