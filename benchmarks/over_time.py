"""How good the recommendations are forward in time: what is served, its parts, and counting.

    python -m benchmarks.over_time --dataset amazon-beauty --json runs/over-time-beauty.json
    python -m benchmarks.over_time --dataset amazon-beauty --policies transitions item-knn
    python -m benchmarks.over_time --dataset amazon-beauty --policies --artefact artefacts/mine

The log is cut at `--cut` of its interactions in time; every later event's item is ranked among the
whole catalogue given all that came before it (`training.forward.walk` has the rules).

`frozen` is our default recipe trained on what lies before the cut; `retrained` is that model
trained on, for two epochs on every interaction so far, at each later border of a period.

`served` is what the product does: the model that `tim4rec train` publishes at the cut, with the
live layer, which counts every event; its mixture is fitted before the cut and anew at each border.
`one-mixture` keeps the first mixture, `live-off` is that model alone.

`learn`, which has to be asked for, is `served` with a learner (`benchmarks.forward.learning`): at
each later border a candidate is trained on from the model that is served, judged as `tim4rec judge`
does, and served if it is not worse.

What is trained is kept in RUNS/DATASET and a call goes on where an earlier one stopped. An artefact
of `--artefact` is ranked as it is, whatever it was trained on. States follow each event. A model
that takes the request time is asked at three moments, and with an unknown one; without the live
layer, users of whom it knows nothing get the 30-day popularity. `popularity` (half-life 30 days),
`transitions` and `item-knn` are counted online.

`--new-items` says how what is served ranks the items of DATASET's item table that have had no
event; the slice `items never seen before` is of them.

The last lines say where `served` is behind the best of the others asked at the same time.
`benchmarks.over_time_pictures` draws what --json wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.forward.behind import behind
from benchmarks.forward.behind import table as behind_table
from benchmarks.forward.learning import LEARN, Learner, Trained, learned_ranks
from benchmarks.forward.live import ONE_MIXTURE, SERVED, live_ranks
from benchmarks.forward.new_items import CONTENT, HOW, NONE, with_table
from benchmarks.forward.summary import summarise, tables
from benchmarks.forward.training import (
    frozen_model,
    refitted_model,
    retrained_models,
    warm_start,
)
from benchmarks.quality import DATA, ERRORS
from benchmarks.ranks import ResultError
from model.artefact import ArtefactError, load_artefact
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.item_knn import ItemKNN
from training.forward.models import Served, model_ranks, with_fallback
from training.forward.popularity import Popularity
from training.forward.transitions import Transitions
from training.forward.walk import DAY_MS, Policy, Walk, walk_forward
from training.interactions import Log, read_log
from training.item_table import read_items

RUNS = Path("runs/over_time")
COUNTED: dict[str, Callable[[Events], Policy]] = {
    "popularity": Popularity,
    "transitions": Transitions,
    "item-knn": ItemKNN,
}
LIVE_OFF = "live-off"
TRAINED = ("frozen", "retrained", SERVED, ONE_MIXTURE, LIVE_OFF)
GRAINS = {"moment": 1, "day": DAY_MS}


def trained_ranks(
    log: Log, walk: Walk, args: argparse.Namespace, console: Console
) -> dict[str, dict[str, Int64s]]:
    """What the policies of `TRAINED` found, by request time."""
    folder = args.runs / args.dataset / f"cut-{args.cut:g}" / str(args.seed)
    options = {"seed": args.seed, "threads": args.threads, "device": args.device}
    whole = options | {"max_epochs": args.epochs, "patience": args.patience}
    wanted = set(args.policies)
    found: dict[str, dict[str, Int64s]] = {}
    if wanted & {"frozen", "retrained"}:
        frozen = frozen_model(log, walk, folder / "frozen", console, **whole)
    if "frozen" in wanted:
        found["frozen"] = model_ranks(walk, [frozen] * args.periods)
    if "retrained" in wanted:
        place = folder / f"retrained-{args.periods}"
        retrained = retrained_models(log, walk, frozen, place, console, **options)
        found["retrained"] = model_ranks(walk, retrained)
    if wanted & {SERVED, ONE_MIXTURE, LIVE_OFF, LEARN}:
        how = args.new_items
        name = "published" if how != CONTENT else f"published-{CONTENT}"
        table = None if how == NONE else read_items(args.data / args.dataset / "items.csv.gz")
        learned = table if how == CONTENT else None
        published = refitted_model(log, walk, folder / name, console, learned, **whole)
        if table is not None:
            published = with_table(published, table, how)
    grain_ms = GRAINS[args.count_every]
    if LEARN in wanted:

        def step(old: Trained, so_far: Log, place: Path) -> Trained:
            served, mixture = warm_start(
                old.served, old.until_ms, old.mixture, so_far, place, console, **options
            )
            return Trained(served, int(so_far.frame["time_ms"].to_numpy().max()) + 1, mixture)

        learner = Learner(log, step, folder / f"learned-{args.periods}", console)
        found[LEARN] = learned_ranks(walk, published, learner, seed=args.seed, grain_ms=grain_ms)
    if wanted & {SERVED, ONE_MIXTURE}:
        found |= live_ranks(log, walk, published, seed=args.seed, grain_ms=grain_ms)
    if LIVE_OFF in wanted:
        found[LIVE_OFF] = model_ranks(walk, [published.refitted] * args.periods)
    return {name: own for name, own in found.items() if name in wanted}


def all_ranks(log: Log, args: argparse.Namespace, console: Console) -> tuple[Walk, dict[str, Any]]:
    """The walk, and each policy's ranks (T)."""
    events = Events.of(log)
    walk = Walk.of(events, args.cut, args.periods)
    models = trained_ranks(log, walk, args, console)
    for path in args.artefact:
        artefact = load_artefact(path)
        served = Served(artefact.model, artefact.scored_items.ids)
        models[path.name] = model_ranks(walk, [served] * args.periods)
    counted = [name for name in COUNTED if name in args.policies or name == "popularity"]
    policies = {name: COUNTED[name](events) for name in counted}
    ranks = walk_forward(walk, policies, grain_ms=GRAINS[args.count_every])
    for name, by_time in models.items():
        filled = with_fallback(by_time, ranks["popularity"])
        ranks |= {f"{name}, {asked}": own for asked, own in filled.items()}
    return walk, ranks


