"""A WSGI application on Flask."""

from __future__ import annotations

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "hello"


@app.post("/echo")
def echo() -> bytes:
    print(f"{len(request.data)} bytes", flush=True)
    return request.data


@app.get("/fail")
def fail() -> str:
    raise ValueError("this application has a fault")
