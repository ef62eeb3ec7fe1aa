"""The snippets and the table of docs/deployment.md, as far as any machine can check them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ringtls._cli.asgi.service import ApplicationService
from ringtls._cli.proxy.access import Accounts
from ringtls._cli.serve.connection import FileService
from ringtls._cli.serve.files import Policy
from ringtls._cli.server.figures import Figures
from ringtls._cli.server.metrics import Metrics

from .container.seccomp_profile import IO_URING

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "deployment.md").read_text()

#: The program of the service.
PROGRAM = "/opt/ringtls/bin/ringtls"


def snippets(language: str) -> dict[str, str]:
    """The code blocks that start with a file name, by that name."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", DOCUMENT, re.DOTALL)
    return {Path(path).name: text for path, text in found}


def test_the_profile_is_derived_by_a_script_that_is_there() -> None:
    [script] = re.findall(r"^python3 (\S+)", DOCUMENT, re.MULTILINE)
    assert (ROOT / script).is_file()


def test_the_units_are_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze: install the package systemd")
    units = {name: text for name, text in snippets("ini").items() if name.startswith("ringtls.")}
    assert units.keys() == {"ringtls.socket", "ringtls.service"}
    for name, text in units.items():
        (tmp_path / name).write_text(text.replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in units)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ringtls" not in done.stderr  # a warning about these units


def test_the_service_allows_io_uring() -> None:
    service = snippets("ini")["ringtls.service"]
    allowed = " ".join(re.findall(r"^SystemCallFilter=(.*)", service, re.MULTILINE)).split()
    assert set(IO_URING) < set(allowed)


def commands() -> dict[str, list[str]]:
    """The arguments of ringtls in each snippet that runs it."""
    [line] = re.findall(rf"^ExecStart={PROGRAM} (.*)", snippets("ini")["ringtls.service"], re.M)
    yaml = snippets("yaml")
    [words] = re.findall(r"command:\n((?: +- .*\n)+)", yaml["compose.yaml"])
    [listed] = re.findall(r"args: \[(.*)\]", yaml["pod.yaml"])
    found = {
        "ringtls.service": ["ringtls", *line.split()],
        "compose.yaml": re.findall(r"- (.*)", words),
        "pod.yaml": [word.strip('"') for word in listed.split(", ")],
    }
    assert all(words[0] == "ringtls" for words in found.values())
    return {name: words[1:] for name, words in found.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", commands())
def test_the_command_is_understood(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ringtls", *commands()[name]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr  # not 2: only what it names is missing here
    assert "chain.pem" in done.stderr or "tls.crt" in done.stderr


def labels(add_metrics: Callable[[Metrics], object]) -> dict[str, list[str]]:
    """Those of the figures that it adds, by the figures' names."""
    metrics = Metrics()
    add_metrics(metrics)
    return {
        family.name + ("" if family.is_gauge else "_total"): list(family.labels)
        for family in metrics.families
    }


def test_the_figures() -> None:
    rows = re.findall(r"^\| (`ringtls_.*?) \|(.*?)\|(.*?)\|", DOCUMENT, re.MULTILINE)
    found: dict[str, dict[str, list[str]]] = {}
    for names, of_them, commands in rows:
        for command in quoted(commands) or ["all"]:
            for name in quoted(names):
                found.setdefault(command, {})[name] = quoted(of_them)
    assert found == {
        "all": labels(partial(Figures, ciphers=())),
        "serve": labels(FileService(Path(), Policy()).add_metrics),
        "asgi": labels(ApplicationService("module", "app").add_metrics),
        "proxy": labels(partial(Accounts().add_metrics, backends=())),
    }


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(.*?)`", cell)
