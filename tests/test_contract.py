"""The rule book and the tests: each rule has tests, each numbered test a rule."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
CONTRACT = TESTS.parent / "docs" / "contract.md"

RULE = re.compile(r"^- \*\*([CHDRA]\d+)\b", re.MULTILINE)
NUMBERED_TEST = re.compile(r"^ *(?:async )?def test_([chdra]\d+)_", re.MULTILINE)


def rules() -> list[str]:
    return RULE.findall(CONTRACT.read_text(encoding="utf-8"))


def numbers_of_tests() -> set[str]:
    return {
        number.upper()
        for path in TESTS.rglob("test_*.py")
        for number in NUMBERED_TEST.findall(path.read_text(encoding="utf-8"))
    }


def test_each_rule_has_tests() -> None:
    assert set(rules()) - numbers_of_tests() == set()


def test_each_numbered_test_has_a_rule() -> None:
    assert numbers_of_tests() - set(rules()) == set()


def test_numbers_are_given_once_and_in_order() -> None:
    numbers = [(rule[0], int(rule[1:])) for rule in rules()]
    for letter in "CHDRA":
        of_letter = [number for first, number in numbers if first == letter]
        assert of_letter == list(range(1, len(of_letter) + 1)), letter
