"""Plots of the figures, as SVG. A candidate has the same colour in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from .candidates import Candidate, Kind
from .report import BY_NAME, Metric, shown
from .results import Figure, Results
from .targets import Outcome, outcomes

__all__ = ["draw"]

COLOURS = {
    "ringtls": "#d1495b",
    "ringtls_epoll": "#e59aa5",
    "trio": "#8d96a3",
    "asyncio_streams": "#edae49",
    "uvloop_streams": "#00798c",
    "uvloop_protocol": "#7fc8c2",
    "nginx": "#30638e",
}
GOOD, BAD = "#4c956c", "#d1495b"

STYLE: Any = {
    "font.size": 12,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "legend.frameon": False,
    "svg.hashsalt": "bench",
}

WIDTH = 9.0

KEEP_ALIVE = ("keep-alive-1", "keep-alive-64", "keep-alive-512", "keep-alive-4096")

#: Ratios that miss their target by more than this factor are drawn as if it were this.
MOST_SHOWN = 3.0

#: The panels of costs.svg: work, metric and title.
COSTS = (
    ("handshakes", "cpu_per_request", "Handshake, request, close:\nserver CPU, µs"),
    ("resumed", "cpu_per_request", "With a resumed handshake:\nserver CPU, µs"),
    ("bulk-down", "cpu_per_megabyte", "Download:\nserver CPU for each MB, ms"),
    ("bulk-up", "cpu_per_megabyte", "Upload:\nserver CPU for each MB, ms"),
    ("idle", "memory_per_connection", "Idle connection:\nserver memory, KiB"),
    (
        "system-calls",
        "system_calls_per_request",
        "Keep-alive request:\nsystem calls",
    ),
)


def draw(results: Results, candidates: Sequence[Candidate], directory: Path) -> None:
    """Write all plots for which there are figures: those of servers that have a handler."""
    candidates = [candidate for candidate in candidates if Kind.HANDLER in candidate.kinds]
    with matplotlib.rc_context(STYLE):
        for name, canvas in (
            ("requests", _requests(results, candidates)),
            ("costs", _costs(results, candidates)),
            ("ends", _ends(results, candidates)),
            ("targets", _targets(outcomes(results.medians))),
        ):
            path = directory / f"{name}.svg"
            if canvas:
                canvas.savefig(path, facecolor="white", metadata={"Date": None})
            else:
                path.unlink(missing_ok=True)  # of an earlier run


def _requests(results: Results, candidates: Sequence[Candidate]) -> Canvas | None:
    """CPU time of a request by the number of connections."""
    metric = BY_NAME["cpu_per_request"]
    works = [
        work
        for work in KEEP_ALIVE
        if any(results.figure(work, candidate.name, metric.name) for candidate in candidates)
    ]
    if not works:
        return None
    canvas = Canvas(figsize=(WIDTH, 4.8), layout="constrained")
    axes = canvas.add_subplot()
    width = 0.84 / len(candidates)
    for column, candidate in enumerate(candidates):
        for row, work in enumerate(works):
            figure = results.figure(work, candidate.name, metric.name)
            position = row + (column - (len(candidates) - 1) / 2) * width
            if figure:
                _bar(axes, position, figure, metric, candidate, width * 0.92)
    axes.set_xticks(range(len(works)), [f"{int(work.split('-')[-1]):,}" for work in works])
    axes.set_xlabel("connections")
    axes.set_title("Server CPU time for a keep-alive request, µs")
    axes.grid(axis="y", color="#e4e4e4")
    canvas.legend(
        handles=[
            Patch(color=COLOURS[candidate.name], label=candidate.title) for candidate in candidates
        ],
        loc="outside lower center",
        ncols=3,
    )
    return canvas


def _costs(results: Results, candidates: Sequence[Candidate]) -> Canvas | None:
    """The other works, each with a scale of its own."""
    panels = [
        panel
        for panel in COSTS
        if any(results.figure(panel[0], candidate.name, panel[1]) for candidate in candidates)
    ]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(WIDTH, 0.9 + 2.3 * rows), layout="constrained")
    for number, (work, name, title) in enumerate(panels):
        axes = canvas.add_subplot(rows, columns, number + 1)
        metric = BY_NAME[name]
        for position, candidate in enumerate(candidates):
            figure = results.figure(work, candidate.name, name)
            if figure:
                value = figure.median * metric.factor
                axes.barh(position, value, color=COLOURS[candidate.name])
                axes.text(value, position, f" {_short(value)}", va="center", fontsize=10)
        axes.set_title(title, fontsize=11)
        labelled = number % columns == 0
        names = [candidate.title if labelled else "" for candidate in candidates]
        axes.set_yticks(range(len(candidates)), names)
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
    return canvas


def _ends(results: Results, candidates: Sequence[Candidate]) -> Canvas | None:
    """The share of clean ends by case and candidate."""
    measured = [candidate for candidate in candidates if candidate.name in results.ends]
    if not measured:
        return None
    cases = list(results.ends[measured[0].name])
    canvas = Canvas(figsize=(WIDTH, 1.2 + 0.45 * len(cases)), layout="constrained")
    axes = canvas.add_subplot()
    for row, case in enumerate(cases):
        for column, candidate in enumerate(measured):
            ends = results.ends[candidate.name].get(case)
            if not ends:
                continue
            clean, total = ends.get("clean", 0), sum(ends.values())
            colour = GOOD if clean == total else BAD
            axes.barh(row, 0.94, left=column - 0.47, height=0.88, color=colour)
            axes.text(
                column,
                row,
                f"{100 * clean / total:.0f} %",
                ha="center",
                va="center",
                color="white",
                weight="bold",
            )
    axes.set_yticks(range(len(cases)), cases)
    axes.set_xticks(range(len(measured)), [candidate.title for candidate in measured])
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("Ends that were clean in the eyes of the peer", pad=28)
    return canvas


def _targets(measured: Sequence[Outcome]) -> Canvas | None:
    """What each ratio is, next to the most it is to be."""
    if not measured:
        return None
    canvas = Canvas(figsize=(WIDTH, 1.4 + 0.3 * len(measured)), layout="constrained")
    axes = canvas.add_subplot()
    for row, outcome in enumerate(measured):
        share = outcome.ratio / outcome.target.at_most
        axes.barh(row, min(share, MOST_SHOWN), height=0.7, color=GOOD if outcome.reached else BAD)
        axes.text(
            max(1, min(share, MOST_SHOWN)),
            row,
            " {:.2f} of {:.2f}".format(*shown(outcome)),
            va="center",
            fontsize=10,
        )
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_yticks(range(len(measured)), [_label(outcome) for outcome in measured], fontsize=10)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(0, MOST_SHOWN * 1.2)
    axes.set_xticks([1], ["target"])
    axes.tick_params(length=0)
    axes.set_title("ringtls divided by the others, relative to the target")
    return canvas


def _label(outcome: Outcome) -> str:
    target = outcome.target
    metric = {"cpu_per_request": "CPU", "cpu_per_megabyte": "CPU", "p50": "p50"}.get(target.metric)
    what = f"{target.work}, {metric}" if metric else target.work
    against = target.against_work or target.against.replace("_", " ")
    return f"{what} / {against}" if against else what


def _bar(
    axes: Axes,
    position: float,
    figure: Figure,
    metric: Metric,
    candidate: Candidate,
    width: float,
) -> None:
    """The median as a bar, the spread as a line on it."""
    value = figure.median * metric.factor
    low, high = (bound * metric.factor for bound in figure.spread)
    axes.bar(position, value, width, color=COLOURS[candidate.name])
    axes.vlines(position, low, high, color="#333333", linewidth=1)
    axes.text(position, high, _short(value), ha="center", va="bottom", fontsize=9)


def _short(value: float) -> str:
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
