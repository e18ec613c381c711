"""How good the recommendations are: our models and the published ones, one table a data set.

    python -m benchmarks.quality --dataset amazon-beauty --seeds 3 --json runs/beauty.json
    python -m benchmarks.quality --dataset amazon-beauty --rows causal no-time
    python -m benchmarks.quality --dataset amazon-beauty --rows
    python -m benchmarks.quality --dataset amazon-beauty --rows causal --name causal-lr1e-3 \\
        --set training.lr=0.001
    python -m benchmarks.quality compare runs/quality/amazon-beauty/{no-time,causal}

Every row and seed has a folder RUNS/DATASET/ROW/SEED; a call goes on where an earlier one stopped,
and the table has every row found there, those of `benchmarks.recbole_baseline` as well. `--rows`
without a name trains nothing. What was tried is in benchmarks/quality.md.

The rows lrurec, mamba4rec and tisasrec are our implementations of published models, in
`benchmarks.baselines`: each with its published recipe and window, our batches, loss and ranking.

Full ranking, ties count against the model. `weighed` is `kept` with the model's repeat bias, one
number fitted on validation: where a log has no repeats, that is how the model knows. Published rows
are theirs, not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks.baselines import LRURecConfig, Mamba4RecConfig, TiSASRecConfig
from benchmarks.baselines.baseline import BaselineConfig
from benchmarks.ranks import Ranks, ResultError, View, digest, read_result, write_result
from benchmarks.significance import compare
from benchmarks.ties import ORDERS
from model import UNKNOWN_TIME, Architecture, ModelConfig, Recommender
from model.config import ConfigError
from training.checkpoint import CheckpointError
from training.config import TrainingConfig
from training.dataset import Dataset, Int64s, Protocol, build_dataset
from training.ensemble import train_ensemble
from training.evaluation import rank_targets
from training.interactions import read_log
from training.item_table import read_items, with_features
from training.metrics import CUTOFFS
from training.recipe import model_config, training_config
from training.tables import InputError
from training.trainer import DivergedError, Result, train_model

SEEN = ("kept", "weighed", "filtered")
HIDDEN = "whole, times hidden"
HISTORIES: dict[str, int | None] = {"whole": None, "last 50": 50, "last 200": 200}
TIES = ("log", *ORDERS)
DATA = Path("../shared/data")
RUNS = Path("runs/quality")
ERRORS = (InputError, ResultError, CheckpointError, ConfigError, DivergedError)


@dataclass(frozen=True, slots=True)
class Preset:
    """One row: options of the model and of `TrainingConfig` that differ from their defaults.

    configure: makes the architecture from the data set and the options of the model.
    ensemble: how many are trained apart and served as one. content: whether items' vectors are made
    of their titles and categories, too.
    """

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    configure: Callable[..., ModelConfig | BaselineConfig] = model_config
    ensemble: int = 1
    content: bool = False

    def architecture(self, dataset: Dataset) -> ModelConfig | BaselineConfig:
        return self.configure(dataset, **self.model)

    def with_options(self, options: Sequence[str]) -> Preset:
        """A copy with `model.NAME=VALUE` and `training.NAME=VALUE`, values as JSON or text.

        Raises ResultError for an option of another form.
        """
        parts: dict[str, dict[str, Any]] = {
            "model": dict(self.model),
            "training": dict(self.training),
        }
        for option in options:
            name, equals, text = option.partition("=")
            part, _, key = name.partition(".")
            if part not in parts or not key or not equals:
                raise ResultError(
                    f"--set {option}: must be model.NAME=VALUE or training.NAME=VALUE"
                )
            try:
                parts[part][key] = json.loads(text)
            except ValueError:
                parts[part][key] = text
        title = f"{self.title}; {', '.join(options)}" if options else self.title
        return replace(self, title=title, model=parts["model"], training=parts["training"])


# Adam with the rate that TiM4Rec, LRURec, Mamba4Rec and TiSASRec all publish; when to stop is
# TiM4Rec's.
_PUBLISHED_TRAINING = {
    "lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "warmup": 0, "clip": 1e9,
    "targets": 2048, "max_epochs": 300, "patience": 20,
    "item_init": "random", "ema": 0.0, "time_masking": 0.0, "shuffle_ties": False,
}  # fmt: skip
# TiM4Rec's configuration files of its official code, for Amazon Beauty and for MovieLens.
_OFFICIAL_BEAUTY = {
    "dropout": 0.4, "norm_eps": 1e-5, "ffn_norm_eps": 1e-12, "max_len": 50,
    "p2p_residual": True, "time_dropout": 0.0,
}  # fmt: skip
_OFFICIAL_MOVIELENS = {
    "dropout": 0.2, "norm_eps": 1e-12, "ffn_norm_eps": 1e-12, "max_len": 200,
    "p2p_residual": False, "time_dropout": 0.2,
}  # fmt: skip


def presets(dataset: str) -> dict[str, Preset]:
    """The rows of a data set: our models, and those of others in our own code."""
    movielens = dataset.startswith("ml-")
    official = _OFFICIAL_MOVIELENS if movielens else _OFFICIAL_BEAUTY
    window = 200 if movielens else 50
    return {
        "causal": Preset("TiM4Rec causal, as served: 2 layers, width 64"),
        "causal-gaps": Preset("causal without request time", {"request_time": False}),
        "content": Preset("causal, items by their titles and categories, too", content=True),
        "no-time": Preset("time off (SSD4Rec*)", {"time": "none"}),
        "no-ffn": Preset("causal without FFN", {"ffn": False}),
        "1-layer": Preset("causal, 1 layer", {"n_layers": 1}),
        "3-layers": Preset("causal, 3 layers", {"n_layers": 3}),
        "width-128": Preset("causal, width 128", {"d_model": 128}),
        "width-256": Preset("causal, width 256", {"d_model": 256}),
        "ensemble-2": Preset("ensemble of 2, width 64", ensemble=2),
        "ensemble-3": Preset("ensemble of 3, width 64", ensemble=3),
        "content-3": Preset(
            "ensemble of 3, by titles and categories, too", ensemble=3, content=True
        ),
        "ensemble-2-128": Preset("ensemble of 2, width 128", {"d_model": 128}, ensemble=2),
        "sampled": Preset("causal, loss over a sample of items", {}, {"loss": "sampled"}),
        "random-start": Preset("causal, items start at random", {}, {"item_init": "random"}),
        "tie-order": Preset("equal times in the log's order", {}, {"shuffle_ties": False}),
        "tie-chance": Preset("equal times in a random order", {}, {"shuffle_ties": True}),
        "sequence": Preset(
            "TiM4Rec sequence, official recipe",
            {"time": "sequence", **official},
            _PUBLISHED_TRAINING,
        ),
        # As in their configuration files; by data set, windows and Mamba4Rec's dropout are their
        # papers', a dropout of 0.5 (theirs is 0.2, to be tuned) and the largest interval ours.
        "lrurec": Preset(
            f"our LRURec, its recipe, last {window}",
            {"dropout": 0.2 if movielens else 0.5, "max_len": window},
            _PUBLISHED_TRAINING | {"weight_decay": 0.01, "clip": 5.0},
            LRURecConfig.of,
        ),
        "mamba4rec": Preset(
            f"our Mamba4Rec, its recipe, last {window}",
            {"dropout": 0.2 if movielens else 0.4, "max_len": window},
            _PUBLISHED_TRAINING,
            Mamba4RecConfig.of,
        ),
        "tisasrec": Preset(
            f"our TiSASRec, its recipe with cross-entropy, last {window}",
            {
                "dropout": 0.2 if movielens else 0.5,
                "max_len": window,
                "max_interval": 512 if movielens else 256,
            },
            _PUBLISHED_TRAINING | {"beta2": 0.98},
            TiSASRecConfig.of,
        ),
    }


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of others, not measured here. `note`: why they are not like for like, if so."""

    model: str
    source: str
    seen: str
    figures: dict[str, float]
    request_time: bool = False
    note: str = ""


