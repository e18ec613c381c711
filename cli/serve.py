"""`tim4rec serve`: the service as processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlencode

import torch
import typer

from cli.console import CommandError, out, say
from cli.health import ask
from cli.ports import require_free_port
from cli.service_url import service_url
from cli.settings import chosen_settings, takes_settings
from cli.store import agreed, require_data_dir
from model.artefact import load_artefact
from model.artefact_store import local_artefact
from model.kernels import why_not
from service import supervisor
from service.lifecycle import STARTUP_FAILURE
from service.observe import logs
from service.observe.values import MULTIPROC_DIR, clear
from service.settings import Settings
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.errors import EmbeddedStoreError, StoreError
from service.store.shared_settings import Difference, tell_changes

logger = logging.getLogger(__name__)

READY_WITHIN_S = 120


@takes_settings
def serve(given: dict[str, Any]) -> None:
    """Serve a trained model over HTTP until interrupted.

    Every option can also be given as an environment variable: `--max-batch` is TIM4REC_MAX_BATCH,
    `--redis` is TIM4REC_REDIS_URL. `tim4rec settings` shows all of them in a table.

    On SIGTERM or Ctrl-C what is under way is finished; a second one stops at once.
    """
    served_with(given, "me")


def served_with(given: dict[str, Any], user_id: str) -> None:
    """As `serve`; the lines to paste are of this user."""
    # What is wrong with any of these is said here, in one line and once, not by every worker.
    settings = chosen_settings(**given)
    require_free_port(settings.port, settings.host, "--port {}")
    if settings.operations_port is not None:
        require_free_port(settings.operations_port, settings.host, "--operations-port {}")
    _check_open(settings)
    _check_device(settings.device)
    _check_kernels(settings)
    require_data_dir(settings)
    # Workers that start again need no object store.
    folder = local_artefact(settings.artefact, settings.fetched_models)
    artefact = load_artefact(folder)
    settings, example = settings.with_kinds(artefact.kinds), artefact.items.ids[0]
    with ExitStack() as held:
        changed: list[Difference] = []
        if settings.redis is not None:
            changed = asyncio.run(_check_store(settings, settings.redis))
        logs.configure(settings.log_level, settings.log_format)
        _log_settings(settings)
        if settings.redis is None:
            # Until the last worker has ended: so they find one that runs.
            changed = asyncio.run(_check_store(settings, _embedded(settings, held)))
        tell_changes(changed)
        status = _serve(settings.model_copy(update={"artefact": str(folder)}), user_id, example)
    if status:
        raise typer.Exit(status)


def _embedded(settings: Settings, held: ExitStack) -> str:
    """The URL of an embedded store that runs until `held` is closed, also when a signal does it."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.signal(number, lambda number, _: received.append(number))
        held.callback(signal.signal, number, before)
    try:
        url = held.enter_context(EmbeddedStore(settings.data_dir, fsync=settings.fsync))
    except EmbeddedStoreError as error:
        logger.error("%s", error)
        raise typer.Exit(STARTUP_FAILURE) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if received:
        _leave(received[0], None)
    return url


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _serve(settings: Settings, user_id: str, item_id: str) -> int:
    scratch = None
    if folder := os.environ.get(MULTIPROC_DIR):
        try:
            clear(Path(folder))
        except OSError as error:
            raise CommandError(
                f"{MULTIPROC_DIR}: {folder}: {error.strerror}; give a folder to write to"
            ) from None
    elif settings.workers > 1:
        scratch = tempfile.mkdtemp(prefix="tim4rec-metrics-")
        os.environ[MULTIPROC_DIR] = scratch
    threading.Thread(target=_announce, args=(settings, user_id, item_id), daemon=True).start()
    try:
        return supervisor.serve(settings)
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_open(settings: Settings) -> None:
    if settings.open_to_others:
        raise CommandError(
            f"host {settings.host}: without API keys whoever reaches it may erase any user; "
            "give keys in TIM4REC_API_KEYS or TIM4REC_API_KEYS_FILE, or say that it is meant with "
            "--allow-open or TIM4REC_ALLOW_OPEN=true"
        )


def _check_device(name: str) -> None:
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandError(f"device {name}: take auto, cpu, cuda, cuda:1 or so") from None
    # Counted, not used: the supervisor takes no memory of a GPU.
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"device {name}: {torch.cuda.device_count()} GPUs found here")


def _check_kernels(settings: Settings) -> None:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.device_count() else "cpu"
    if settings.kernels == "triton" and (reason := why_not(device)) is not None:
        raise CommandError(f"kernels triton: {reason}")


async def _check_store(settings: Settings, url: str) -> list[Difference]:
    logging.disable()  # what it warns of, every process will say
    try:
        async with Store(url) as store:
            await store.check()
            return await agreed(store, settings, settings.shared())
    except StoreError as error:
        raise CommandError(str(error)) from None
    finally:
        logging.disable(logging.NOTSET)


def _log_settings(settings: Settings) -> None:
    changed = settings.changed()
    logger.info(
        "settings: %s; the others are as by default (`tim4rec settings`)",
        " ".join(f"{name}={value}" for name, value in changed.items()),
        extra={"changed": list(changed), "settings": settings.shown()},
    )


def _announce(settings: Settings, user_id: str, item_id: str) -> None:
    """Says what to paste, once the service is ready."""
    base = service_url(settings.host, settings.port)
    until = time.monotonic() + READY_WITHIN_S
    probed = service_url(settings.host, settings.operations_port or settings.port)
    while ask(f"{probed}/readyz", timeout_s=2)[0] != 200:
        if time.monotonic() > until:
            say(f"not ready after {READY_WITHIN_S} s: see the messages above")
            return
        time.sleep(0.1)
    body = shlex.quote(json.dumps({"user_id": user_id, "item_id": item_id}, ensure_ascii=False))
    key = ' -H "X-API-Key: $TIM4REC_API_KEY"' if settings.api_keys or settings.api_keys_file else ""
    say(f"Ready on {base}. Paste any of these:", out)
    say(
        f"  curl -X POST {base}/interactions{key} -H 'Content-Type: application/json' -d {body}",
        out,
    )
    asked = f"{base}/recommend?{urlencode({'user_id': user_id, 'k': 10})}"
    say(f"  curl{key} {shlex.quote(asked)}", out)
    if settings.public_docs or not key:
        say(f"  {shlex.quote(sys.executable)} -m webbrowser {base}/docs", out)
    else:
        say(f"  curl{key} {base}/openapi.json", out)
    if settings.page:
        say(f"Or try it in a browser: {base}/", out)
