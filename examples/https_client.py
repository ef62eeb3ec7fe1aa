"""An HTTPS client: httpx, with HTTP/2, on ringtls.

python examples/https_client.py https://www.example.org
"""

from __future__ import annotations

import ssl
import sys

import httpx
import trio

import ringtls.httpcore


async def main(url: str) -> None:
    transport = ringtls.httpcore.transport(verify=ssl.create_default_context(), http2=True)
    async with httpx.AsyncClient(transport=transport) as client:
        response = await client.get(url)
        print(response.http_version, response.status_code)
        print(response.text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