def run(args: argparse.Namespace, console: Console) -> None:
    if args.new_items != NONE and LEARN in args.policies:
        raise ResultError(f"--new-items {args.new_items} is not for the policy {LEARN}")
    path = args.data / args.dataset / "interactions.csv.gz"
    walk, ranks = all_ranks(read_log(path), args, console)
    borders = [str(np.datetime64(int(border), "ms"))[:16] for border in walk.borders]
    console.print(f"{args.dataset}: {len(walk.rows):,} events, periods from {', '.join(borders)}")
    figures = summarise(walk, ranks)
    for shown in tables(figures):
        console.print(shown)
    places = behind(figures, SERVED)
    if SERVED in args.policies:
        console.print(behind_table(places, SERVED))
    if args.json:
        report = {
            "dataset": args.dataset,
            "cut": args.cut,
            "periods": borders,
            "events": len(walk.rows),
            "counted_every": args.count_every,
            "new_items": args.new_items,
            "seed": args.seed,
            "figures": [row.to_dict() for row in figures],
            "behind": [place.to_dict() for place in places],
        }
        args.json.write_text(json.dumps(report, indent=1))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.over_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = (*COUNTED, *TRAINED)
    parser.add_argument("--dataset", required=True, help="a folder of --data")
    parser.add_argument(
        "--policies",
        nargs="*",
        choices=(*usual, LEARN),
        default=usual,
        metavar="NAME",
        help=f"of {', '.join(usual)}, {LEARN}; default: all but {LEARN}",
    )
    parser.add_argument(
        "--new-items", choices=HOW, default=NONE,
        help="how what is served ranks items of the item table without an event: not at all; as a "
        "service does without a content, by their categories; or by the content it learns",
    )  # fmt: skip
    parser.add_argument("--artefact", nargs="+", type=Path, default=[], help="trained models")
    parser.add_argument(
        "--cut", type=float, default=0.7, help="share of the interactions before it"
    )
    parser.add_argument("--periods", type=int, default=6, help="of equally many events")
    parser.add_argument(
        "--count-every", choices=GRAINS, default="moment",
        help="whose events are ranked before any of them is counted",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epochs", type=int, default=24, help="at most, of a model that is not trained on"
    )
    parser.add_argument("--patience", type=int, default=4, help="of such a model")
    parser.add_argument("--threads", type=int, default=1, help="of torch; part of a run's identity")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    # Into a file, a table is as wide as its words, not as a terminal that is not there.
    console = Console(width=None if sys.stdout.isatty() else 240)
    try:
        run(parser().parse_args(arguments), console)
    except (*ERRORS, ArtefactError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
