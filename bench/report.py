"""The figures as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .candidates import Candidate
from .results import Results
from .targets import Outcome, outcomes
from .works import Work

__all__ = ["BY_NAME", "METRICS", "Metric", "render", "shown"]

GAP = "  "
MISSING = "-"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
      factor: what its values are multiplied by for its unit.
    """

    name: str
    title: str
    factor: float = 1


METRICS = (
    Metric("cpu_per_request", "Server CPU time for each request, µs", 1e6),
    Metric("cpu_per_megabyte", "Server CPU time for each MB, ms", 1e3),
    Metric("requests_per_second", "Requests per second"),
    Metric("megabytes_per_second", "MB per second"),
    Metric("p50", "Half of the answers come within, ms", 1e3),
    Metric("p99", "99 % of the answers come within, ms", 1e3),
    Metric("memory_per_connection", "Memory of the server for each idle connection, KiB", 1 / 1024),
    Metric("system_calls_per_request", "System calls of the server for each request"),
    Metric("close_latency", "Half of the closes take the server's task at most, µs", 1e6),
)


BY_NAME = {metric.name: metric for metric in METRICS}


def render(results: Results, works: Sequence[Work], candidates: Sequence[Candidate]) -> str:
    """All there is to tell.

    Args:
      works, candidates: in the order of rows and columns; as they were chosen.
    """
    sections = [
        *(_metric_table(results, metric, works, candidates) for metric in METRICS),
        _ends_table(results, candidates),
        _targets_table(outcomes(results.medians)),
        "\n".join(("Notes:", *(f"- {note}" for note in results.notes))) if results.notes else "",
    ]
    return "\n\n".join(section for section in sections if section)


def _metric_table(
    results: Results, metric: Metric, works: Sequence[Work], candidates: Sequence[Candidate]
) -> str:
    def cell(work: Work, candidate: Candidate) -> str:
        figure = results.figure(work.name, candidate.name, metric.name)
        if figure is None:
            return MISSING
        median, low, high = (
            _number(value * metric.factor) for value in (figure.median, *figure.spread)
        )
        return median if len(figure.rounds) == 1 else f"{median} ({low}..{high})"

    rows = [
        (work.name, *(cell(work, candidate) for candidate in candidates))
        for work in works
        if any(results.figure(work.name, candidate.name, metric.name) for candidate in candidates)
    ]
    return _table(metric.title, ("", *(candidate.title for candidate in candidates)), rows)


def _ends_table(results: Results, candidates: Sequence[Candidate]) -> str:
    measured = [candidate for candidate in candidates if candidate.name in results.ends]
    cases = list(dict.fromkeys(case for ends in results.ends.values() for case in ends))

    def cell(candidate: Candidate, case: str) -> str:
        ends = results.ends[candidate.name].get(case)
        return f"{ends.get('clean', 0)} of {sum(ends.values())}" if ends else MISSING

    rows = [(case, *(cell(candidate, case) for candidate in measured)) for case in cases]
    header = ("", *(candidate.title for candidate in measured))
    return _table("Ends that were clean in the eyes of the peer", header, rows)


def _targets_table(reached: Iterable[Outcome]) -> str:
    rows = [
        (
            outcome.target.work,
            outcome.target.metric,
            f"{outcome.target.against} {outcome.target.against_work}".strip() or MISSING,
            *(f"{value:.2f}" for value in shown(outcome)),
            "reached" if outcome.reached else "not reached",
        )
        for outcome in reached
    ]
    header = ("", "", "against", "ratio", "target", "")
    return _table("ringtls divided by the others, and the most it is to be", header, rows)


def shown(outcome: Outcome) -> tuple[float, float]:
    """The ratio and its target; where nothing is divided, in the unit of the metric."""
    factor = 1 if outcome.target.against else BY_NAME[outcome.target.metric].factor
    return outcome.ratio * factor, outcome.target.at_most * factor


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns; empty without rows."""
    if not rows:
        return ""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            (cell.ljust if position == 0 else cell.rjust)(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return GAP.join((first, *others)).rstrip()

    return "\n".join((title, *map(line, lines)))


def _number(value: float) -> str:
    """With three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
