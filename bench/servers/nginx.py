"""nginx, configured to do as the others do.

This program makes the listening sockets, tells their ports, and becomes nginx, which takes over
listening sockets that the variable NGINX names, as it does in an upgrade of its binary. So a
client that connects before nginx runs waits in the sockets' queues.
"""

from __future__ import annotations

import os
import socket

from .files import make_files
from .http import BODY, BULK_SIZE
from .start import BACKLOG, HOST, Arguments, announce, parse_arguments

#: Sessions and tickets are as with Python's ssl: no cache, and so many tickets.
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
        listen {host}:{port} ssl backlog={backlog};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command NumTickets {tickets};
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


def configuration(arguments: Arguments, port: int, status_port: int, file_limit: int) -> str:
    return CONFIGURATION.format(
        user="user root;" if os.geteuid() == 0 else "",
        directory=arguments.directory,
        host=HOST,
        port=port,
        status_port=status_port,
        backlog=BACKLOG,
        file_limit=file_limit,
        certificate=arguments.certificate,
        key=arguments.key,
        tickets=arguments.tickets,
        body=BODY.decode().replace("\n", "\\n"),
    )


def main() -> None:
    arguments = parse_arguments()
    bulk = arguments.directory / "bulk"
    bulk.touch()
    os.truncate(bulk, BULK_SIZE)
    make_files(arguments.directory)
    listeners = [socket.create_server((HOST, 0), backlog=BACKLOG) for _ in range(2)]
    port, status_port = (listener.getsockname()[1] for listener in listeners)
    file_limit = os.sysconf("SC_OPEN_MAX")
    path = arguments.directory / "nginx.conf"
    path.write_text(configuration(arguments, port, status_port, file_limit))
    for listener in listeners:
        listener.set_inheritable(True)
    os.environ["NGINX"] = "".join(f"{listener.fileno()};" for listener in listeners)
    announce(port, status_port)
    os.execvp("nginx", ["nginx", "-c", str(path), "-p", str(arguments.directory)])


main()
