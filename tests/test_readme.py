"""The examples of the README, of docs/ and of docstrings, as they stand but for host and port."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import runpy
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringtls._cli import COMMANDS
from ringtls._cli.certificates import make_certificate
from ringtls._cli.demo.proxy.peers import bound_socket
from ringtls.lint._tables import RULES

from .conftest import Contexts
from .newcomer import do_what_the_page_says
from .support.processes import in_child
from .support.waiting import LIMIT, wait_until

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DESTRUCTORS = ROOT / "docs" / "async-destructors.md"
MIGRATION = ROOT / "docs" / "differences-from-trio.md"
RELAYS = ROOT / "docs" / "relay.md"


def examples(document: Path) -> dict[str, str]:
    """The source of each example, by the name in its first line."""
    found = re.findall(r"```python\n(# (\S+)\n.*?)```", document.read_text(), re.DOTALL)
    return {name: source for source, name in found}


def example(name: str, port: int) -> str:
    return examples(README)[name].replace("8443", str(port))


@pytest.fixture
def directory(contexts: Contexts, tmp_path: Path) -> Path:
    """One that has the certificate of which the examples speak."""
    for source, name in (
        (contexts.ca, "ca.pem"),
        (contexts.certificate, "certificate.pem"),
        (contexts.key, "key.pem"),
    ):
        shutil.copy(source, tmp_path / name)
    return tmp_path


def test_every_example_is_run() -> None:
    run = {README: {"server.py", "client.py", "blocking_client.py"}}
    run[DESTRUCTORS] = set(examples(DESTRUCTORS))
    run[MIGRATION] = {"swapped.py"}  # by test_migration.py
    run[RELAYS] = {"terminator.py"}
    for document in (README, *ROOT.glob("docs/*.md")):
        assert set(examples(document)) == run.get(document, set())
        assert document.read_text().count("```python") == len(examples(document))


def test_the_certificates_of_the_examples_are_those_that_serve_makes(tmp_path: Path) -> None:
    named = set(re.findall(r'"(\w+\.pem)"', "".join(examples(README).values())))
    assert named == {path.name for path in vars(make_certificate(tmp_path)).values()}


def test_every_test_that_is_named_exists() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    pages = set(ROOT.glob("docs/*.md")) - {MIGRATION}  # which names trio's
    named = [re.findall(r"`(test_\w+)`", page.read_text()) for page in pages]
    assert len(set().union(*named)) > 20
    assert {name for name in set().union(*named) if f"def {name}(" not in tests} == set()


def test_every_file_that_is_named_exists() -> None:
    """Those of the source tree, by their path from the root or from the package."""
    folders = r"csrc|docs|script|tests|_\w+"
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = [re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()) for page in pages]
    assert len(set().union(*named)) > 20
    for name in set().union(*named):
        assert (ROOT / name).exists() or (ROOT / "src" / "ringtls" / name).exists(), name


def test_every_script_is_in_the_table() -> None:
    """But for those that are parts of others, which have a suffix."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for script in (ROOT / "script").iterdir():
        assert script.suffix or re.search(rf"^\| .*`script/{script.name}`", page, re.M), script


#: Options of ringtls itself, of scripts, of the lint and of other programs.
OF_OTHERS = {
    *("--candidates", "--format", "--long", "--only", "--quick", "--version"),
    *("--cap-drop", "--read-only", "--seccomp-default", "--security-opt", "--spec", "--strict"),
    *("--tmpfs", "--ulimit", "--user"),
}


def test_every_option_that_is_named_exists() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    for command in COMMANDS:
        importlib.import_module(f"ringtls._cli.{command}").add_parser(commands)
    options = {o for each in commands.choices.values() for o in each._option_string_actions}
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text()))
        assert named - options <= OF_OTHERS, page.name


def test_every_finding_of_the_lint_is_in_the_table() -> None:
    assert re.findall(r"^\| (RTL\d+) \|", README.read_text(), re.M) == sorted(RULES)


def test_every_name_in_the_architecture_exists() -> None:
    """In the code of the package or of the engine; of a dotted name every part."""
    page = re.sub(r"```.*?```", "", (ROOT / "docs" / "architecture.md").read_text(), flags=re.S)
    marked = " ".join(re.findall(r"`([^`\n]+)`", page))
    marked = re.sub(r"\S+\.(py|md)|test_\w+", "", marked)  # the tests above look for these
    names = set(re.findall(r"[A-Za-z_]\w+", marked))
    code = [*(ROOT / "src").rglob("*.py"), *(ROOT / "csrc").glob("*.[ch]")]
    words = set().union(*(re.findall(r"\w+", path.read_text()) for path in code))
    assert len(names) > 60
    assert names - words == set()