def _published(
    model: str, source: str, seen: str, *figures: float, request_time: bool = False, note: str = ""
) -> Published:
    named = dict(zip(("HR@10", "NDCG@10", "MRR@10"), figures, strict=False))
    return Published(model, source, seen, named, request_time, note)


_PAPER = "TiM4Rec, arXiv 2409.16182"
_GAPS = "knew every time; here 39.9 % are missing"
SIZES = {"amazon-beauty": (22363, 12101, 198502), "ml-1m-order": (6040, 3416, 999611)}
"""Users, items and interactions that the published figures of a data set are for."""
PUBLISHED: dict[str, list[Published]] = {
    "amazon-beauty": [
        _published("TiM4Rec", _PAPER, "kept", 0.0854, 0.0446, 0.0321),
        _published("Mamba4Rec", _PAPER, "kept", 0.0838, 0.0435),
        _published("SASRec", _PAPER, "kept", 0.0851, 0.0425),
        _published("BSARec", "its published training log", "filtered", 0.1008, 0.0611),
        _published("LRURec", "a rerun by others", "filtered", 0.0956, 0.0572),
    ],
    "ml-1m-order": [
        _published("TiM4Rec", _PAPER, "kept", 0.3310, 0.1932, 0.1512, note=_GAPS),
        _published("Mamba4Rec", _PAPER, "kept", 0.3253, 0.1891),
        _published("SSD4Rec*", _PAPER, "kept", 0.3199, 0.1841),
        _published("SASRec", _PAPER, "kept", 0.3060, 0.1754),
        _published(
            "HSTU-large", "RecTools", "filtered", 0.3642, 0.2164, request_time=True, note=_GAPS
        ),
        _published("HSTU-large", "its authors", "filtered", 0.3294, 0.1893),
    ],
}


