"""The cffi face of csrc/: run by cffi-gen-src during the build (see meson.build)."""

import re
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).parent / "csrc" / "engine.h"


def declarations(header: str) -> str:
    """engine.h as cffi's parser wants it: no comments, no preprocessor lines."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    constants = re.findall(r"^#define (RTL_\w+) \(?-?\d+\)?$", header, flags=re.MULTILINE)
    header = re.sub(r"^#.*$", "", header, flags=re.MULTILINE)
    return header + "".join(f"#define {name} ...\n" for name in constants)


ffibuilder = FFI()
ffibuilder.cdef(declarations(HEADER.read_text(encoding="utf-8")))
ffibuilder.set_source("ringtls._engine._native", '#include "engine.h"')
