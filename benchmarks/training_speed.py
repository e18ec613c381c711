"""How fast ours and RecBole's SASRec learn, epoch by epoch in turn on one machine.

    python -m benchmarks.training_speed --dataset amazon-beauty --python .recbole/bin/python \\
        --minutes 10 --json runs/training_speed.json

RecBole's environment is that of `benchmarks.recbole_baseline`; without --python ours runs alone.
RecBole trains twice: as it ships, and trimmed, without work that changes no result (its --trim).
--minutes bounds the seconds of training of each; neither validation nor the preparation of data is
among them. Whoever has trained least has the next epoch, one process computes at a time, and a
curve ends with the first epoch past the bound, or sooner if its own early stopping says so.

NDCG@10 is on the validation interactions, seen items kept. Ours knows the request time or not,
as its curve says; both are the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.quality import DATA, ERRORS, load, presets
from benchmarks.ranks import ResultError, digest
from benchmarks.recbole_baseline import WORKER, check, write_task
from model import TiM4Rec
from training.dataset import Dataset
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.recipe import model_config, training_config
from training.trainer import Epoch, train

ENDLESS = 1_000_000
POSITIONS = 50
"""RecBole's MAX_ITEM_LIST_LENGTH."""
STOPPING_STEP = 10
"""RecBole's: it stops after more epochs than these without a better NDCG@10."""
TRIM = {"shipped": False, "trimmed": True}


