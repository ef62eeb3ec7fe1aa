"""The layers of the package: an import points down, or sideways within its own layer, never up.

TYPE_CHECKING counts: a module that needs a type of a higher layer knows too much.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ringtls

PACKAGE = Path(ringtls.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"

#: From the bottom to the top. A folder stands for all that is in it.
LAYERS = (
    ("_clock", "_errors", "_log", "_outcome", "_statistics", "_task"),
    ("_engine",),
    ("_interfaces",),
    ("_transports", "_drivers"),
    ("_streams",),
    (
        "_accepting",
        "_as_trio",
        "_combinators",
        "_connecting",
        "_destruction",
        "_destructor",
        "_highlevel",
        "_ownership",
    ),
    ("_api", "__init__", "anyio", "blocking", "httpcore", "hypercorn"),
    ("_cli", "__main__", "_pytest_watch", "lint", "pytest_plugin"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


@cache
def modules() -> dict[str, Path]:
    """Every module by its name below ringtls, as "_engine.ring"."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(name: str, source: str) -> Iterator[str]:
    """The modules of ringtls that a module imports."""
    known = modules()
    parents = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        package = parents[: len(parents) - node.level + 1]
        module = [*package, *(node.module or "").split(".")] if node.module else package
        for alias in node.names:
            for candidate in (".".join([*module, alias.name]), ".".join(module)):
                if candidate in known:
                    yield candidate
                    break


@cache
def graph() -> dict[str, set[str]]:
    return {name: set(imports(name, path.read_text())) for name, path in modules().items()}


def layer_of(name: str) -> str:
    return name.partition(".")[0]


def arrows_up(arrows: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} -> {target}"
        for name, targets in arrows.items()
        for target in targets
        if HEIGHT[layer_of(target)] > HEIGHT[layer_of(name)]
    ]


def test_every_module_has_a_layer() -> None:
    assert {layer_of(name) for name in modules()} == set(HEIGHT)


def test_the_table_on_the_page() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## The layers\n")[2].partition("\nBelow")[0]
    rows = [set(re.findall(r"`(\w+)[/.\w]*`", row.split("|")[0])) for row in table.split("\n|")[3:]]
    assert rows == [set(layer) for layer in reversed(LAYERS)]


@pytest.mark.parametrize(
    "folder", ["_engine", "_drivers", "_transports", "_streams", "_cli.server"]
)
def test_a_folder_lists_its_modules(folder: str) -> None:
    page = importlib.import_module(f"ringtls.{folder}").__doc__ or ""
    listed = re.findall(r"\w+", page.partition("about:")[2])
    there = {name.removeprefix(f"{folder}.") for name in modules() if name.startswith(f"{folder}.")}
    assert there - {"__init__"} <= set(listed)


def test_no_arrow_runs_up() -> None:
    assert not arrows_up(graph())


def test_no_circle() -> None:
    TopologicalSorter(graph()).prepare()


def test_transports_and_drivers_do_not_know_each_other() -> None:
    for name, targets in graph().items():
        other = {"_transports": "_drivers", "_drivers": "_transports"}.get(layer_of(name))
        assert other not in {layer_of(target) for target in targets}, name


def test_only_the_engine_touches_the_extension() -> None:
    for name, path in modules().items():
        if layer_of(name) != "_engine":
            assert "_native" not in path.read_text(), name


def test_an_arrow_up_and_a_circle_are_seen() -> None:
    source = "if TYPE_CHECKING:\n    from .._streams.tls import TlsStream\n"
    arrows = {"_engine.ring": set(imports("_engine.ring", source))}
    assert arrows_up(arrows) == ["_engine.ring -> _streams.tls"]
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
