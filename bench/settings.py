"""How thorough a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Figures", "Settings"]

#: What a measurement gives: values by the names of metrics, in seconds and bytes.
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """How much is done in each measurement.

    Attributes:
      rounds: how often each measurement is made.
      seconds: how long a load is measured.
      idle: connections that say nothing.
      closes: connections that are closed one after another.
      ends: connections for each way to end.
    """

    rounds: int
    seconds: float
    idle: int
    closes: int
    ends: int
