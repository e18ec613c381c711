"""Trains one RecBole model and ranks every test target; started by `benchmarks.recbole_baseline`.

Runs in RecBole's own environment, so it imports nothing of this project but its neighbour:

    python recbole_worker.py FOLDER

FOLDER holds `task.json` and `split.npz`; `worker.npz` and `outcome.json` are written there. A paced
task, as of `benchmarks.training_speed`, ranks nothing: before each epoch the curve so far goes to
stdout, a line of JSON, and the epoch begins with a line from stdin, whose end is the run's.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is not installed
from benchmarks.recbole_trim import trim

MISS = 2**31
NAME = "log"


def import_recbole() -> tuple[Any, Any, Any]:
    """RecBole's config, data and utils modules.

    It imports packages for tuning and for counting operations that no training uses, and reads its
    own checkpoints with pickle, which torch.load no longer does unless told to.
    """
    for name in ("ray", "ray.tune", "thop"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
    thop: Any = sys.modules["thop"]
    for name in ("clever_format", "profile"):
        if not hasattr(thop, name):
            setattr(thop, name, None)
    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{**options, "weights_only": False})
    return (
        importlib.import_module("recbole.config"),
        importlib.import_module("recbole.data"),
        importlib.import_module("recbole.utils"),
    )


def write_atomic_file(split: dict[str, Any], folder: Path) -> None:
    """RecBole's table of interactions; the time is the place in the history, so that it keeps it.

    Its own times would be sorted as float32, which makes many of them equal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets, items = split["offsets"], split["items"]
    with (folder / f"{NAME}.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, (begin, end) in enumerate(itertools.pairwise(offsets)):
            for place in range(begin, end):
                file.write(f"{user}\t{items[place]}\t{place - begin}\n")


def settings(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is not RecBole's default: the protocol, cross-entropy, and the places of its files."""
    chosen = {
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 10,
        "eval_batch_size": 512,
        "seed": task["seed"],
        "show_progress": False,
        "use_gpu": task["use_gpu"],
        "worker": 0,
    }
    return {**chosen, **task["options"]}


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`function`, which appends to `seconds` how long each call took."""

    def call(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **options)
        seconds.append(time.perf_counter() - began)
        return result

    return call


def train(
    trainer: Any,
    train_data: Any,
    valid_data: Any,
    folder: Path,
    max_epochs: int,
    paced: bool,
) -> list[dict[str, float]]:
    """Fits, or goes on from the last whole epoch; returns the curve, a point an epoch.

    A resumed run draws other random numbers than an uninterrupted one.
    """
    last, best, done = folder / "last.pth", folder / "best.pth", folder / "curve.json"
    curve: list[dict[str, float]] = []
    save = trainer._save_checkpoint

    def save_whole(epoch: int, verbose: bool = True, saved_model_file: Path = best) -> None:
        part = saved_model_file.with_suffix(".part")
        save(epoch, verbose=False, saved_model_file=str(part))
        part.replace(saved_model_file)

    trainer._save_checkpoint = save_whole
    if last.exists() and done.exists():
        trainer.resume_checkpoint(last)
        curve = json.loads(done.read_text())[: trainer.start_epoch]
    training: list[float] = []
    validation: list[float] = []
    train_epoch = timed(trainer._train_epoch, training)

    def wait_and_train(*args: Any, **options: Any) -> Any:
        if paced:
            print(json.dumps({"torch": torch.__version__, "curve": curve}), flush=True)
            if not sys.stdin.readline():
                sys.exit()
        return train_epoch(*args, **options)

    trainer._train_epoch = wait_and_train
    trainer._valid_epoch = timed(trainer._valid_epoch, validation)

    def keep(_: int, ndcg: float) -> None:
        curve.append(
            {"training_s": training[-1], "validation_s": validation[-1], "ndcg": float(ndcg)}
        )
        done.write_text(json.dumps(curve))  # first: what is ahead of the weights is cut off again
        save_whole(len(curve) - 1, saved_model_file=last)

    if trainer.cur_step <= trainer.stopping_step and len(curve) < max_epochs:
        trainer.fit(train_data, valid_data, saved=True, show_progress=False, callback_fn=keep)
    return curve


def rank(model: Any, dataset: Any, test_data: Any, split: dict[str, Any]) -> dict[str, Any]:
    """Ranks of the test targets, kept and filtered, in the order of `split["users"]`.

    Raises ValueError where RecBole's test targets are not ours.
    """
    n_items = int(split["n_items"])
    # RecBole's number of each of our items; its 0 pads, as ours does.
    numbers = np.zeros(n_items + 1, dtype=np.int64)
    numbers[1:] = [dataset.token2id("item_id", str(item)) for item in range(1, n_items + 1)]
    ours = torch.from_numpy(numbers)
    row_of = {int(user): row for row, user in enumerate(split["users"])}
    kept = np.zeros(len(row_of), dtype=np.int64)
    filtered = np.zeros(len(row_of), dtype=np.int64)
    found = 0
    model.eval()
    with torch.no_grad():
        for interaction, _, _, _ in test_data:
            scores = model.full_sort_predict(interaction.to(model.device)).cpu()
            scores = scores.view(len(interaction), -1)[:, ours]  # columns in the order of our items
            users = dataset.id2token("user_id", interaction["user_id"].cpu().numpy())
            targets = interaction["item_id"].cpu().numpy()
            for line, (token, target) in enumerate(zip(users, targets, strict=True)):
                user = int(token)
                row = row_of[user]
                item = int(split["targets"][row])
                if numbers[item] != target:
                    raise ValueError(f"RecBole tests user {user} on another item than this split")
                begin, end = split["offsets"][user], split["ends"][row]
                seen = split["items"][begin:end]
                line_scores = scores[line]
                own = line_scores[item].clone()
                line_scores[0] = -torch.inf
                # Not "at least": so a NaN counts against the model. The target counts itself.
                kept[row] = int((~(line_scores[1:] < own)).sum())
                line_scores[torch.from_numpy(seen.astype(np.int64))] = -torch.inf
                filtered[row] = int((~(line_scores[1:] < own)).sum())
                if bool(own.isnan()) or item in seen:
                    filtered[row] = MISS
                if bool(own.isnan()):
                    kept[row] = MISS
                found += 1
    if found != len(row_of):
        raise ValueError(f"RecBole tests {found} users, this split {len(row_of)}")
    return {"kept": kept, "filtered": filtered}


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "split.npz") as file:
        split = {name: file[name] for name in file.files}
    write_atomic_file(split, folder / "data" / NAME)
    os.chdir(folder)  # RecBole writes its logs into the working directory
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    config_module, data, utils = import_recbole()
    sys.argv = sys.argv[:1]  # RecBole reads options there
    config = config_module.Config(
        model=task["model"], dataset=NAME, config_dict=settings(task, folder)
    )
    utils.init_seed(config["seed"], True)
    utils.init_logger(config)
    dataset = data.create_dataset(config)
    train_data, valid_data, test_data = data.data_preparation(config, dataset)
    model = utils.get_model(config["model"])(config, train_data._dataset).to(config["device"])
    if task["trim"]:
        trim(task["model"], model)
    trainer = utils.get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    curve = train(trainer, train_data, valid_data, folder, config["epochs"], task["paced"])
    own = trainer.evaluate(test_data, load_best_model=True, model_file=str(folder / "best.pth"))
    ranks = rank(trainer.model, dataset, test_data, split)
    np.savez_compressed(folder / "worker.npz", **ranks)
    names = ("learning_rate", "train_batch_size", "stopping_step", "epochs", "MAX_ITEM_LIST_LENGTH")
    outcome = {
        "epochs": len(curve),
        "seconds": sum(point["training_s"] + point["validation_s"] for point in curve),
        "curve": curve,
        "trim": task["trim"],
        "best_epoch": int(torch.load(folder / "best.pth", map_location="cpu")["epoch"]) + 1,
        "validation_ndcg": float(trainer.best_valid_score),
        "own": {name: float(value) for name, value in own.items()},
        "training": {name: config[name] for name in names},
        "torch": torch.__version__,
    }
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
