"""Which way of using the gaps helps: candidates of the causal time path, trained side by side.

    python -m benchmarks.time_paths --json runs/time_paths.json LOG [LOG ...]

Every run is kept in --runs and goes on where it stopped. NDCG@10 and HR@10 on the test
interaction, full ranking, seen items kept; `asked` rows know the request time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training.config import TrainingConfig
from training.dataset import Protocol, build_dataset
from training.evaluation import evaluate_offline
from training.interactions import read_log
from training.recipe import model_config
from training.trainer import train

CANDIDATES: dict[str, dict[str, Any]] = {
    "none": {"time": "none"},
    "product": {"gap_mix": "product", "gap_embedding": False},
    "factor": {"gap_mix": "factor", "gap_embedding": False},
    "embedding": {"gap_mix": "none", "gap_embedding": True},
    "factor+embedding": {"gap_mix": "factor", "gap_embedding": True},
}


def measure(log: Path, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one candidate, or reads what an earlier call measured."""
    folder = args.runs / log.resolve().parent.name / name.replace("+", "-") / str(seed)
    done = folder / "result.json"
    if done.exists():
        result: dict[str, Any] = json.loads(done.read_text())
        return result
    dataset = build_dataset(read_log(log), Protocol())
    config = TrainingConfig(
        seed=seed,
        lr=args.lr,
        max_epochs=args.epochs,
        patience=args.patience,
        validation_seen="kept",
        threads=args.threads,
    )
    trained = train(
        dataset, model_config(dataset, **CANDIDATES[name]), config, folder, console=Console()
    )
    rows, _ = evaluate_offline(trained.model, dataset.histories, dataset.test)
    result = {
        "dataset": log.resolve().parent.name,
        "candidate": name,
        "seed": seed,
        "best_epoch": trained.best_epoch,
        "epochs": trained.epochs,
        "seconds": trained.seconds,
        "validation_ndcg": trained.best_ndcg,
        "rows": [row.to_dict() for row in rows if row.history == "whole"],
    }
    done.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--runs", type=Path, default=Path("runs/time_paths"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = [
        measure(log, name, seed, args)
        for log in args.logs
        for seed in range(args.seeds)
        for name in args.candidates
    ]
    table = Table("data set", "candidate", "seeds", "asked", "HR@10", "NDCG@10", "NDCG@10 each")
    for dataset in dict.fromkeys(r["dataset"] for r in results):
        for name in args.candidates:
            chosen = [r for r in results if (r["dataset"], r["candidate"]) == (dataset, name)]
            for asked in (False, True):
                rows = [
                    row
                    for r in chosen
                    for row in r["rows"]
                    if row["seen"] == "kept" and row["request_time"] is asked
                ]
                if not rows:
                    continue
                ndcg = [row["NDCG@10"] for row in rows]
                table.add_row(
                    dataset,
                    name,
                    str(len(rows)),
                    "yes" if asked else "no",
                    f"{statistics.mean(row['HR@10'] for row in rows):.4f}",
                    f"{statistics.mean(ndcg):.4f}",
                    " ".join(f"{value:.4f}" for value in ndcg),
                )
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
