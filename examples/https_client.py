"""An HTTPS client: httpx, with HTTP/2, on ringtls.

python examples/https_client.py URL
"""

from __future__ import annotations

import argparse
import ssl

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
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    trio.run(main, parser.parse_args().url)