def load(name: str, data: Path, split: str, ties: str = "log") -> Dataset:
    """The data set `name` of the folder `data`. Raises InputError where it can't be used.

    Args:
        ties: the order of what a user has at one time: `log` as it is there, or one of
            `benchmarks.ties`.
    """
    path = next(
        (p for p in sorted((data / name).glob("interactions.*")) if p.is_file()),
        data / name / "interactions.csv.gz",
    )
    log = read_log(path)
    if ties == "item" and (log.frame["time_ms"] == UNKNOWN_TIME).any():
        raise InputError(f"{path}: --ties item needs the time of every interaction")
    if ties != "log":
        log = replace(log, frame=ORDERS[ties](log.frame))
    return build_dataset(log, Protocol(split=split))  # type: ignore[arg-type]


def item_table(folder: Path, wanted: bool) -> pl.DataFrame | None:
    """The item table of a data set's folder, where it is wanted."""
    return read_items(folder / "items.csv.gz") if wanted else None


def run_folder(runs: Path, dataset: str, split: str, ties: str = "log") -> Path:
    """Where the rows of a data set are kept."""
    name = dataset if split == "leave-one-out" else f"{dataset}-{split}"
    return runs / (name if ties == "log" else f"{name}-ties-{ties}")


def rank_views(model: Recommender, dataset: Dataset, console: Console) -> Ranks:
    """The test target's rank in every view that the model has."""
    longest = int((dataset.test.ends - dataset.histories.offsets[dataset.test.users]).max())
    longest = min(longest, model.window or longest)
    asked = (False, True) if model.config.uses_request_time else (False,)
    found: dict[View, Int64s] = {}
    for history, last in HISTORIES.items():
        if last is not None and last >= longest:
            found |= {
                View(view.seen, history, view.request_time): ranks
                for view, ranks in found.items()
                if view.history == "whole"
            }
            continue
        rankings = rank_targets(
            model, dataset.histories, dataset.test, last=last, at_target_time=asked, top=0
        )
        for known, ranking in rankings.items():
            for seen, ranks in ranking.ranks().items():
                found[View(seen, history, known)] = ranks
        console.print(f"ranked, {history} history", highlight=False)
    if model.config.time_use == "optional" and _lacks_times(dataset):
        # Which times are missing must not tell the target: this row can't know.
        hidden = replace(
            dataset.histories, times=np.full_like(dataset.histories.times, UNKNOWN_TIME)
        )
        ranking = rank_targets(model, hidden, dataset.test, top=0)[False]
        found[View("kept", HIDDEN)] = ranking.kept
        found[View("filtered", HIDDEN)] = ranking.filtered
    return Ranks.of(dataset, found)


