"""The one error of a server that can't start."""

from __future__ import annotations

__all__ = ["StartError"]


class StartError(OSError):
    """The server can't start; the text says why, in one line."""
