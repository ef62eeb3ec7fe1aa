"""ringtls, with the handler that trio.SSLStream has too."""

from __future__ import annotations

import trio

import ringtls

from .streams import serve

trio.run(serve, ringtls.serve_tls_over_tcp)
