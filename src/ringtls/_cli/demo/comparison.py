"""How connections end with ringtls and with trio.SSLStream, case by case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from .cases import CASES
from .measure import RINGTLS, TRIO, measure, throwaway_contexts
from .peer import End

__all__ = ["SERVERS", "Comparison", "compare"]

SERVERS = (RINGTLS, TRIO)


@dataclass(frozen=True)
class Comparison:
    """The figures of one run.

    Attributes:
      connections: how many there were for each case and server.
      ends: how they ended, by the names of case and server.
    """

    connections: int
    ends: Mapping[tuple[str, str], Counter[End]]

    def total(self, server: str) -> Counter[End]:
        """How the connections to one server ended, of all cases together."""
        return sum((self.ends[case.name, server] for case in CASES), Counter())

    def all_clean(self, server: str) -> bool:
        return self.total(server).keys() == {End.CLEAN}


async def compare(connections: int, on_end: Callable[[str, str, End], object]) -> Comparison:
    """Measure each case with each server.

    Args:
      on_end: called for each connection that has ended, with the names of case and server.

    Raises:
      RingUnavailableError: io_uring is forced, and there is none here.
    """
    contexts = throwaway_contexts()
    ends = {}
    for case in CASES:
        for server in SERVERS:
            report = partial(on_end, case.name, server.name)
            ends[case.name, server.name] = await measure(
                server, case, connections, contexts, report
            )
    return Comparison(connections, ends)
