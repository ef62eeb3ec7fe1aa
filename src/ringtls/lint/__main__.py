"""``python -m ringtls.lint PATH...``"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import Checker

#: The comment that silences a line, as flake8 reads it: for some codes, or without any for all.
NOQA = re.compile(r"# noqa(?::\s?(?P<codes>[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*))?", re.IGNORECASE)


def main(arguments: list[str] | None = None) -> int:
    """Print what is found; 1 if that is anything, 2 if a file could not be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m ringtls.lint",
        description="Finds ringtls streams and operations that get lost.",
        epilog="The comment '# noqa: RTL101' silences its line. The exit status is 1 if anything "
        "was found, and 2 if a file could not be read or parsed.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a file or directory")
    status = 0
    for path in _files(parser.parse_args(arguments).paths):
        try:
            findings = _check(path)
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            print(f"{path}: can't be checked: {error}", file=sys.stderr)
            status = 2
            continue
        for line, column, text in findings:
            print(f"{path}:{line}:{column + 1}: {text}")
            status = max(status, 1)
    return status


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and all Python files of the directories, but for hidden ones."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.rglob("*.py")):
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield file


def _check(path: Path) -> list[tuple[int, int, str]]:
    with tokenize.open(path) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of the module
        tree = ast.parse(source)
    lines = source.split("\n")
    return [
        (line, column, text)
        for line, column, text, _ in sorted(Checker(tree).run(), key=lambda found: found[:3])
        if not _is_silenced(lines[line - 1], text.partition(" ")[0])
    ]


def _is_silenced(line: str, code: str) -> bool:
    comment = NOQA.search(line)
    if comment is None:
        return False
    codes = comment["codes"]
    return codes is None or code.startswith(tuple(re.split(r"[,\s]+", codes)))


if __name__ == "__main__":
    sys.exit(main())
