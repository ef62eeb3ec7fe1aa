"""Measures the works with the candidates, in turn.

1. Candidates take turns within each work, works within each round. So what disturbs the machine for
   a while hits them all.
2. What fails or can't be done here is noted, and left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringtls._cli.certificates import Certificate

from .candidates import Candidate, Kind
from .ends import MEASURES, count_ends
from .load import LoadError
from .probe import differences, probe
from .progress import Progress
from .results import Results
from .server import ServerError, running
from .settings import Settings
from .works import TICKETS, Work

__all__ = ["measure_ends", "measure_works", "plan", "possible", "probed"]


def possible(works: Sequence[Work], results: Results) -> list[Work]:
    """The works for which nothing is missing here."""
    found = []
    for work in works:
        if work.program and shutil.which(work.program) is None:
            results.note(
                f"{work.title}: left out, {work.program} is not installed: "
                f"sudo apt-get install linux-{work.program}"
            )
        else:
            found.append(work)
    return found


def measure_works(
    candidates: Sequence[Candidate],
    works: Sequence[Work],
    settings: Settings,
    certificate: Certificate,
    results: Results,
    progress: Progress,
) -> None:
    for candidate in probed(candidates):
        progress.begin(f"what {candidate.title} speaks")
        with _noting(results, candidate.title):
            results.traits[candidate.name] = probe(candidate, certificate, TICKETS)
    for difference in differences(results.traits):
        results.note(difference)
    for number, work, candidate in plan(candidates, works, settings):
        progress.begin(f"round {number} of {settings.rounds}: {work.title}: {candidate.title}")
        with (
            _noting(results, f"{work.title}: {candidate.title}"),
            running(candidate, certificate, tickets=work.tickets) as server,
        ):
            results.add(work.name, candidate.name, work.measure(server, settings))


def probed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that answer what the probe asks for."""
    return [candidate for candidate in candidates if candidate.kinds & {Kind.HANDLER, Kind.RELAY}]


def plan(
    candidates: Sequence[Candidate], works: Sequence[Work], settings: Settings
) -> list[tuple[int, Work, Candidate]]:
    """The measurements in their order, with their rounds."""
    return [
        (number, work, candidate)
        for number in range(1, settings.rounds + 1)
        for work in works
        for candidate in candidates
        if number == 1 or not work.once
        if work.kind in candidate.kinds
    ]


def measure_ends(
    candidates: Sequence[Candidate], settings: Settings, results: Results, progress: Progress
) -> None:
    for candidate in candidates:
        if candidate.name in MEASURES:
            progress.begin(f"ends of connections: {candidate.title}")
            with _noting(results, f"ends: {candidate.title}"):
                results.ends[candidate.name] = count_ends(candidate.name, settings)


@contextmanager
def _noting(results: Results, what: str) -> Iterator[None]:
    try:
        yield
    except (LoadError, ServerError, OSError) as error:
        results.note(f"{what}: {error}")
