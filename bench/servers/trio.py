"""trio.SSLStream, with the handler that ringtls has too."""

from __future__ import annotations

import trio

from .streams import serve

trio.run(serve, trio.serve_ssl_over_tcp)
