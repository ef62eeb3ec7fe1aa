"""``python -m bench``: measure ringtls and what it is compared with.

Candidates take turns within each work, works within each round, so what disturbs the machine for
a while hits them all. What counts is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import ssl
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from ringtls._cli.certificates import Certificate, make_certificate

from .candidates import CANDIDATES, Candidate
from .load import LoadError, missing_programs
from .progress import Progress
from .report import render
from .results import Results
from .server import ServerError, load_cpu, running, server_cpu
from .works import WORKS, Settings, Work

__all__ = ["main"]

Named = TypeVar("Named", Work, Candidate)

OUTPUT = Path(__file__).with_name("results")

#: Rounds and seconds by default, and with --quick.
ROUNDS, SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.5


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    missing = missing_programs()
    if missing:
        sys.exit(
            f"{' and '.join(missing)} not found. Run this once, then try again:\n"
            f"    sudo apt-get install -y {' '.join(missing)}"
        )
    quick = arguments.quick
    rounds = arguments.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    settings = Settings(arguments.seconds or (QUICK_SECONDS if quick else SECONDS))
    results = Results(_about(rounds, settings))
    candidates = _present(arguments.candidates, results)
    if not candidates:
        sys.exit("\n".join(("There is nothing to measure.", *results.notes)))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so all that was started is ended
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {load_cpu()})
    if load_cpu() == server_cpu():
        results.note("There is one CPU for servers and load, so rates and latencies mean little.")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        certificate = make_certificate(Path(directory))
        _measure(candidates, arguments.only, rounds, settings, certificate, results)

    arguments.output.mkdir(parents=True, exist_ok=True)
    results.write(arguments.output / "results.json")
    works = [work.name for work in arguments.only]
    print(render(results, works, candidates))
    print(f"\nWritten to {arguments.output}.")
    return 0


def _measure(
    candidates: Sequence[Candidate],
    works: Sequence[Work],
    rounds: int,
    settings: Settings,
    certificate: Certificate,
    results: Results,
) -> None:
    plan = [
        (number, work, candidate)
        for number in range(1, rounds + 1)
        for work in works
        for candidate in candidates
        if number == 1 or not work.once
    ]
    progress = Progress(sys.stderr, len(plan))
    for number, work, candidate in plan:
        progress.begin(f"round {number} of {rounds}: {work.title}: {candidate.title}")
        try:
            with running(candidate, certificate, tickets=work.tickets) as server:
                results.add(work.name, candidate.name, work.measure(server, settings))
        except (LoadError, ServerError, OSError) as error:
            results.note(f"Round {number}, {work.name}, {candidate.name}: {error}")
    progress.end()


def _present(candidates: Sequence[Candidate], results: Results) -> list[Candidate]:
    """Those that can be measured here."""
    present = []
    for candidate in candidates:
        missing = candidate.missing()
        if missing:
            results.note(f"{candidate.title} was left out: {missing}")
        else:
            present.append(candidate)
    return present


def _about(rounds: int, settings: Settings) -> dict[str, object]:
    return {
        "rounds": rounds,
        "seconds": settings.seconds,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "ringtls": version("ringtls"),
        "trio": version("trio"),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure ringtls next to other TLS servers, on this machine, in one run.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to try it")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"of each measurement, default {SECONDS}"
    )
    parser.add_argument(
        "--only",
        type=lambda text: _named(text, WORKS),
        default=WORKS,
        metavar="WORK,...",
        help=f"of {', '.join(work.name for work in WORKS)}",
    )
    parser.add_argument(
        "--candidates",
        type=lambda text: _named(text, CANDIDATES),
        default=CANDIDATES,
        metavar="NAME,...",
        help=f"of {', '.join(candidate.name for candidate in CANDIDATES)}",
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help="default bench/results"
    )
    return parser


def _named(text: str, known: Sequence[Named]) -> list[Named]:
    by_name = {one.name: one for one in known}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in by_name:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(by_name)}")
    return [by_name[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())
