"""Faults put into the engine on purpose: the test of the engine must find each of them.

1. A mutant is one change of one place in csrc, found by its pattern. A pattern that is not there
   exactly once is an error: the code has changed, and so must the mutant.
2. The engine as it is must pass with the very seeds that the mutants are to fail with.
3. The first five once survived the whole suite in Python. The others show that each rule of
   tests/engine/play.h can be broken: their comments say which.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What of the tree the build needs.
NEEDED = ("build_ffi.py", "csrc", "meson.build", "meson.options", "src", "tests/engine")
SEEDS = 400
#: Seconds: for which nothing may move in a play, and for all the plays of a mutant.
STALL = 4
LIMIT = 240


@dataclass(frozen=True)
class Mutant:
    name: str
    pattern: str
    replacement: str
    epoll: bool = False  # it is in what only that backend runs


MUTANTS = (
    Mutant(
        "lookup after a removal: the gap in the probe chain stays open",
        r"(\w+->table\[\w+\] = NULL;)(\s+do \{)",
        r"\1 return;\2",
    ),
    Mutant(
        "room for one SQE is enough where a deadline is linked",
        r"room < \((?:\w+->)?\w+ \? 2u : 1u\)",
        "room < 1u",
    ),
    Mutant(
        "requests by fd: links into the array that has grown are not mended",
        r"(\w+)\[(\w+)\]\.requests->fd_link = &\1\[\2\]\.requests;",
        ";",
    ),
    Mutant(
        "a link timeout that answered -EINVAL is not repeated",
        r"(result == -EALREADY) \|\| result == -EINVAL",
        r"\1",
    ),
    Mutant(
        "work is run however much of the pool is lent",  # rule 8
        r"\s&&\s+[\w>.-]+ <= [\w>.-]*buffers / 2",
        "",
    ),
    Mutant(
        "a cancellation that found nothing is not repeated",  # rule 1
        r"result == -ENOENT \|\| ",
        "",
    ),
    Mutant(
        "a send that ended short starts anew",  # rule 2
        r"(pending -= sent;\s+)skip\((\w+), sent\);",
        r"\1\2->len -= sent;",
    ),
    Mutant(
        "a lent buffer is never taken back",  # rule 3
        r"(->lent\[\w+->lent_len)\+\+(\] = )",
        r"\1\2",
    ),
    Mutant(
        "a descriptor is closed before its release",  # rule 4
        r"!\w+->u\.close\.released \|\| ",
        "",
    ),
    Mutant(
        "a descriptor is closed in use",  # rule 4
        r"others\((\w+), (\w+), false\)",
        r"others(\1, \2, true)",
    ),
    Mutant(
        "borrowed memory comes back when it is accepted",  # rule 5
        r"(->base = )(\w+) \? buf : (\w+->room)",
        r"\1\2 ? (free((void *)buf), buf) : \3",
    ),
    Mutant(
        "a deadline is not linked",  # rule 6
        r"\w+->flags \|= IOSQE_IO_LINK;",
        "",
    ),
    Mutant(
        "who arms with something there is not woken",  # rule 7
        r"(if \(error \|\| has_\w+\(r\)[^;]+\)\s+)return wake\(r\);",
        r"\1;",
    ),
    Mutant(
        "an outbox that is written to still counts as idle",  # rule 9
        r"\w+->(?:n|stats)\.idle--;(\s+rtl_queue\()",
        r"\1",
    ),
    Mutant(
        "a put that fails counts its bytes",  # rule 10
        r"(if \(!s\))(\s+return -ENOMEM;)",
        r"\1 req->u.out.pending += len; if (!s)\2",
    ),
    Mutant(
        "what was sent at once is sent again",
        r"skip\(\w+, \(unsigned int\)sent\);",
        "",
    ),
    Mutant(
        "a descriptor is watched for one direction only",
        r"watched \| req->awaits",
        "req->awaits",
        epoll=True,
    ),
    Mutant(
        "epoll goes on to watch a descriptor that nobody uses",
        r"control\(r, EPOLL_CTL_DEL, fd, 0\);",
        "",
        epoll=True,
    ),
    Mutant(
        "a deadline outlives its request",
        r"rtl_deadline_clear\(r, req\);(\s+rtl_complete)",
        r"\1",
        epoll=True,
    ),
    Mutant(
        "no timer wakes who sleeps when a deadline comes",
        r"setting\.it_value\.tv_sec = ns / RTL_NS_PER_SECOND;",
        "setting.it_value.tv_sec = INT_MAX;",
        epoll=True,
    ),
    Mutant(
        "a receive that was cancelled and has data goes on",
        r"if \(req->cancelling\)(\s+answer_result)",
        r"if (0)\1",
        epoll=True,
    ),
    Mutant(
        "a send that was not done at once starts anew",
        r"req->u\.buf\.done \+= [^;]+;",
        "",
        epoll=True,
    ),
    Mutant(
        "accept4() waits for ever for a connection that another process took",
        r"timer_settime\([^)]*\)",
        "0",
        epoll=True,
    ),
)


def tree(to: Path) -> None:
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name)
        else:
            shutil.copy(ROOT / name, to / name)


def meson(*args: str, cwd: Path) -> None:
    done = subprocess.run(["meson", *args], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"meson {args[0]}:\n{done.stdout}{done.stderr}")


def build(root: Path) -> None:
    meson("compile", "-C", "build", "engine-test", cwd=root)


def apply(mutant: Mutant, csrc: Path) -> tuple[Path, str]:
    """Change the one file that has the pattern; returns it and what it was."""
    found = [
        (path, text, match)
        for path in sorted(csrc.glob("*.c"))
        for text in [path.read_text()]
        for match in re.finditer(mutant.pattern, text)
    ]
    if len(found) != 1:
        places = ", ".join(path.name for path, _, _ in found) or "nowhere"
        sys.exit(
            f"mutant {mutant.name!r}: its pattern matches {len(found)} places ({places}) instead "
            f"of one: adapt it in {Path(__file__).name}\n    {mutant.pattern}"
        )
    path, text, match = found[0]
    path.write_text(text[: match.start()] + match.expand(mutant.replacement) + text[match.end() :])
    return path, text


def symptoms(output: str) -> Iterator[str]:
    for line in output.splitlines():
        if found := re.search(r"seed \d+: .*|runtime error: .*|\w+Sanitizer: [\w-]+", line):
            yield found[0]


def play(root: Path, *, epoll: bool) -> str | None:
    """Runs the test on one backend; returns what it found, or None."""
    command = [str(root / "build/tests/engine/engine-test"), "-n", str(SEEDS), "-t", str(STALL)]
    command += ["-e"] * epoll
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    if not done.returncode:
        return None
    return "; ".join(dict.fromkeys(symptoms(done.stderr))) or f"exit status {done.returncode}"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "tests").mkdir()
        tree(root)
        meson("setup", "-Dengine_tests=true", "-Db_sanitize=address,undefined", "build", cwd=root)
        build(root)
        for epoll in (False, True):
            if found := play(root, epoll=epoll):
                sys.exit(f"the engine as it is: {found}")
        survivors = 0
        for mutant in MUTANTS:
            path, original = apply(mutant, root / "csrc")
            build(root)
            found = play(root, epoll=mutant.epoll)
            path.write_text(original)
            survivors += not found
            print(f"{'killed' if found else 'SURVIVES'}: {mutant.name}\n    {found}", flush=True)
    if survivors:
        sys.exit(f"{survivors} of {len(MUTANTS)} mutants survive")
    print(f"all {len(MUTANTS)} mutants are killed within seeds 1 to {SEEDS}")


if __name__ == "__main__":
    main()
