"""`tim4rec serve`: the service as a process."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
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

from cli.console import CommandError, out, say
from cli.run import require_free_port
from cli.settings import ENVIRONMENT, chosen_settings
from model.artefact import load_artefact
from service.store import Store, StoreError
from service.values import MULTIPROC_DIR, clear

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
    # What is wrong with any of these is said here, in one line and once, not by every worker.
    settings = chosen_settings(**given)
    example = load_artefact(artefact).items.ids[0]
    if settings.redis is None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        asyncio.run(_check_store(settings.redis))
    for name, value in given.items():
        if value is not None:
            os.environ[ENVIRONMENT + name.upper()] = str(value)

    scratch = None
    if workers > 1 and MULTIPROC_DIR not in os.environ:
        scratch = tempfile.mkdtemp(prefix="tim4rec-metrics-")
        os.environ[MULTIPROC_DIR] = scratch
    elif MULTIPROC_DIR in os.environ:
        clear(Path(os.environ[MULTIPROC_DIR]))
    announced = (host, port, example, bool(settings.api_keys))
    threading.Thread(target=_announce, args=announced, daemon=True).start()
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


async def _check_store(url: str) -> None:
    try:
        async with Store(url) as store:
            await store.check()
    except StoreError as error:
        raise CommandError(str(error)) from None


def _announce(host: str, port: int, item_id: str, guarded: bool) -> None:
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
    body = shlex.quote(json.dumps({"user_id": "me", "item_id": item_id}))
    key = ' -H "X-API-Key: $TIM4REC_API_KEY"' if guarded else ""
    say(f"Ready on {base}. Paste any of these:", out)
    say(
        f"  curl -X POST {base}/interactions{key} -H 'Content-Type: application/json' -d {body}",
        out,
    )
    say(f"  curl{key} '{base}/recommend?user_id=me&k=10'", out)
    say(f"  {shlex.quote(sys.executable)} -m webbrowser {base}/docs", out)


def _ready(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (TimeoutError, urllib.error.URLError, OSError):
        return False
