"""docs/differences-from-trio.md: its program, and its table of trio's tests that fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Contexts
from .frameworks.substitution import SUITES
from .test_readme import MIGRATION, ROOT, examples


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program as it is on the page, and as it was with trio's names."""
    directory = tmp_path_factory.mktemp("swapped")
    swapped = examples(MIGRATION)["swapped.py"]
    before, count = re.subn(
        r"^from ringtls import (\w+)(?: as (\w+))?$",
        lambda match: f"from trio import {match[2] or match[1]}",
        swapped,
        flags=re.M,
    )
    assert count == 5
    assert "ringtls" not in before
    sources = {"trio": before, "ringtls": swapped}
    paths = {}
    for name, source in sources.items():
        paths[name] = directory / f"on_{name}.py"
        paths[name].write_text(source)
    return paths


@pytest.mark.parametrize("name", ["trio", "ringtls"])
def test_the_program_runs(contexts: Contexts, programs: dict[str, Path], name: str) -> None:
    files = [contexts.certificate, contexts.key, contexts.ca]
    shown = subprocess.run(
        [sys.executable, "-W", "error", programs[name], *files],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (shown.stdout, shown.stderr) == ("b'HELLO, NONE'\n", "")


@pytest.mark.long
def test_type_checkers_accept_it_before_and_after(programs: dict[str, Path]) -> None:
    """mypy here; pyright in script/types."""
    shown = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", *programs.values()],
        cwd=ROOT,  # for its cache, and the path to our source
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shown.stdout == "Success: no issues found in 2 source files\n", shown.stderr


def test_the_page_explains_each_of_trios_tests_that_fails() -> None:
    explained = re.findall(
        r"`(test_\w+)`", MIGRATION.read_text().partition("## The test suites")[2]
    )
    explained.remove("test_ssl")
    assert sorted(explained) == sorted(SUITES["trio"].differences)