def measure(
    dataset: Dataset,
    name: str,
    row: str,
    preset: Preset,
    seed: int,
    folder: Path,
    overrides: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Trains and tests one row with one seed, or reads what an earlier call measured.

    Raises ResultError where `folder` holds a run with other settings or data.
    """
    try:
        options = preset.training | overrides | {"seed": seed}
        config = training_config(dataset, **options)
        architecture = preset.architecture(dataset)
    except (TypeError, ValueError) as error:
        raise ResultError(f"row {row}: {error}") from error
    if architecture.time_use == "required" and _lacks_times(dataset):
        raise ResultError(
            f"row {row}: needs the time of every interaction, and {name} lacks some; "
            "leave the row out"
        )
    other = ResultError(
        f"{folder}: holds a run with other settings or data; "
        "remove it, or give this one its own --name or --runs"
    )
    result = read_result(folder)
    if result is not None:
        default = preset.configure(dataset)
        if result["data"] != digest(dataset) or not _same_run(
            result, architecture, default, config
        ):
            raise other
        if all(result["training"][key] == getattr(config, key) for key in EXTENT):
            return result
    console.print(f"{row}, seed {seed}: {preset.title}", highlight=False)
    try:
        trained: Result[Any]
        if isinstance(architecture, BaselineConfig):
            trained = train_model(dataset, architecture.build, config, folder, console=console)
        else:
            trained = train_ensemble(
                dataset, architecture, config, preset.ensemble, folder, console=console
            )
    except CheckpointError as error:
        raise other from error
    return write_result(
        folder,
        rank_views(trained.model, dataset, console),
        {
            "dataset": name,
            "sizes": dataset.describe(),
            "protocol": dataset.protocol.to_dict(),
            "row": row,
            "title": preset.title,
            "seed": seed,
            "data": digest(dataset),
            "model": architecture.to_dict(),
            "ensemble": preset.ensemble,
            "training": config.to_dict(),
            "best_epoch": trained.best_epoch,
            "epochs": trained.epochs,
            "seconds": trained.seconds,
            "validation_ndcg": trained.best_ndcg,
            "repeat_bias": trained.model.repeat_bias,
        },
    )


EXTENT = ("max_epochs", "patience")
"""Settings that lengthen a run without making it another."""


def _lacks_times(dataset: Dataset) -> bool:
    return bool((dataset.histories.times == UNKNOWN_TIME).any())


def _same_run(
    result: dict[str, Any],
    architecture: Architecture,
    default: Architecture,
    config: TrainingConfig,
) -> bool:
    """Whether a result has these settings; those that came later count with their defaults."""
    pairs = (
        (result["model"], architecture.to_dict(), default.to_dict()),
        (result["training"], config.to_dict(), TrainingConfig().to_dict()),
    )
    return all(
        json.dumps(stored.get(key, default[key])) == json.dumps(value)
        for stored, now, default in pairs
        for key, value in now.items()
        if key not in (*EXTENT, "device", "threads")
    )


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of one row, a line a view.

    Views that a seed lacks are of those that have them; `seeds` says how many these are.
    """
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        for line in result["rows"]:
            key = (line["users"], line["seen"], line["history"], line["request_time"])
            lines.setdefault(key, []).append(line)
    names = [f"{metric}@{k}" for metric in ("HR", "NDCG", "MRR") for k in CUTOFFS]
    return [
        {
            "row": results[0]["row"],
            "title": results[0]["title"],
            "users": users,
            "n_users": found[0]["n_users"],
            "seen": seen,
            "history": history,
            "request_time": asked,
            "seeds": len(found),
            "figures": {name: _spread([line[name] for line in found]) for name in names},
        }
        for (users, seen, history, asked), found in lines.items()
    ]


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "each": values}


