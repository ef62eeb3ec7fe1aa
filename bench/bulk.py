"""Big transfers, one after another on one connection."""

from __future__ import annotations

import os

from .client import ask, client_context
from .load import LoadError, curl
from .server import HOST, Server
from .servers.http import BULK_SIZE
from .settings import Figures, Settings

__all__ = ["download", "upload"]

#: Transfers of BULK_SIZE for each second of the settings.
TRANSFERS_PER_SECOND = 4

MEGABYTE = 1e6


def download(server: Server, settings: Settings) -> Figures:
    return _transfer(server, settings, "/bulk", "size_download")


def upload(server: Server, settings: Settings) -> Figures:
    file = server.directory / "upload"
    file.touch()
    os.truncate(file, BULK_SIZE)
    options = ["--header", "Expect:", "--upload-file", str(file)]
    return _transfer(server, settings, "/upload", "size_upload", *options)


def _transfer(server: Server, settings: Settings, path: str, size: str, *options: str) -> Figures:
    transfers = max(1, round(TRANSFERS_PER_SECOND * settings.seconds))
    ask(server, client_context(server))  # so all of the server is there
    url = f"https://{HOST}:{server.port}{path}?[1-{transfers}]"
    before = server.snapshot()
    sizes = curl(server, *options, url, write_out=f"%{{{size}}}")
    after = server.snapshot()
    if sizes != [str(BULK_SIZE)] * transfers:
        raise LoadError(f"{transfers} times {BULK_SIZE} bytes were wanted; curl says {sizes}")
    megabytes = transfers * BULK_SIZE / MEGABYTE
    return {
        "cpu_per_megabyte": (after.cpu - before.cpu) / megabytes,
        "megabytes_per_second": megabytes / (after.time - before.time),
    }
