"""nginx as a process, with the configuration of deploy/nginx before servers on this machine."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.history_cost import free_port

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "nginx" / "nginx.conf"


def find_nginx() -> str | None:
    """The program of Debian's package nginx, which is not on everybody's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def configuration(folder: Path, listen: int, replicas: Sequence[int], sticky: bool) -> str:
    """What is deployed, but for the addresses; without `sticky`, in turn instead of by user."""
    text = CONFIGURATION.read_text("utf-8")
    # A slow machine is no dead replica.
    servers = "".join(f"server 127.0.0.1:{port} max_fails=0;" for port in replicas)
    text = re.sub(r"server replica-0.*?;\s*server replica-1.*?;", servers, text)
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{listen};")
    text = text.replace("pid /tmp/nginx.pid;", f"pid {folder}/nginx.pid;")
    if not sticky:
        text = text.replace("hash $user consistent;", "")
    bodies = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return text.replace("http {", f"http {{ {bodies}")


@contextmanager
def nginx(replicas: Sequence[int], *, sticky: bool) -> Iterator[int]:
    """nginx before the servers at these ports, from when it answers; its port.

    Raises:
        OSError: it is not installed.
        RuntimeError: it does not start; why.
    """
    program = find_nginx()
    if program is None:
        raise OSError("nginx is not installed: apt-get install nginx")
    with tempfile.TemporaryDirectory(prefix="tim4rec-nginx-") as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)  # its workers are another user's when it is started as root
        file = folder / "nginx.conf"
        file.write_text(configuration(folder, port, replicas, sticky), "utf-8")
        command = [program, "-p", name, "-e", "stderr", "-c", str(file), "-g", "daemon off;"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _wait(process, port)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def _wait(process: subprocess.Popen[str], port: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended: {process.communicate()[1].strip()}")
        try:
            httpx.get(f"http://127.0.0.1:{port}/metrics")
            return
        except httpx.TransportError:
            time.sleep(0.02)
    raise RuntimeError("nginx did not answer within 30 s")
