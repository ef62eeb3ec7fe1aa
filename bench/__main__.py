"""``python -m bench``: measure ringtls and what it is compared with."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import ssl
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ringtls._cli.certificates import make_certificate

from .candidates import CANDIDATES, Candidate, Kind
from .ends import MEASURES
from .ends import NOTE as ENDS_NOTE
from .load import missing_programs
from .measure import measure_ends, measure_works, plan, possible, probed
from .progress import Progress
from .report import render
from .results import Results
from .server import load_cpu, server_cpu
from .settings import Settings
from .works import WORKS, Work

__all__ = ["main"]

OUTPUT = Path(__file__).with_name("results")

#: What is done by default, and with --quick.
THOROUGH = Settings(rounds=5, seconds=2.0, idle=10_000, closes=200, ends=48)
QUICK = Settings(rounds=1, seconds=0.5, idle=500, closes=20, ends=6)

#: A part of the measurements that is no work of a server's.
ENDS = "ends"

#: Files that a server may have open besides idle connections.
OTHER_FILES = 100


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    if missing := missing_programs():
        sys.exit(
            f"{' and '.join(missing)} not found. Run this once, then try again:\n"
            f"    sudo apt-get install -y {' '.join(missing)}"
        )
    results = Results(_about())
    chosen = [work for work in WORKS if work.name in arguments.only]
    with_ends = ENDS in arguments.only
    candidates = _present(_concerned(arguments.candidates, chosen, with_ends), results)
    if not candidates:
        sys.exit("\n".join(("There is nothing to measure.", *results.notes)))
    settings = _settings(arguments, results)
    results.about["settings"] = asdict(settings)
    works = possible(chosen, results)
    _measure(candidates, works, settings, with_ends, results)

    arguments.output.mkdir(parents=True, exist_ok=True)
    results.write(arguments.output / "results.json")
    if find_spec("matplotlib"):
        from .plots import draw

        draw(results, candidates, arguments.output)
    else:
        results.note("There are no plots, as matplotlib is not installed: pip install matplotlib")
    print(render(results, works, candidates))
    print(f"\nWritten to {arguments.output}.")
    return 0


def _measure(
    candidates: Sequence[Candidate],
    works: Sequence[Work],
    settings: Settings,
    with_ends: bool,
    results: Results,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so all that was started is ended
    os.sched_setaffinity(0, {load_cpu()})
    if load_cpu() == server_cpu():
        results.note("There is one CPU for servers and load, so rates and latencies mean little.")
    for note in (*(each.note for each in candidates), *(work.note for work in works)):
        if note:
            results.note(note)
    total = len(probed(candidates)) + len(plan(candidates, works, settings))
    if with_ends:
        total += sum(candidate.name in MEASURES for candidate in candidates)
    progress = Progress(sys.stderr, total)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        certificate = make_certificate(Path(directory))
        measure_works(candidates, works, settings, certificate, results, progress)
    if with_ends:
        results.note(ENDS_NOTE)
        measure_ends(candidates, settings, results, progress)
    progress.end()


def _settings(arguments: argparse.Namespace, results: Results) -> Settings:
    """What is wanted, as far as this machine allows it."""
    chosen = QUICK if arguments.quick else THOROUGH
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = min(chosen.idle, hard - OTHER_FILES)
    if idle < chosen.idle:
        results.note(f"There are {idle} idle connections, as the limit of open files is {hard}.")
    return Settings(
        rounds=arguments.rounds or chosen.rounds,
        seconds=arguments.seconds or chosen.seconds,
        idle=idle,
        closes=chosen.closes,
        ends=chosen.ends,
    )


def _concerned(
    candidates: Sequence[Candidate], works: Sequence[Work], with_ends: bool
) -> list[Candidate]:
    """Those for which there is something to do."""
    kinds = {work.kind for work in works} | ({Kind.HANDLER} if with_ends else set())
    return [candidate for candidate in candidates if candidate.kinds & kinds]


def _present(candidates: Sequence[Candidate], results: Results) -> list[Candidate]:
    """Those that can be measured here."""
    present = []
    for candidate in candidates:
        if missing := candidate.missing():
            results.note(f"{candidate.title} was left out: {missing}")
        else:
            present.append(candidate)
    return present


def _about() -> dict[str, object]:
    about = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }
    packages = {name: version(name) for name in ("ringtls", "trio", "uvloop") if find_spec(name)}
    return {**about, **packages}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure ringtls next to other TLS servers, on this machine, in one run.",
    )
    works = [*(work.name for work in WORKS), ENDS]
    usual = [*(work.name for work in WORKS if work.kind is not Kind.RELAY), ENDS]
    by_name = {candidate.name: candidate for candidate in CANDIDATES}
    parser.add_argument("--quick", action="store_true", help="one short round, to try it")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {THOROUGH.rounds}")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=f"of each measurement, default {THOROUGH.seconds}",
    )
    parser.add_argument(
        "--only",
        type=_names_of(works),
        default=usual,
        metavar="WORK,...",
        help=f"of {', '.join(works)}; by default all but those of terminators (proxy-...)",
    )
    parser.add_argument(
        "--candidates",
        type=lambda text: [by_name[name] for name in _names_of(by_name)(text)],
        default=CANDIDATES,
        metavar="NAME,...",
        help=f"of {', '.join(by_name)}",
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help="default bench/results"
    )
    return parser


def _names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; nothing was written.")
