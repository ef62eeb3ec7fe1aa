"""Opens what a ring is made of: an io_uring of the largest size that memory allows, or epoll."""

from __future__ import annotations

import errno
from typing import Any

from .._errors import RingUnavailableError
from .availability import unavailable
from .choice import Engine, announce, may_be_replaced
from .extension import lib as _lib

__all__ = ["CQ_ENTRIES", "SMALLEST_RING", "open_engine"]

CQ_ENTRIES = 4096
SMALLEST_RING = 32


def open_engine(
    out: Any,
    wanted: Engine | None,
    wakeup_fd: int,
    sq_entries: int,
    buffers: int,
    buffer_size: int,
    cooperative: bool,
) -> Engine:
    """Open one into ``out``, a ``struct rtl_ring **``."""
    reason = "it was asked for"
    if wanted is not Engine.EPOLL:
        try:
            _open_io_uring(out, wakeup_fd, sq_entries, buffers, buffer_size, cooperative)
            return Engine.IO_URING
        except RingUnavailableError as error:
            if wanted is Engine.IO_URING or not may_be_replaced(error):
                raise
            reason = str(error.strerror)
    result = _lib.rtl_open(out, wakeup_fd, 2, 2, buffers, buffer_size, _lib.RTL_EPOLL)
    if result < 0:
        raise unavailable(-result, Engine.EPOLL)
    announce(reason)
    return Engine.EPOLL


def _open_io_uring(
    out: Any, wakeup_fd: int, sq_entries: int, buffers: int, buffer_size: int, cooperative: bool
) -> None:
    """A ring of the usual size, or a smaller one where memory is short."""
    work = _lib.RTL_COOPERATIVE if cooperative else _lib.RTL_DEFERRED
    cq_entries = min(4 * sq_entries, CQ_ENTRIES)
    while True:
        result = _lib.rtl_open(out, wakeup_fd, sq_entries, cq_entries, buffers, buffer_size, work)
        if result == 0:
            return
        if result != -errno.ENOMEM or sq_entries <= SMALLEST_RING:
            raise unavailable(-result, Engine.IO_URING)
        sq_entries //= 2
        cq_entries //= 2
