"""ringtls, with the handler that trio.SSLStream has too."""

from __future__ import annotations

from functools import partial

import trio

import ringtls

from .start import BACKLOG, HOST, announce, set_up
from .streams import handle


async def main() -> None:
    setup = set_up()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(
                ringtls.serve_tls_over_tcp,
                partial(handle, setup.counters),
                0,
                setup.context,
                host=HOST,
                backlog=BACKLOG,
            )
        )
        announce(listener.transport_listener.socket.getsockname()[1])


trio.run(main)
