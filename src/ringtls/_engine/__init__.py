"""Completion I/O: requests, the ring that owns them, handles. Knows no TLS and no event loop."""
