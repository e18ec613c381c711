"""RecBole's models on our split, scored by our rules: rows of `benchmarks.quality`.

    make recbole
    python -m benchmarks.recbole_baseline --python .recbole/bin/python --dataset amazon-beauty
    python -m benchmarks.quality --dataset amazon-beauty --rows
    python -m benchmarks.quality compare runs/quality/amazon-beauty/{recbole-SASRec,causal}

RecBole 1.2.1 needs an older numpy and pandas than we do, hence an environment of its own; of its
dependencies `ray` and `thop` are left out, which only its tuning and its counting of operations
use. Its defaults are kept but for the loss (cross-entropy). It trains on each prefix; the time it
is given is the place in the history, so that it keeps our order. A stopped run goes on after its
last whole epoch. Work that changes no result is left out unless `--no-trim` says otherwise, which
makes epochs several times shorter (see benchmarks.training_speed). Seen items kept, ranks
agree with RecBole's own metrics, which are kept beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.quality import DATA, ERRORS, RUNS, TIES, load, run_folder
from benchmarks.ranks import Ranks, ResultError, View, digest, read_result, write_result
from training.dataset import Dataset
from training.metrics import ranking_metrics
from training.tables import InputError

WORKER = Path(__file__).with_name("recbole_worker.py")
MODELS = ("SASRec", "GRU4Rec", "BERT4Rec", "Caser")


def write_task(folder: Path, task: dict[str, Any], dataset: Dataset) -> None:
    """What the worker reads. Raises ResultError where the folder is another task's."""
    path = folder / "task.json"
    if path.exists() and not _goes_on(json.loads(path.read_text()), task):
        raise ResultError(
            f"{folder}: holds a run with other settings or data; "
            "remove it, or choose another --runs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    test, histories = dataset.test, dataset.histories
    np.savez(
        folder / "split.npz",
        offsets=histories.offsets,
        items=histories.items,
        users=test.users,
        ends=test.ends,
        targets=test.items,
        n_items=dataset.n_items,
    )
    path.write_text(json.dumps(task))


EXTENT = ("epochs", "stopping_step")


def _goes_on(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether `new` is the same run, perhaps of more epochs or with other threads."""

    def fixed(task: dict[str, Any]) -> dict[str, Any]:
        options = {key: v for key, v in task["options"].items() if key not in EXTENT}
        same = {key: task[key] for key in ("model", "seed", "data")}
        return same | {"options": options, "trim": task.get("trim", False)}

    return fixed(old) == fixed(new)


def measure(
    dataset: Dataset,
    name: str,
    model: str,
    seed: int,
    folder: Path,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Trains and ranks one RecBole model, or reads what an earlier call measured.

    Raises ResultError if its environment can't be used, or if its own metrics contradict the ranks.
    """
    task = {
        "model": model,
        "seed": seed,
        "data": digest(dataset),
        "options": json.loads(args.options),
        "trim": args.trim,
        "threads": args.threads,
        "use_gpu": args.gpu,
        "paced": False,
    }
    result = read_result(folder)
    if result is not None and result["task"]["options"] == task["options"]:
        write_task(folder, task, dataset)
        return result
    write_task(folder, task, dataset)
    try:
        done = subprocess.run([args.python, WORKER, folder], check=False)
    except OSError as error:
        raise ResultError(f"--python {args.python}: {error.strerror}") from error
    if done.returncode:
        raise ResultError(
            f"{model}: RecBole's environment ended with status {done.returncode}; "
            "the reason is above, how to make the environment in --help"
        )
    outcome = json.loads((folder / "outcome.json").read_text())
    with np.load(folder / "worker.npz") as file:
        found = {View(seen): file[seen] for seen in ("kept", "filtered")}
    ours, own = ranking_metrics(found[View()])["NDCG@10"], outcome["own"]["ndcg@10"]
    if ours > own + 1e-6:  # a tie counts against the model here, so only less is possible
        raise ResultError(f"{folder}: NDCG@10 {ours:.6f} by these ranks, {own:.6f} by RecBole")
    return write_result(
        folder,
        Ranks.of(dataset, found),
        {
            "dataset": name,
            "sizes": dataset.describe(),
            "protocol": dataset.protocol.to_dict(),
            "row": f"recbole-{model}",
            "title": f"RecBole {model}, cross-entropy, measured here",
            "seed": seed,
            "data": task["data"],
            "task": task,
            **outcome,
        },
    )


def check(dataset: Dataset) -> None:
    """Raises InputError for a split that RecBole would cut otherwise."""
    if dataset.protocol.split != "leave-one-out" or len(dataset.test) != len(dataset.histories):
        raise InputError("RecBole's leave-one-out needs every user to have a test target")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.recbole_baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="a folder of --data")
    parser.add_argument("--models", nargs="+", default=["SASRec"], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument(
        "--python",
        default=os.environ.get("RECBOLE_PYTHON"),
        help="of RecBole's environment; default: RECBOLE_PYTHON",
    )
    parser.add_argument("--ties", choices=TIES, default=TIES[0], help="order of equal times")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--options", default="{}", help="of RecBole, JSON, over its defaults")
    parser.add_argument("--threads", type=int, default=0, help="of torch, 0: its own choice")
    parser.add_argument(
        "--trim",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out what changes no result: the search of every gradient for NaN, most of the "
        "padding, and BERT4Rec's scores where no item is masked (default: on)",
    )
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if args.python is None:
            raise ResultError("--python: give the Python of RecBole's environment (see --help)")
        if unknown := sorted(set(args.models) - set(MODELS)):
            raise ResultError(f"--models: no {', '.join(unknown)}; there are {', '.join(MODELS)}")
        try:
            json.loads(args.options)
        except ValueError as error:
            raise ResultError(f"--options: not JSON ({error})") from error
        dataset = load(args.dataset, args.data, "leave-one-out", args.ties)
        check(dataset)
        for seed in range(args.seeds):
            for model in args.models:
                folder = run_folder(args.runs, args.dataset, "leave-one-out", args.ties)
                folder = (folder / f"recbole-{model}" / str(seed)).resolve()
                result = measure(dataset, args.dataset, model, seed, folder, args)
                figures = {row["seen"]: row for row in result["rows"] if row["users"] == "all"}
                console.print(
                    f"{model}, seed {seed}: NDCG@10 {figures['kept']['NDCG@10']:.4f} kept "
                    f"(RecBole's own {result['own']['ndcg@10']:.4f}), "
                    f"{figures['filtered']['NDCG@10']:.4f} filtered; best epoch "
                    f"{result['best_epoch']} of {result['epochs']}, {result['seconds']:.0f} s",
                    highlight=False,
                )
    except ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
