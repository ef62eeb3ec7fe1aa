"""FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, Response


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "hello"}


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=PlainTextResponse)
def greet(request: Request) -> str:
    """In a thread, as FastAPI has it for plain functions."""
    greeting: str = request.state.greeting
    return greeting


@app.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body())


@app.websocket("/talk")
async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
