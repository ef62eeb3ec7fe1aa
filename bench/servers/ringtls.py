"""ringtls, with the handler that trio.SSLStream has too."""

from __future__ import annotations

import os

import trio

import ringtls

from .streams import serve

os.environ.setdefault("RINGTLS_ENGINE", "io_uring")
trio.run(serve, ringtls.serve_tls_over_tcp)
