"""``ringtls doctor``: says whether ringtls works on this machine, and if not what to change."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from .checks import Result, Status, run_checks

__all__ = ["add_parser", "as_json", "as_text", "is_ok", "run"]

INDENT = "          "


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check whether ringtls works on this machine",
        description="Check whether ringtls works on this machine, and say what to change. "
        "Exit status 0 if no check failed.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    results = run_checks()
    print(as_json(results) if arguments.json else as_text(results))
    return 0 if is_ok(results) else 1


def is_ok(results: Sequence[Result]) -> bool:
    return all(result.finding.status is not Status.FAILED for result in results)


def as_text(results: Sequence[Result]) -> str:
    """A line for each check, and an indented one for each remedy."""
    lines = []
    for result in results:
        finding = result.finding
        mark = f"[{finding.status.value}]"
        lines.append(f"{mark:{len(INDENT)}}{result.name}: {finding.found}")
        if finding.remedy is not None:
            lines.append(f"{INDENT}{finding.remedy}")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    checks = [
        {
            "name": result.name,
            "status": result.finding.status.value,
            "found": result.finding.found,
            "remedy": result.finding.remedy,
        }
        for result in results
    ]
    return json.dumps({"ok": is_ok(results), "checks": checks}, indent=2)
