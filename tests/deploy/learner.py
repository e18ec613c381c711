"""A learner beside a service, whose commands are played."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl

from model.times import iso
from tests.forked import Forked
from tests.learning import played
from tests.reaper import reap
from tests.service.processes import Service, make_artefact
from tests.waited import until


@contextmanager
def learned(
    folder: Path, items: list[str], service: Service, store_url: str, admin_key: str, port: int
) -> Iterator[None]:
    """A learner whose model everybody has got.

    Args:
        folder: whose `models` the service takes models from.
        port: of its metrics.
    """
    ready = folder / "played"
    make_artefact(ready / "artefacts" / "learned", items, seed=2)
    log = ready / "log"
    log.mkdir()
    now = round(1000 * time.time())
    pl.DataFrame({"timestamp": [now - n for n in range(100)]}).write_parquet(log / "part-0.parquet")
    (log / "manifest.json").write_text("{}")
    (log / "newest").write_text(iso(now))
    options = {
        "SERVICE": service.url, "MODELS": folder / "models", "WORK": folder / "work",
        "COMMAND": shlex.join([sys.executable, played.__file__]), "METRICS_PORT": port,
        "TRIAL_SHARE": 1, "LEAST_EVENTS": 1, "LEAST_JUDGED": 1,
    }  # fmt: skip
    given = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
    given |= {f"TIM4REC_LEARN_{name}": str(value) for name, value in options.items()}
    given |= {"TIM4REC_ADMIN_KEYS": admin_key, "TIM4REC_REDIS_URL": store_url}
    process = Forked(["learn"], given | {"PLAYED_FOLDER": str(ready)}, folder / "learner")
    reap(process.pid)
    try:
        served = f"{service.url}/metrics"
        until(lambda: "Z-warm-" in httpx.get(served).text, "its model is not served")
        yield
    finally:
        process.kill()
        process.wait()
