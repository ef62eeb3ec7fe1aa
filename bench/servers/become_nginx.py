"""nginx in place of a program that has made its listening sockets and told their ports.

It takes over listening sockets that the variable NGINX names, as it does in an upgrade of its
binary. So a client that connects before nginx runs waits in the sockets' queues.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NoReturn

from .files import make_files
from .http import BODY, BULK_SIZE
from .start import BACKLOG, HOST, Arguments, announce

__all__ = ["become_nginx"]

CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {file_limit};
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections {file_limit}; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_header_timeout 1h;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    server {{
        listen {host}:{port} {options} backlog={backlog};
        {tls}
        root {directory};
        location / {{ return 200 "{body}"; }}
        location /files/ {{ default_type application/octet-stream; open_file_cache max=1000; }}
        location = /bulk {{ default_type application/octet-stream; }}
    }}
    server {{
        listen {host}:{status_port} backlog={backlog};
        location / {{ stub_status; }}
    }}
}}
"""


def _configuration(
    directory: Path, options: str, tls: str, port: int, status_port: int, file_limit: int
) -> str:
    return CONFIGURATION.format(
        user="user root;" if os.geteuid() == 0 else "",
        directory=directory,
        host=HOST,
        port=port,
        status_port=status_port,
        backlog=BACKLOG,
        file_limit=file_limit,
        options=options,
        tls=tls,
        body=BODY.decode().replace("\n", "\\n"),
    )


def become_nginx(arguments: Arguments, options: str = "", tls: str = "") -> NoReturn:
    """Run nginx in place of this program.

    Args:
      options, tls: of its listener, and the directives for its TLS, if it speaks that.
    """
    bulk = arguments.directory / "bulk"
    bulk.touch()
    os.truncate(bulk, BULK_SIZE)
    make_files(arguments.directory)
    listeners = [socket.create_server((HOST, 0), backlog=BACKLOG) for _ in range(2)]
    port, status_port = (listener.getsockname()[1] for listener in listeners)
    file_limit = os.sysconf("SC_OPEN_MAX")
    path = arguments.directory / "nginx.conf"
    path.write_text(
        _configuration(arguments.directory, options, tls, port, status_port, file_limit)
    )
    for listener in listeners:
        listener.set_inheritable(True)
    os.environ["NGINX"] = "".join(f"{listener.fileno()};" for listener in listeners)
    announce(port, status_port)
    os.execvp("nginx", ["nginx", "-c", str(path), "-p", str(arguments.directory)])
