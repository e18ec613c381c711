"""`tim4rec serve`: the service as a process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from cli.console import CommandError, out, say
from cli.run import require_free_port
from model.artefact import load_artefact
from service.metrics import MULTIPROC_DIR
from service.settings import Settings

ENVIRONMENT = "TIM4REC_"
READY_WITHIN_S = 120


def serve(
    artefact: Annotated[Path, typer.Argument(help="Folder of the model to serve.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    redis: Annotated[
        str | None,
        typer.Option(
            help="redis://, rediss:// or unix:// URL of the store. None: TIM4REC_REDIS_URL, or "
            "else an embedded one in --data-dir.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded store.", show_default="state")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default="auto")
    ] = None,
) -> None:
    """Serve a trained model over HTTP until interrupted.

    Every other setting comes from the environment, as TIM4REC_NAME: pool_capacity, max_batch,
    snapshot_every, late_policy, api_keys and so on.
    """
    require_free_port(port, host)
    given: dict[str, Any] = {
        "artefact": artefact,
        "redis_url": redis,
        "data_dir": data_dir,
        "device": device,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        Settings(**chosen)
    except ValidationError as error:
        raise CommandError("; ".join(_fault(fault) for fault in error.errors())) from None
    example = load_artefact(artefact).items.ids[0]  # also: a fault of it is said here, once
    for name, value in chosen.items():
        os.environ[ENVIRONMENT + name.upper()] = str(value)

    scratch = None
    if workers > 1 and MULTIPROC_DIR not in os.environ:
        scratch = tempfile.mkdtemp(prefix="tim4rec-metrics-")
        os.environ[MULTIPROC_DIR] = scratch
    threading.Thread(target=_announce, args=(host, port, example), daemon=True).start()
    try:
        uvicorn.run(
            "service.app:create_app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=10,
        )
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def _announce(host: str, port: int, item_id: str) -> None:
    """Says what to paste, once the service is ready."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"[{shown}]" if ":" in shown else shown
    base = f"http://{address}:{port}"
    until = time.monotonic() + READY_WITHIN_S
    while not _ready(base):
        if time.monotonic() > until:
            say(f"not ready after {READY_WITHIN_S} s: see the messages above")
            return
        time.sleep(0.1)
    body = json.dumps({"user_id": "me", "item_id": item_id})
    say(f"Ready on {base}. Paste any of these:", out)
    say(f"  curl -X POST {base}/interactions -H 'Content-Type: application/json' -d '{body}'", out)
    say(f"  curl '{base}/recommend?user_id=me&k=10'", out)
    say(f"  {sys.executable} -m webbrowser {base}/docs", out)


def _ready(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (TimeoutError, urllib.error.URLError, OSError):
        return False
