"""asyncio's streams on uvloop's event loop."""

from __future__ import annotations

import uvloop

from .asyncio_streams import main

uvloop.run(main())