def test_every_link_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for link in re.findall(r"\]\(([^):#]+)[^):]*\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", sorted(examples(DESTRUCTORS).keys() - {"common.py"}))
def test_async_destructors(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = examples(DESTRUCTORS)
    for each in ("common.py", name):
        (directory / each).write_text(sources[each])
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)
    in_child(lambda: runpy.run_path(name, run_name="__main__"))


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that makes its listener itself."""
    with bound_socket() as bound:
        yield bound.getsockname()[1]


@contextmanager
def running(source: str, directory: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A server, as soon as it listens."""
    command = [sys.executable, "-u", "-c", source]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as server:
        try:
            wait_until(lambda: listens(port))
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=LIMIT)


def test_server_and_clients(directory: Path, port: int) -> None:
    with running(example("server.py", port), directory, port):
        outputs = [
            subprocess.run(
                [sys.executable, "-c", example(client, port)],
                cwd=directory,
                capture_output=True,
                timeout=LIMIT,
                check=True,
            ).stdout.decode()
            for client in ("client.py", "blocking_client.py")
        ]
    assert outputs == ["b'hello'\nCloseOutcome.CLEAN\n"] * 2


def test_the_terminator(contexts: Contexts, directory: Path, port: int) -> None:
    """It passes on an end as an end, and resets a client for which there is no backend."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        backend.settimeout(LIMIT)
        ports = {"8443": str(port), "8080": str(backend.getsockname()[1])}
        source = re.sub(
            "8443|8080", lambda match: ports[match[0]], examples(RELAYS)["terminator.py"]
        )
        with running(source, directory, port) as server:
            assert server.stdout is not None
            backend.accept()[0].close()  # of who asked whether it listens
            server.stdout.readline()
            with (
                contexts.client.wrap_socket(
                    socket.create_connection(("localhost", port), LIMIT),
                    server_hostname="localhost",
                    suppress_ragged_eofs=False,
                ) as client,
                backend.accept()[0] as theirs,
            ):
                theirs.sendall(b"answer")
                theirs.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b"answer"
                assert client.recv(100) == b""
                client.unwrap()
                assert theirs.recv(100) == b""
            assert server.stdout.readline() == "RelayEnd.ORDERLY RelayEnd.ORDERLY\n"
            backend.close()
            with (
                pytest.raises(ConnectionResetError),
                socket.create_connection(("localhost", port), LIMIT) as vain,
            ):
                vain.recv(1)


IN_ASYNC = "async def main():\n{example}\n"

#: What the example of a module's docstring leaves out.
AROUND = {
    "ringtls.anyio": "import anyio, ringtls.anyio\nfrom anyio.streams.tls import TLSAttribute\n"
    + IN_ASYNC
    + "anyio.run(main, backend='trio')",
    "ringtls.blocking": "import ringtls.blocking\nif True:\n{example}",
    "ringtls.httpcore": "import httpx, ringtls.httpcore, trio\n"
    + IN_ASYNC
    + "    print(response.text)\ntrio.run(main)",
}


@pytest.mark.parametrize("module", sorted(AROUND))
def test_the_example_of_a_docstring(contexts: Contexts, directory: Path, module: str) -> None:
    document = importlib.import_module(module).__doc__ or ""
    found = re.search(r"\n\n((?:    .*\n)+)\n", document)
    assert found is not None
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor() as executor,
    ):
        listener.settimeout(LIMIT)
        serving = executor.submit(answer_once, listener, contexts.server)
        port = str(listener.getsockname()[1])
        example = found[1].replace("https://example.org", f"https://localhost:{port}")
        example = re.sub(r"\b443\b", port, example.replace("example.org", "localhost"))
        shown = subprocess.run(
            [sys.executable, "-c", AROUND[module].format(example=example)],
            env={**os.environ, "SSL_CERT_FILE": str(directory / "ca.pem")},
            capture_output=True,
            timeout=LIMIT,
        )
        assert b"welcome" in shown.stdout, shown.stderr
        assert serving.result(LIMIT) == b""  # close_notify, and nothing else


def answer_once(listener: socket.socket, context: ssl.SSLContext) -> bytes:
    """Whatever a client says, welcome it; returns what it says then."""
    with context.wrap_socket(
        listener.accept()[0], server_side=True, suppress_ragged_eofs=False
    ) as client:
        client.settimeout(LIMIT)
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome")
        return client.recv(4096)


def test_what_the_page_of_frameworks_says() -> None:
    """In one environment; script/wheel has one for each extra."""
    do_what_the_page_says(*[Path(sys.prefix)] * 3)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port)).close()
    except ConnectionRefusedError:
        return False
    return True
