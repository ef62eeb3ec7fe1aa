"""What owns a connection can't be copied."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Uncopyable"]


class Uncopyable:
    """Has copy.copy(), copy.deepcopy() and pickle raise TypeError."""

    __slots__ = ()

    def __getstate__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"can't copy or pickle a {name}: the end of the copy would be the end of what the "
            f"original owns; pass the {name} itself on"
        )