def collect(folder: Path, order: Sequence[str], data: str) -> list[dict[str, Any]]:
    """The summary lines of every row found in `folder`: `order` first, then the others.

    Args:
        data: digest of the data set.

    Raises ResultError where a result is of other data, or the seeds of a row of other settings.
    """
    found = {path.name for path in folder.glob("*") if path.is_dir()}
    rows = [row for row in order if row in found] + sorted(found - set(order))
    lines = []
    for row in rows:
        results: list[dict[str, Any]] = []
        for seed in sorted(path for path in (folder / row).glob("*") if path.is_dir()):
            result = read_result(seed)
            if result is None:
                continue
            if result["data"] != data:
                raise ResultError(f"{seed}: is a result of other data; remove it")
            if results and not _alike(results[0]["training"], result["training"]):
                raise ResultError(
                    f"{seed}: has other settings than the row's first seed; remove it"
                )
            results.append(result)
        if results:
            lines += summarise(results)
    return lines


def _alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    same = (a.keys() & b.keys()) - {"seed", "device", "threads"}
    return all(a[key] == b[key] for key in same)


def published(name: str, dataset: Dataset) -> list[Published]:
    """What others published for exactly these users, items and interactions."""
    sizes = dataset.describe()
    if dataset.protocol.split != "leave-one-out" or SIZES.get(name) != (
        sizes["users"],
        sizes["items"],
        sizes["interactions"],
    ):
        return []
    return PUBLISHED[name]


def table(
    lines: Sequence[dict[str, Any]],
    others: Sequence[Published],
    *,
    title: str,
    histories: Sequence[str],
    cutoff: int,
) -> Table:
    """Ours and the published rows: seen items kept, the same with the repeat bias, then filtered.

    Figures published with seen items kept stand beside both of ours.
    """
    names = [f"{metric}@{cutoff}" for metric in ("HR", "NDCG", "MRR")]
    head = ("seen", "model", "history", "request time", "seeds", *names, "what, or whose figures")
    shown = Table(*head, title=title)
    for seen in SEEN:
        for line in lines:
            if line["seen"] != seen or line["history"] not in histories:
                continue
            shown.add_row(
                seen,
                line["row"],
                line["history"],
                _asked(line["request_time"]),
                str(line["seeds"]),
                *(_shown(line["figures"][name]) for name in names),
                line["title"],
            )
        for other in others:
            compared = "kept" if seen == "weighed" else seen
            if other.seen != compared or not any(name in other.figures for name in names):
                continue
            note = f"; NOT LIKE FOR LIKE: {other.note}" if other.note else ""
            shown.add_row(
                seen,
                other.model,
                "",
                _asked(other.request_time),
                "",
                *(f"{other.figures[n]:.4f}" if n in other.figures else "" for n in names),
                f"published: {other.source}{note}",
            )
        shown.add_section()
    return shown


def _asked(request_time: bool) -> str:
    return "known" if request_time else "unknown"


def _shown(figure: dict[str, Any]) -> str:
    if figure["deviation"] is None:
        return f"{figure['mean']:.4f}"
    return f"{figure['mean']:.4f} ± {figure['deviation']:.4f}"


def run(args: argparse.Namespace, console: Console) -> None:
    rows = presets(args.dataset)
    if args.rows is not None and (unknown := [row for row in args.rows if row not in rows]):
        raise ResultError(f"--rows: no row {', '.join(unknown)}; there are {', '.join(rows)}")
    if (args.name or args.set) and not (args.name and args.rows and len(args.rows) == 1):
        raise ResultError("--set and --name make one new row: give --name, and one of --rows")
    if args.name in rows:
        raise ResultError(f"--name {args.name}: is a row already; choose another")
    dataset = load(args.dataset, args.data, args.split, args.ties)
    folder = run_folder(args.runs, args.dataset, args.split, args.ties)
    names = list(rows) if args.rows is None else args.rows
    if args.rows is None and not (args.data / args.dataset / "items.csv.gz").exists():
        names = [name for name in names if not rows[name].content]
    if args.rows is None and _lacks_times(dataset):
        need = [name for name in rows if rows[name].architecture(dataset).time_use == "required"]
        names = [name for name in names if name not in need]
        console.print(f"left out: {', '.join(need)}, which need every time")
    overrides = {
        key: getattr(args, option)
        for key, option in (
            ("max_epochs", "epochs"),
            ("patience", "patience"),
            ("threads", "threads"),
            ("device", "device"),
        )
        if getattr(args, option) is not None
    }
    for seed in range(args.seeds):
        for row in names:
            preset = rows[row].with_options(args.set)
            name = args.name or row
            about = with_features(dataset, item_table(args.data / args.dataset, preset.content))
            measure(
                about, args.dataset, name, preset, seed,
                folder / name / str(seed), overrides, console,
            )  # fmt: skip
    lines = collect(folder, list(rows), digest(dataset))
    others = published(args.dataset, dataset)
    title = f"{args.dataset}, {args.split}" + (f", ties: {args.ties}" if args.ties != "log" else "")
    everyone = [line for line in lines if line["users"] == "all"]
    histories = [*args.history, HIDDEN]
    console.print(table(everyone, others, title=title, histories=histories, cutoff=args.cutoff))
    if long := [line for line in lines if line["users"] != "all"]:
        title += f": {long[0]['n_users']:,} users with {long[0]['users']} interactions"
        console.print(table(long, [], title=title, histories=tuple(HISTORIES), cutoff=args.cutoff))
    if not others:
        console.print(f"no published figures are for {args.dataset} with this split")
    if args.json:
        report = {
            "dataset": args.dataset,
            "sizes": dataset.describe(),
            "protocol": dataset.protocol.to_dict(),
            "rows": lines,
            "published": [asdict(other) for other in others],
        }
        args.json.write_text(json.dumps(report, indent=1))


