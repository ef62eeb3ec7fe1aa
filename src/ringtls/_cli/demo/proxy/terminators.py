"""TLS terminators that can be compared: each configured to do no more than is asked of all.

Every one runs in the foreground, with one process or worker, on a port of loopback, before a plain
backend.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..interruptions import interruptions_held
from .peers import HOST

__all__ = ["CRASHES", "OWN", "TERMINATORS", "Setting", "Terminator", "TerminatorError", "running"]

#: Seconds within which one is to start, and to end.
PATIENCE = 60.0

#: Signals that a process brings on itself.
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})


class TerminatorError(Exception):
    """A terminator does not start, or has crashed; the text says why."""


@dataclass(frozen=True)
class Setting:
    """What a terminator is to do.

    Attributes:
      directory: for its files.
      certificate, key: in PEM form; ``both`` has both.
      descriptors: how many it may have at once.
    """

    directory: Path
    certificate: Path
    key: Path
    both: Path
    port: int
    backend_port: int
    descriptors: int = 8192


@dataclass(frozen=True)
class Terminator:
    """One of them.

    Attributes:
      program: its name in PATH.
      package: Debian's, that has it.
      command: writes its configuration, and says how it is run.
    """

    name: str
    program: str
    package: str
    command: Callable[[Setting], list[str]]

    @property
    def is_installed(self) -> bool:
        return shutil.which(self.program) is not None and (
            self.program != "nginx" or _stream_module() is not None
        )


def _ringtls(setting: Setting) -> list[str]:
    command = [sys.executable, "-m", "ringtls", "proxy", "--bind", f"{HOST}:{setting.port}"]
    command += ["--certfile", str(setting.certificate), "--keyfile", str(setting.key)]
    return [*command, "--backend", f"{HOST}:{setting.backend_port}"]


_NGINX = """
{load_module}
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr emerg;
events {{ worker_connections {descriptors}; }}
stream {{
    server {{
        listen {host}:{port} ssl backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        proxy_pass {host}:{backend_port};
    }}
}}
"""


def _nginx(setting: Setting) -> list[str]:
    path = setting.directory / "nginx.conf"
    path.write_text(
        _NGINX.format(load_module=_stream_module(), host=HOST, **vars(setting)), encoding="utf-8"
    )
    return ["nginx", "-e", "stderr", "-p", str(setting.directory), "-c", str(path)]


def _stream_module() -> str | None:
    """The line that loads nginx' module for streams, if it needs one; None if there is no such."""
    done = subprocess.run(["nginx", "-V"], capture_output=True, text=True)
    options = done.stderr
    if "--with-stream=dynamic" in options:
        match = re.search(r"--modules-path=(\S+)", options)
        path = Path(match[1] if match else "modules") / "ngx_stream_module.so"
        return f"load_module {path};" if path.exists() else None
    return "" if "--with-stream" in options else None


_HAPROXY = """
global
    maxconn {connections}
defaults
    mode tcp
    retries 0
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind {host}:{port} ssl crt {both} backlog 4096
    server backend {host}:{backend_port}
"""


#: What haproxy has besides those of connections, and some more.
_OTHER_DESCRIPTORS = 100


def _haproxy(setting: Setting) -> list[str]:
    path = setting.directory / "haproxy.cfg"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # it does not start where it gets fewer
    connections = min(setting.descriptors, most - _OTHER_DESCRIPTORS) // 2
    configuration = _HAPROXY.format(host=HOST, connections=connections, **vars(setting))
    path.write_text(configuration, encoding="utf-8")
    return ["haproxy", "-db", "-q", "-f", str(path)]


_STUNNEL = """
foreground = yes
debug = emerg
pid =
[relay]
accept = {host}:{port}
connect = {host}:{backend_port}
cert = {both}
"""


def _stunnel(setting: Setting) -> list[str]:
    path = setting.directory / "stunnel.conf"
    path.write_text(_STUNNEL.format(host=HOST, **vars(setting)), encoding="utf-8")
    return ["stunnel", str(path)]


def _hitch(setting: Setting) -> list[str]:
    frontend, backend = f"[{HOST}]:{setting.port}", f"[{HOST}]:{setting.backend_port}"
    options = ["--workers=1", "--quiet", f"--frontend={frontend}", f"--backend={backend}"]
    if os.geteuid() == 0:  # as whom its workers refuse to run
        options.append("--user=nobody")
    return ["hitch", *options, str(setting.both)]


OWN = Terminator("ringtls proxy", sys.executable, "", _ringtls)

TERMINATORS = (
    OWN,
    Terminator("nginx", "nginx", "libnginx-mod-stream", _nginx),
    Terminator("haproxy", "haproxy", "haproxy", _haproxy),
    Terminator("stunnel", "stunnel", "stunnel4", _stunnel),
    Terminator("hitch", "hitch", "hitch", _hitch),
)


@contextmanager
def running(terminator: Terminator, setting: Setting) -> Iterator[subprocess.Popen[bytes]]:
    """Start it, and end it.

    Raises:
      TerminatorError
    """
    log = setting.directory / "log"
    command = terminator.command(setting)
    with ExitStack() as stack:
        with log.open("wb") as output, interruptions_held():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # ^C is for whoever started this
            )
            stack.callback(_end, process)
        deadline = time.monotonic() + PATIENCE
        while not _listens(setting.port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()
                raise TerminatorError(f"{terminator.name} does not start: {said}")
            time.sleep(0.01)
        yield process
    if -process.returncode in CRASHES:
        name = signal.Signals(-process.returncode).name
        raise TerminatorError(f"{terminator.name} has crashed: {name}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) == 0
