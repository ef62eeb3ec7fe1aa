"""meson-python, but for one thing: a wheel's tag names the first Python that it is for (PEP 425).

The extension is compiled for the limited API of that version, with the headers of whichever Python
builds it, and that is what meson-python's tag names. script/wheel has abi3audit look whether the
extension keeps to the older version. Without the GIL there is another ABI: the tag stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import mesonpy
from mesonpy import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

FIRST = "cp311"


def build_wheel(
    wheel_directory: str,
    config_settings: dict[Any, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    name: str = mesonpy.build_wheel(wheel_directory, config_settings, metadata_directory)
    if "-abi3-" not in name:
        return name
    tags = [sys.executable, "-m", "wheel", "tags", "--remove", "--python-tag", FIRST]
    return subprocess.check_output([*tags, name], cwd=wheel_directory, text=True).strip()