def run_compare(args: argparse.Namespace, console: Console) -> None:
    views = tuple(View(args.seen, args.history, args.request_time in (who, "both")) for who in "ab")
    found = compare(
        args.a,
        args.b,
        (views[0], views[1]),
        metric=args.metric,
        longer_than=args.longer_than,
        resamples=args.resamples,
        seed=args.seed,
    )
    for name, path, view, value in (
        ("A", args.a, views[0], found.a),
        ("B", args.b, views[1], found.b),
    ):
        console.print(f"{name}  {args.metric} {value:.5f}  {path} ({view})", highlight=False)
    console.print(
        f"B - A  {found.difference:+.5f}, 95 % interval {found.low:+.5f} to {found.high:+.5f} "
        f"({found.relative:+.2%}, {found.relative_low:+.2%} to {found.relative_high:+.2%}); "
        f"{found.users} users, {args.resamples} resamples",
        highlight=False,
    )
    if args.json:
        args.json.write_text(json.dumps(found.to_dict(), indent=1))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="a folder of --data")
    parser.add_argument("--rows", nargs="*", help="default: all of them")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--split", choices=("leave-one-out", "temporal"), default="leave-one-out")
    parser.add_argument("--ties", choices=TIES, default=TIES[0], help="order of equal times")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--epochs", type=int, help="at most; default: the row's own")
    parser.add_argument("--patience", type=int, help="default: the row's own")
    parser.add_argument("--threads", type=int, help="of torch; part of a run's identity")
    parser.add_argument("--device")
    parser.add_argument("--name", help="names a new row, made of one of --rows and --set")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="PART.NAME=VALUE",
        help="options of ModelConfig (model.NAME) and of TrainingConfig (training.NAME)",
    )  # fmt: skip
    parser.add_argument("--history", nargs="+", choices=tuple(HISTORIES), default=["whole"])
    parser.add_argument("--cutoff", type=int, choices=CUTOFFS, default=10)
    parser.add_argument("--json", type=Path)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.quality compare",
        description="B - A with a 95 % interval: paired bootstrap over users.",
    )
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, help="the folder of a row, or of one of its seeds")
    parser.add_argument("--metric", default="NDCG@10")
    parser.add_argument("--seen", type=_seen, choices=SEEN, default="kept")
    parser.add_argument("--history", choices=(*HISTORIES, HIDDEN), default="whole")
    parser.add_argument(
        "--request-time", choices=("neither", "a", "b", "both"), default="neither",
        help="which of them knows the request time",
    )  # fmt: skip
    parser.add_argument("--longer-than", type=int, default=0, help="interactions of a user")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser


def _seen(given: str) -> str:
    if given == "masked":
        print("--seen masked is now --seen filtered", file=sys.stderr)
        return "filtered"
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Into a file, a table is as wide as its words, not as a terminal that is not there.
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if given[:1] == ["compare"]:
            run_compare(compare_parser().parse_args(given[1:]), console)
        else:
            run(parser().parse_args(given), console)
    except ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
