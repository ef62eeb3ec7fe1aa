"""Values whose ends can be watched."""

from __future__ import annotations

import trio

from ringtls import AsyncDestructor


class Value(AsyncDestructor):
    """Notes when its end begins and when it is done, a while later. Holds what it is given."""

    def __init__(self, name: str, log: list[str], *parts: object) -> None:
        self.name = name
        self.log = log
        for number, part in enumerate(parts):
            setattr(self, f"part{number}", part)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    async def adestroy(self) -> None:
        self.log.append(f"begin {self.name}")
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        self.log.append(f"end {self.name}")


def whole(*names: str) -> list[str]:
    """The log of values that ended one after the other."""
    return [f"{what} {name}" for name in names for what in ("begin", "end")]
