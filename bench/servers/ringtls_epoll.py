"""ringtls where there is no io_uring."""

from __future__ import annotations

import os

os.environ["RINGTLS_ENGINE"] = "epoll"

from . import ringtls  # noqa: F401  it serves when it is imported
