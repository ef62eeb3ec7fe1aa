"""How connections end on this machine, as a peer over loopback sees it; needs cryptography."""

from __future__ import annotations

from ..demo.cases import CANCELLED_READING, RETURN
from ..demo.measure import RINGTLS, measure, throwaway_contexts
from ..demo.peer import End

__all__ = ["End", "ends_over_loopback"]


async def ends_over_loopback() -> dict[str, End]:
    """The end of one connection for each case, by the case's name."""
    contexts = throwaway_contexts()
    ends: dict[str, End] = {}
    for case in (RETURN, CANCELLED_READING):
        [ends[case.name]] = await measure(RINGTLS, case, 1, contexts)
    return ends
