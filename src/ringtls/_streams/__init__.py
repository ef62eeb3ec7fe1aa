"""Streams: TLS as a function of bytes, how a connection ends, and what the user holds."""
