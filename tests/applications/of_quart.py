"""Quart, on trio."""

from __future__ import annotations

from quart import request, websocket
from quart_trio import QuartTrio

app = QuartTrio(__name__)
greetings: list[str] = []


@app.before_serving
async def start() -> None:
    greetings.append("hello")


@app.get("/")
async def greet() -> str:
    return greetings[0]


@app.post("/echo")
async def echo() -> bytes:
    data = await request.get_data()
    assert isinstance(data, bytes)
    return data


@app.websocket("/talk")
async def talk() -> None:
    while True:
        await websocket.send(await websocket.receive())
