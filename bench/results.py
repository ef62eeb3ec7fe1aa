"""The figures of a run, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .targets import Medians, outcomes

__all__ = ["Figure", "Results"]


@dataclass(frozen=True)
class Figure:
    """One metric in all rounds."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most."""
        return min(self.rounds), max(self.rounds)


@dataclass
class Results:
    """What was measured.

    Attributes:
      about: the machine, the versions and the settings.
      traits: what each candidate's connections are like.
      ends: how many connections ended how, by candidate and case.
      notes: what is unequal, was left out or failed.
    """

    about: dict[str, object]
    traits: dict[str, Mapping[str, object]] = field(default_factory=dict)
    ends: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _figures: dict[str, dict[str, dict[str, Figure]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def add(self, work: str, candidate: str, figures: Mapping[str, float]) -> None:
        """What one round gave."""
        known = self._figures[work][candidate]
        for metric, value in figures.items():
            known.setdefault(metric, Figure([])).rounds.append(value)

    def note(self, text: str) -> None:
        """Keep this, once."""
        if text not in self.notes:
            self.notes.append(text)

    def figure(self, work: str, candidate: str, metric: str) -> Figure | None:
        return self._figures.get(work, {}).get(candidate, {}).get(metric)

    @property
    def medians(self) -> Medians:
        return {
            work: {
                candidate: {metric: figure.median for metric, figure in metrics.items()}
                for candidate, metrics in candidates.items()
            }
            for work, candidates in self._figures.items()
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self._content(), indent=2, ensure_ascii=False) + "\n")

    def _content(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "works": {
                work: {
                    candidate: {
                        metric: {
                            "median": figure.median,
                            "min": figure.spread[0],
                            "max": figure.spread[1],
                            "rounds": figure.rounds,
                        }
                        for metric, figure in metrics.items()
                    }
                    for candidate, metrics in candidates.items()
                }
                for work, candidates in self._figures.items()
            },
            "targets": [
                {**asdict(outcome.target), "ratio": outcome.ratio, "reached": outcome.reached}
                for outcome in outcomes(self.medians)
            ],
            "traits": self.traits,
            "ends": self.ends,
            "notes": self.notes,
        }
