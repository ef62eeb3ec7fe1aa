"""The table of the close sequence: the code's, the module's and docs/architecture.md's are one."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from ringtls._streams import closing as _closing
from ringtls._streams.closing import TRANSITIONS, Event, Phase

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"

Rows = set[tuple[str, str, str]]

ROWS: Rows = {
    (phase.name, event.name, following.name) for (phase, event), following in TRANSITIONS.items()
}


def test_the_picture() -> None:
    arrows: list[tuple[str, str, str]] = re.findall(
        r"^    (\w+) --> (\w+): (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {(phase, event, following) for phase, following, event in arrows} == ROWS
    assert len(arrows) == len(ROWS)


def test_the_table_in_the_module() -> None:
    assert _closing.__doc__ is not None
    names = "|".join(phase.name for phase in Phase)
    rows: list[tuple[str, str, str]] = re.findall(
        rf"^    ({names}) +(\w+) +({names}) ", _closing.__doc__, re.MULTILINE
    )
    assert set(rows) == ROWS


def test_every_phase_but_the_last_can_be_left() -> None:
    assert {phase for phase, _ in TRANSITIONS} == set(Phase) - {Phase.CLOSED}
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_nothing_leads_back() -> None:
    assert all(following > phase for (phase, _), following in TRANSITIONS.items())


@pytest.mark.parametrize(
    ("phase", "event"), sorted(set(product(Phase, Event)) - TRANSITIONS.keys())
)
def test_what_is_not_in_the_table_is_an_error(phase: Phase, event: Event) -> None:
    closing = object.__new__(_closing.Closing)
    closing._phase = phase
    with pytest.raises(KeyError):
        closing._step(event)
