"""What is built and installed: which files, with which notices, and what a build says it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import mesonpy
import pytest
from wheel.wheelfile import WheelFile

import build_backend

from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src/ringtls"


def test_no_package_brings_its_bytecode() -> None:
    """Of a tree that is in use: meson installs all files that are there."""
    text = (ROOT / "meson.build").read_text(encoding="utf-8")
    [listed] = re.findall(r"exclude_directories: \[(.*?)\]", text, re.DOTALL)
    packages = {path.parent.relative_to(SOURCES) for path in SOURCES.rglob("*.py")}
    assert sorted(re.findall(r"'(.*?)'", listed)) == sorted(
        str(package / "__pycache__") for package in packages
    )


def test_the_notice_of_liburing_is_installed() -> None:
    """Wheels have it in them, and its licence wants that."""
    files = importlib.metadata.files("ringtls") or []
    [notice] = [file for file in files if file.match("licenses/LICENSES/liburing.txt")]
    text = notice.read_text(encoding="utf-8")
    assert text.startswith("Copyright 2020 Jens Axboe\n\nPermission is hereby granted")
    assert text == (ROOT / "LICENSES/liburing.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("built", "tagged"),
    [("cp315-abi3", "cp311-abi3"), ("cp315-abi3.abi3t", "cp315-abi3.abi3t")],
    ids=["with the GIL", "without"],
)
def test_a_wheel_is_for_the_first_python_whichever_has_built_it(
    built: str, tagged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(directory: str, *_: object) -> str:
        name = f"ringtls-1.0-{built}-linux_x86_64.whl"
        with WheelFile(Path(directory, name), "w") as wheel:
            wheel.writestr("ringtls-1.0.dist-info/WHEEL", f"Tag: {built}-linux_x86_64\n")
        return name

    monkeypatch.setattr(mesonpy, "build_wheel", build)
    name = build_backend.build_wheel(str(tmp_path))
    assert os.listdir(tmp_path) == [name] == [f"ringtls-1.0-{tagged}-linux_x86_64.whl"]
    text = zipfile.ZipFile(tmp_path / name).read("ringtls-1.0.dist-info/WHEEL").decode()
    assert text.split() == ["Tag:", f"{tagged}-linux_x86_64"]


def test_the_first_python_is_the_same_everywhere() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    first = pyproject["project"]["requires-python"].removeprefix(">=")
    assert first == f"{build_backend.FIRST[2]}.{build_backend.FIRST[3:]}"
    assert f"limited_api: '{first}'," in (ROOT / "meson.build").read_text(encoding="utf-8")


TOOLS = ("ar", "as", "gcc", "ld", "ninja", "pkg-config")

has_tools = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in (*TOOLS, "meson")), reason="nothing is built here"
)


def said_by(*command: str | Path, path: Path) -> str:
    """What a build says that lacks something, with the programs that are in a directory."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"CC": "gcc", "PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout + done.stderr


def programs(path: Path, *names: str) -> Path:
    """A directory with these."""
    path.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (path / name).symlink_to(found)
    return path


def meson_setup(build: Path) -> list[str | Path]:
    return [sys.executable, str(shutil.which("meson")), "setup", build]


@pytest.mark.long
@has_tools
def test_a_build_without_pkg_config_says_so(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *set(TOOLS) - {"pkg-config"})
    said = said_by(*meson_setup(tmp_path / "build"), path=path)
    assert "pkg-config was not found: install the package pkg-config" in said


@has_tools
def test_a_build_without_liburing_says_so(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", *set(TOOLS) - {"pkg-config"})
    (path / "pkg-config").symlink_to("/bin/false")
    said = said_by(*meson_setup(tmp_path / "build"), path=path)
    assert "liburing 2.3 or newer was not found: install the package liburing-dev" in said


@pytest.mark.long
@has_tools
def test_a_build_without_the_headers_of_python_says_so(tmp_path: Path) -> None:
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    hide = 'mount -t tmpfs none "$0"'
    headers = sysconfig.get_path("include")
    if subprocess.run([*unshare, hide, headers], capture_output=True).returncode:
        pytest.skip("nothing can be hidden here")
    path = programs(tmp_path / "bin", *TOOLS, "mount", "sh", "unshare")
    command = [*unshare, f'{hide} && exec "$@"', headers, *meson_setup(tmp_path / "build")]
    said = said_by(*command, path=path)
    assert "Python.h was not found: install the package python3-dev" in said


#: What is of the system, and of no C library, where Debian has it.
HEADERS = [
    Path("/usr/include", os.uname().machine + "-linux-gnu", "asm"),
    *(Path("/usr/include", name) for name in ("asm-generic", "linux", "liburing", "liburing.h")),
]


@pytest.mark.skipif(
    not shutil.which("musl-gcc") or not all(path.exists() for path in HEADERS),
    reason="nothing is compiled with musl here",
)
def test_the_engine_compiles_with_musl(tmp_path: Path) -> None:
    for path in HEADERS:
        (tmp_path / path.name).symlink_to(path)
    options = ["-fsyntax-only", "-std=gnu11", "-D_GNU_SOURCE", "-isystem", str(tmp_path)]
    sources = [str(path) for path in (ROOT / "csrc").glob("*.c")]
    subprocess.run(["musl-gcc", *options, *sources], check=True, timeout=LIMIT)


@pytest.mark.skipif(not shutil.which("busybox"), reason="there is no BusyBox")
def test_liburing_is_built_with_the_programs_of_busybox(tmp_path: Path) -> None:
    """The image in which wheels for musl are built has these. Here they see another archive."""
    (tmp_path / "archive").touch()
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("dirname", "mktemp", "rm", "sh", "sha256sum"):
        (path / name).symlink_to(str(shutil.which("busybox")))
    build = (path / "sh", "script/build-liburing", tmp_path / "prefix", tmp_path / "archive")
    assert "1 of 1 computed checksums did NOT match" in said_by(*build, path=path)
