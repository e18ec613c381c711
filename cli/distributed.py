"""`tim4rec on-ray`: a command that takes --shard, as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from cli.console import CommandError, out, say

RETRIES = 2
SHARDED = ("import-log", "warm", "export-log")


def on_ray(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help=f"One of {', '.join(SHARDED)}, with its arguments; options after `--`.",
        ),
    ],
    shards: Annotated[int, typer.Option(min=1, help="Parts of the users, a task each.")] = 8,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The cluster. None: RAY_ADDRESS, or else this machine alone.",
            show_default=False,
        ),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="What a task takes of a worker.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="The same of its GPUs.")] = 0,
) -> None:
    """Run import-log, warm or export-log as tasks of a Ray cluster, a shard of the users each.

        tim4rec on-ray --shards 16 --address head:6379 -- import-log /nfs/log.parquet --redis URL

    Every worker needs this package, the files under the same path, and the store. A task whose
    worker dies runs again elsewhere and goes on where it stopped. The exit code is 1 if a shard
    failed; the others are done all the same, and running the same command again adds nothing
    twice. Needs the extra `ray`.
    """
    if command[0] not in SHARDED:
        raise CommandError(f"{command[0]} has no shards; give one of {', '.join(SHARDED)}")
    command, url = _apart(command)
    if url is None and "TIM4REC_REDIS_URL" not in os.environ:
        raise CommandError(
            "which store? Give the command's --redis, or TIM4REC_REDIS_URL: an embedded one is of "
            "one machine only"
        )
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise CommandError('Ray is not installed: pip install "tim4rec[ray]"') from None

    # Its workers get the settings and where this code is, nothing else of this environment.
    passed = {k: v for k, v in os.environ.items() if k.startswith("TIM4REC_") or k == "PYTHONPATH"}
    if url is not None:
        passed["TIM4REC_REDIS_URL"] = url

    def run(shard: str) -> tuple[int, str]:
        """In a process of its own: what it prints and how it ends is what the command's does."""
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *command, "--shard", shard],
            env=os.environ | passed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout.rstrip()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
    ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        task = ray.remote(run).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        failed = _collected(ray, {task.remote(f"{i}/{shards}"): i for i in range(shards)})
    finally:
        ray.shutdown()
    if failed:
        names = ", ".join(f"{i}/{shards}" for i in sorted(failed))
        raise CommandError(f"{len(failed)} of {shards} shards failed: {names}")


def _apart(command: list[str]) -> tuple[list[str], str | None]:
    """A command without its --redis, and that: a process's arguments are there for all to see."""
    rest, url = list[str](), None
    words = iter(command)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--redis":
            url = value if equals else next(words, "")
        else:
            rest.append(word)
    return rest, url


def _collected(ray: Any, running: dict[Any, int]) -> list[int]:
    """Says what each task printed as it ends; the shards of those that failed."""
    count, failed = len(running), []
    while running:
        (reference,), _ = ray.wait(list(running))
        shard = running.pop(reference)
        try:
            status, printed = ray.get(reference)
        except ray.exceptions.RayError as error:
            status, printed = 1, str(error).splitlines()[0]
        say(f"shard {shard}/{count}: {printed}", out)
        if status:
            failed.append(shard)
    return failed