@dataclass(frozen=True, slots=True)
class Curve:
    """One run. targets, tokens: of an epoch, padding not counted; training, validation: seconds of
    each epoch; ndcg: after each."""

    title: str
    targets: int
    tokens: int
    torch: str
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    ndcg: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of training, up to the end of each epoch."""
        return list(accumulate(self.training))

    @property
    def waited(self) -> int:
        """Epochs since the best."""
        return len(self.ndcg) - 1 - self.ndcg.index(max(self.ndcg)) if self.ndcg else 0

    def reached(self, ndcg: float) -> float | None:
        """Seconds of training until at least `ndcg`, None if it never was."""
        return next((s for s, n in zip(self.seconds, self.ndcg, strict=True) if n >= ndcg), None)

    def rates(self) -> dict[str, float]:
        epochs, trained = len(self.training), sum(self.training)
        best = max(self.ndcg)
        return {
            "epochs": epochs,
            "targets_per_second": self.targets * epochs / trained,
            "tokens_per_second": self.tokens * epochs / trained,
            "training_seconds_per_epoch": trained / epochs,
            "validation_seconds_per_epoch": sum(self.validation) / epochs,
            "best_ndcg": best,
            "seconds_to_best": self.seconds[self.ndcg.index(best)],
        }

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, **self.rates()}


def prefix_tokens(dataset: Dataset) -> int:
    """Items that a model reads in an epoch with a sample a target."""
    lengths = np.concatenate([np.arange(1, n) for n in dataset.train_lengths])
    return int(np.minimum(lengths, POSITIONS).sum())


class RecBole:
    """A worker that trains an epoch when told to."""

    def __init__(
        self, python: str, folder: Path, dataset: Dataset, way: str, seed: int, threads: int
    ) -> None:
        """Raises ResultError where its environment can't be used."""
        task = {
            "model": "SASRec",
            "seed": seed,
            "data": digest(dataset),
            "options": {"epochs": ENDLESS, "stopping_step": ENDLESS, "state": "WARNING"},
            "trim": TRIM[way],
            "threads": threads,
            "use_gpu": False,
            "paced": True,
        }
        write_task(folder, task, dataset)
        try:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", WORKER, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ResultError(f"--python {python}: {error.strerror}") from error
        try:
            version = self._answer()["torch"]
        except ResultError:
            self.close()
            raise
        title = f"RecBole SASRec, {way}"
        self.curve = Curve(title, dataset.n_train_targets, prefix_tokens(dataset), version)

    def epoch(self) -> None:
        """Trains and validates one."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # why it ended is said below
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        point = self._answer()["curve"][-1]
        self.curve.training.append(point["training_s"])
        self.curve.validation.append(point["validation_s"])
        self.curve.ndcg.append(point["ndcg"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise ResultError(
            f"RecBole's environment ended with status {self.process.wait()}; the reason is above, "
            "how to make the environment in `python -m benchmarks.recbole_baseline --help`"
        )

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class _Spent(Exception):
    """Ours has trained for as long as it may."""


def race(
    dataset: Dataset, recboles: Sequence[RecBole], args: argparse.Namespace, console: Console
) -> tuple[list[Curve], list[Curve]]:
    """Trains all in turn, and keeps the curves in --json meanwhile; returns ours and theirs."""
    preset = presets(args.dataset)["causal"]
    config = replace(
        training_config(dataset, **preset.training), max_epochs=ENDLESS, seed=args.seed,
        threads=args.threads, validation_seen="kept",
    )  # fmt: skip
    architecture = model_config(dataset, **preset.model)
    # A window's items are read once, and each is followed by a target.
    targets = dataset.n_train_targets
    ways = ["request time unknown"] + ["request time known"] * architecture.uses_request_time
    ours = [Curve(f"ours, {way}", targets, targets, torch.__version__) for way in ways]
    theirs = [other.curve for other in recboles]
    budget = 60 * args.minutes

    def say(curve: Curve) -> None:
        console.print(
            f"{curve.title}: epoch {len(curve.ndcg)}, {curve.seconds[-1]:.1f} s, "
            f"NDCG@10 {curve.ndcg[-1]:.4f}",
            highlight=False,
        )

    def catch_up(seconds: float) -> None:
        for other in recboles:
            curve = other.curve
            while sum(curve.training) < seconds and curve.waited <= STOPPING_STEP:
                other.epoch()
                say(curve)
        if args.json:
            keep(args.json, dataset, ours, theirs, args)

    def after_epoch(epoch: Epoch[TiM4Rec]) -> None:
        unknown = rank_targets(epoch.model, dataset.histories, dataset.validation, top=0)[False]
        found = [ranking_metrics(unknown.kept)["NDCG@10"], epoch.ndcg]
        for curve, ndcg in zip(ours, found, strict=False):
            curve.training.append(epoch.training_seconds)
            curve.validation.append(epoch.validation_seconds)
            curve.ndcg.append(ndcg)
            say(curve)
        spent = sum(ours[0].training)
        catch_up(min(spent, budget))
        if spent >= budget:
            raise _Spent

    with suppress(_Spent):
        train(dataset, architecture, config, after_epoch=after_epoch)
    catch_up(budget)
    return ours, theirs


def keep(
    path: Path,
    dataset: Dataset,
    ours: Sequence[Curve],
    theirs: Sequence[Curve],
    args: argparse.Namespace,
) -> None:
    report = {
        "dataset": args.dataset,
        "sizes": dataset.describe(),
        "threads": args.threads,
        "seed": args.seed,
        "minutes": args.minutes,
        "curves": [curve.to_dict() for curve in (*ours, *theirs)],
        "comparisons": comparisons(ours, theirs),
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1))
    part.replace(path)


def comparisons(ours: Sequence[Curve], theirs: Sequence[Curve]) -> list[dict[str, Any]]:
    """Seconds of training until RecBole's best NDCG@10, and until 95 % of it, by it and by ours.

    Its last small gain may take long, hence the second.
    """
    return [
        {
            "ours": mine.title,
            "other": other.title,
            "share_of_its_best": share,
            "ndcg": share * max(other.ndcg),
            "ours_s": mine.reached(share * max(other.ndcg)),
            "other_s": other.reached(share * max(other.ndcg)),
        }
        for other in theirs
        for share in (1.0, 0.95)
        for mine in ours
    ]


def table(curves: Sequence[Curve]) -> Table:
    columns = ("", "epochs", "targets/s", "tokens/s", "training s/epoch", "validation s/epoch",
               "best NDCG@10", "training s to it")  # fmt: skip
    found = Table(*columns)
    for curve in curves:
        rates = curve.rates()
        found.add_row(
            f"{curve.title} (torch {curve.torch})",
            f"{rates['epochs']}",
            f"{rates['targets_per_second']:,.0f}",
            f"{rates['tokens_per_second']:,.0f}",
            f"{rates['training_seconds_per_epoch']:.3g}",
            f"{rates['validation_seconds_per_epoch']:.3g}",
            f"{rates['best_ndcg']:.4f}",
            f"{rates['seconds_to_best']:.1f}",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="a folder of --data")
    parser.add_argument(
        "--python",
        default=os.environ.get("RECBOLE_PYTHON"),
        help="of RecBole's environment; default: RECBOLE_PYTHON",
    )
    parser.add_argument(
        "--recbole", nargs="*", choices=tuple(TRIM), default=list(TRIM), help="default: both"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, of each")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        for name, least in (("minutes", 1e-3), ("threads", 1), ("seed", 0)):
            given = getattr(args, name)
            if not given >= least:
                raise ResultError(f"--{name}: must be at least {least:g}, not {given:g}")
        if args.json and not args.json.absolute().parent.is_dir():
            raise ResultError(f"--json {args.json}: no such folder; make it first")
        dataset = load(args.dataset, args.data, "leave-one-out")
        check(dataset)
        with ExitStack() as stack:
            others = []
            for way in args.recbole if args.python else ():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                other = RecBole(args.python, folder, dataset, way, args.seed, args.threads)
                stack.callback(other.close)
                others.append(other)
            ours, theirs = race(dataset, others, args, console)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    console.print(table([*ours, *theirs]))
    for line in comparisons(ours, theirs):
        reached = "not reached" if line["ours_s"] is None else f"after {line['ours_s']:.1f} s"
        ratio = "" if line["ours_s"] is None else f": {line['other_s'] / line['ours_s']:.2f} x"
        console.print(
            f"{line['share_of_its_best']:.0%} of the best NDCG@10 of {line['other']}, "
            f"{line['ndcg']:.4f}: by {line['ours']}, {reached}, by it after "
            f"{line['other_s']:.1f} s{ratio}",
            highlight=False,
        )


if __name__ == "__main__":
    main()
