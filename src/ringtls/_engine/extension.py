"""The extension module that csrc/ is built into: what uses it has it from here."""

from __future__ import annotations

from typing import Any

from .availability import not_loaded

try:
    from . import _native
except ImportError as error:
    raise not_loaded(error) from None

__all__ = ["ffi", "lib"]

ffi: Any = _native.ffi
lib: Any = _native.lib
