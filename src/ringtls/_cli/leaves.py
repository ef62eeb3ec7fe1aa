"""What is in exception groups: one failure that several tasks meet comes as one for each."""

from __future__ import annotations

__all__ = ["leaves"]


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group and its groups, in order; of another exception itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]
