"""What a TLS terminator made of ringtls.relay costs, next to hitch: ``python bench/relay.py``.

The terminator runs on one core; nginx behind it and the load, wrk and curl, on the other. Printed
are user and system time of the terminator alone: us for a request, ms for a MB; and KiB for an idle
pair.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import trio

import ringtls
from ringtls._cli.certificates import make_certificate, server_context

TERMINATOR_CPU, LOAD_CPU = 0, 1
SECONDS = 3
MEGABYTES = 256
IDLE_PAIRS = 500
HOST = "127.0.0.1"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def terminate(port: int, backend: int, certificate: Path, key: Path) -> None:
    """The terminator under test: as little as possible beside the relay."""

    async def handle(client: ringtls.TlsStream) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((HOST, backend))
        sock.setblocking(True)
        await ringtls.relay(client, ringtls.SocketStream(sock))

    context = server_context(certificate, key)
    await ringtls.serve_tls_over_tcp(handle, port, context, host=HOST)


@contextmanager
def running(cpu: int, *arguments: str | Path) -> Iterator[int]:
    process = subprocess.Popen(
        ["taskset", "-c", str(cpu), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_for(port: int) -> None:
    for _ in range(200):
        with suppress(OSError):
            socket.create_connection((HOST, port)).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    ticks = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def memory(pid: int) -> int:
    """KiB that belong to the process and its children alone."""
    total = 0
    for each in family(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total


def load(*arguments: str) -> str:
    command = ["taskset", "-c", str(LOAD_CPU), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def keep_alive(url: str, pid: int, connections: int) -> float:
    before = cpu_seconds(pid)
    out = load("wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", url)
    used = cpu_seconds(pid) - before
    (requests,) = [int(line.split()[0]) for line in out.splitlines() if "requests in" in line]
    return used / requests * 1e6


def transfer(pid: int, *arguments: str) -> float:
    before = cpu_seconds(pid)
    load("curl", "-sSk", "--http1.1", "-o", "/dev/null", *arguments)
    return (cpu_seconds(pid) - before) / MEGABYTES * 1e3


def idle(port: int, pid: int, context: ssl.SSLContext) -> float:
    before = memory(pid)
    with ExitStack() as stack:
        for _ in range(IDLE_PAIRS):
            sock = stack.enter_context(context.wrap_socket(socket.create_connection((HOST, port))))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.recv(4096)
        return (memory(pid) - before) / IDLE_PAIRS


def nginx_configuration(directory: Path, port: int) -> Path:
    big = directory / "big"
    with big.open("wb") as file:
        file.truncate(MEGABYTES * 1_000_000)
    path = directory / "nginx.conf"
    path.write_text(f"""
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600;
  client_max_body_size 0; sendfile on;
  client_body_temp_path {directory}/body;
  server {{
    listen {HOST}:{port} backlog=4096;
    location /up {{ return 204; }}
    location /big {{ root {directory}; }}
    location / {{ return 200 "an answer of a few bytes, as APIs give"; }}
  }}
}}
""")
    return path


def commands(
    name: str, port: int, backend: int, certificate: Path, key: Path, both: Path
) -> list[str]:
    if name == "relay":
        addresses = [str(port), str(backend)]
        return [sys.executable, __file__, "--terminate", *addresses, str(certificate), str(key)]
    front, back = f"--frontend=[{HOST}]:{port}", f"--backend=[{HOST}]:{backend}"
    return ["hitch", front, back, "--workers=1", "--user=nobody", str(both)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terminate", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", default="ka64,down,up,idle")
    parser.add_argument("--only", default="relay,hitch")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.terminate:
        port, backend, certificate, key = arguments.terminate
        trio.run(terminate, int(port), int(backend), Path(certificate), Path(key))
        return
    directory = Path(tempfile.mkdtemp())
    try:
        measure(directory, arguments)
    finally:
        shutil.rmtree(directory)


def measure(directory: Path, arguments: argparse.Namespace) -> None:
    made = make_certificate(directory)
    pem = directory / "both.pem"
    pem.write_bytes(made.key.read_bytes() + made.certificate.read_bytes())
    pem.chmod(0o600)
    backend = free_port()
    context = ssl.create_default_context(cafile=str(made.ca))
    context.check_hostname = False
    with ExitStack() as stack:
        nginx = nginx_configuration(directory, backend)
        stack.enter_context(running(LOAD_CPU, "nginx", "-c", nginx))
        wait_for(backend)
        terminators: dict[str, tuple[int, int]] = {}
        for name in arguments.only.split(","):
            port = free_port()
            command = commands(name, port, backend, made.certificate, made.key, pem)
            terminators[name] = port, stack.enter_context(running(TERMINATOR_CPU, *command))
            wait_for(port)
        upload = ["--data-binary", f"@{directory}/big", "-H", "Expect:"]
        works: dict[str, Callable[[int, int], float]] = {
            "ka64": lambda port, pid: keep_alive(f"https://{HOST}:{port}/", pid, 64),
            "ka1": lambda port, pid: keep_alive(f"https://{HOST}:{port}/", pid, 1),
            "down": lambda port, pid: transfer(pid, f"https://{HOST}:{port}/big"),
            "up": lambda port, pid: transfer(pid, *upload, f"https://{HOST}:{port}/up"),
            "idle": lambda port, pid: idle(port, pid, context),
        }
        for work in arguments.works.split(","):
            rounds = [
                {name: works[work](*where) for name, where in terminators.items()}
                for _ in range(arguments.rounds)
            ]
            for name in terminators:
                figures = sorted(each[name] for each in rounds)
                rounded = " ".join(f"{figure:.2f}" for figure in figures)
                median = figures[len(figures) // 2]
                print(f"{work:6} {name:8} {median:8.2f}  ({rounded})", flush=True)


if __name__ == "__main__":
    main()
