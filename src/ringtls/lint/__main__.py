"""``python -m ringtls.lint PATH...``"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import signal
import stat
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import Checker

#: The comment that silences a line, as flake8 reads it: for some codes, or without any for all.
NOQA = re.compile(r"# noqa(?::\s?(?P<codes>[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*))?", re.IGNORECASE)

#: The line that silences its whole file, there and here.
NOQA_FILE = re.compile(r"^\s*# flake8[:=]\s*noqa", re.IGNORECASE | re.MULTILINE)


class Finding(NamedTuple):
    """A place in a program, the code of the check, and what it says."""

    filename: str
    row: int
    column: int
    code: str
    message: str


def _as_text(findings: list[Finding]) -> str:
    return "".join(
        f"{filename}:{row}:{column}: {code} {message}\n"
        for filename, row, column, code, message in findings
    )


def _as_github(findings: list[Finding]) -> str:
    """Workflow commands: docs.github.com, "Workflow commands for GitHub Actions"."""
    return "".join(
        f"::error title={code},file={_property(filename)},line={row},col={column}"
        f"::{_escaped(f'{filename}:{row}:{column}: {code} {message}')}\n"
        for filename, row, column, code, message in findings
    )


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _as_json(findings: list[Finding]) -> str:
    """The members that they share with ruff's."""
    described = [
        {
            "code": code,
            "filename": filename,
            "location": {"row": row, "column": column},
            "message": message,
        }
        for filename, row, column, code, message in findings
    ]
    return json.dumps(described, indent=2) + "\n"


FORMATS = {"text": _as_text, "github": _as_github, "json": _as_json}


def main(arguments: list[str] | None = None) -> int:
    """Print what is found; 1 if that is anything, 2 if a file could not be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m ringtls.lint",
        description="Finds ringtls streams and operations that get lost.",
        epilog="The comment '# noqa: RTL101' silences its line, '# flake8: noqa' its file. The "
        "exit status is 1 if anything was found, and 2 if a file could not be read or parsed.",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="text, for people; github, for annotations of a workflow's run; json, one array",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a file or directory")
    options = parser.parse_args(arguments)
    findings: list[Finding] = []
    failed = False
    for path in _files(options.paths):
        try:
            findings += _check(path)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # The parser raises a bare MemoryError for what is nested too deeply.
            print(f"{path}: can't be checked: {str(error) or 'too complex'}", file=sys.stderr)
            failed = True
    sys.stdout.write(FORMATS[options.format](findings))
    return 2 if failed else int(bool(findings))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and all Python files of the directories, but for hidden ones.

    What is named is read whatever it is; in a directory FIFOs, say, are passed over.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.rglob("*.py")):
            is_hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if not is_hidden and _may_be_a_file(file):
                yield file


def _may_be_a_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # and who reads it says what is wrong


def _check(path: Path) -> list[Finding]:
    with tokenize.open(path) as file:
        source = file.read()
    if NOQA_FILE.search(source):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler thinks of the module
        tree = ast.parse(source)
    lines = source.split("\n")
    found = sorted(Checker(tree).run(), key=lambda each: each[:3])
    findings = [
        Finding(str(path), line, column + 1, *text.split(" ", 1)) for line, column, text, _ in found
    ]
    return [each for each in findings if not _is_silenced(lines[each.row - 1], each.code)]


def _is_silenced(line: str, code: str) -> bool:
    comment = NOQA.search(line)
    if comment is None:
        return False
    codes = comment["codes"]
    return codes is None or code.startswith(tuple(re.split(r"[,\s]+", codes)))


if __name__ == "__main__":
    # There is nothing to clean up: these end it as they end other programs, without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    sys.exit(main())
