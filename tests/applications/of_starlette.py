"""Starlette."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "hello"}


async def greet(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.state.greeting)


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


routes = [Route("/", greet), Route("/echo", echo, methods=["POST"]), WebSocketRoute("/talk", talk)]
app = Starlette(routes=routes, lifespan=lifespan)
