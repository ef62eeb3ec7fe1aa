"""The scripts, where the shell that calls them is set up unlike ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def scripts() -> list[Path]:
    """Those that go to their tree; script/*.sh is for them."""
    found = {path for path in (ROOT / "script").iterdir() if not path.suffix}
    found.remove(ROOT / "script/build-liburing")  # it stays where it is called
    return [*sorted(found), ROOT / ".ci/run", ROOT / "bench/run"]


def call(directory: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call a script there, with its output and its complaints as one text."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_cdpath(path: Path, tmp_path: Path) -> None:
    """Where a script goes to is its own tree, not one that CDPATH has."""
    lines = path.read_text().splitlines()
    beginning = lines[: lines.index('cd -- "$(dirname -- "$0")/.."') + 1]
    named = f"{path.parent.name}/{path.name}"
    copy = tmp_path / "own" / named
    copy.parent.mkdir(parents=True)
    copy.write_text("\n".join([*beginning, "pwd"]))
    (tmp_path / "other" / path.parent.name).mkdir(parents=True)
    said = call(tmp_path / "own", "sh", named, CDPATH=str(tmp_path / "other"))
    assert said.stdout == f"{tmp_path / 'own'}\n"


def test_setup_touches_no_other_tree(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "build").mkdir()
    shutil.copy(ROOT / "script/setup", tmp_path / "script")
    said = call(tmp_path, "script/setup")
    assert said.returncode == 1
    assert said.stdout == f"{tmp_path} is not the source tree of ringtls\n"
    assert (tmp_path / "build").is_dir()


@pytest.mark.long  # it makes a virtual environment
def test_setup_keeps_what_there_was_until_there_is_better(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    for name in ("setup", "signals.sh"):
        shutil.copy(ROOT / "script" / name, tmp_path / "script")
    for name in ("pyproject.toml", "meson.build"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".venv", "build"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    said = call(tmp_path, "script/setup", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert said.returncode == 1
    assert "No matching distribution found for meson-python" in said.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".venv", "build", "meson.build", "pyproject.toml", "script"),
    }
    assert os.listdir(tmp_path / ".venv") == os.listdir(tmp_path / "build") == ["old"]


@pytest.mark.parametrize(
    "arguments",
    [["test-container", "-?"], ["test-debian"], ["test-kernel"]],
    ids=lambda each: each[0],
)
def test_usage_from_elsewhere(arguments: list[str]) -> None:
    name, *rest = arguments
    said = call(ROOT / "docs", f"../script/{name}", *rest)
    assert said.returncode == 2
    assert f"\n  script/{name} " in said.stdout


#: A signal ends it, or nothing does. Each signal then comes amid the undoing, to a program, too.
ENDING = """
. script/elsewhere.sh
clean_up() {
    for name in HUP INT TERM; do
        kill -s $name $$
        sh -c 'kill -s "$0" $$; echo "$0"' $name
    done
}
echo "$work"
[ "$1" = none ] || kill -s "$1" $$
exit 3
"""


@pytest.mark.parametrize(
    ("name", "status"), [("none", 3), ("HUP", 129), ("INT", 130), ("TERM", 143)]
)
def test_what_is_undone_at_the_end_is_undone_whole(name: str, status: int) -> None:
    said = call(ROOT, "env", "--default-signal=HUP,INT,TERM", "sh", "-euc", ENDING, "-", name)
    work, *survived = said.stdout.splitlines()
    assert said.returncode == status
    assert survived == ["HUP", "INT", "TERM"]
    assert not Path(work).exists()


def test_a_wheel_is_made_in_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    shutil.copy(ROOT / "script/wheel", tmp_path / "script")
    said = call(tmp_path, "script/wheel")
    assert said.returncode == 1
    assert said.stdout == "script/wheel: it needs a checkout by git\n"
