"""Plots of the figures, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .candidates import Candidate
from .results import Results

__all__ = ["draw"]


def draw(results: Results, candidates: Sequence[Candidate], directory: Path) -> None:
    """Write all plots for which there are figures."""
