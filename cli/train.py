"""`tim4rec train`: an interaction log in, an artefact out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.console import CommandError, say, say_renamed
from cli.device import choose_device, require_kernels
from cli.publish import Plan, publish
from cli.steps import Kinds, read_steps
from model.config import GapMix, TimePath
from model.items import ItemsError
from model.kernels import KernelChoice
from training import parallel
from training.config import ItemInit, Loss, TrainingConfig, TrainingPrecision, ValidationSeen
from training.dataset import Split
from training.interactions import Log
from training.item_table import read_items
from training.recipe import CORE, REFITTED_CORE, Recipe
from training.tables import describe_bad_rows

MODEL, LOOP, DATA = "Model", "Training", "Data"
DEFAULTS = TrainingConfig()


def train(
    log: Annotated[
        Path,
        typer.Argument(
            help="Interactions: CSV, CSV.gz or Parquet with user_id, item_id, timestamp (epoch "
            "seconds or milliseconds, ISO 8601, or empty)."
        ),
    ],
    items: Annotated[
        Path | None,
        typer.Option(
            help="Item table: item_id, title, categories or genres (`|`-separated).",
            rich_help_panel=DATA,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where the artefact goes.", show_default="artefacts/NAME"
        ),
    ] = None,
    core: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Drop users and items with fewer interactions.",
            show_default=f"{REFITTED_CORE}, or {CORE} with --no-refit",
            rich_help_panel=DATA,
        ),
    ] = None,
    core_users: Annotated[
        int | None,
        typer.Option(min=1, help="... users.", show_default="--core", rich_help_panel=DATA),
    ] = None,
    core_items: Annotated[
        int | None,
        typer.Option(min=1, help="... items.", show_default="--core", rich_help_panel=DATA),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(
            help="What is set aside to validate on, and to test on.",
            show_default="forward, or leave-one-out with --no-refit",
            rich_help_panel=DATA,
        ),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            help="In the end, train for 2 epochs on every row, what was set aside included, and "
            "write that model. The figures are those of the model before.",
            rich_help_panel=LOOP,
        ),
    ] = True,
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows", help="Leave out rows that can't be read.", rich_help_panel=DATA
        ),
    ] = False,
    kinds: Kinds = None,
    time: Annotated[
        TimePath,
        typer.Option(
            help="causal: past gaps and request time, constant-time steps. none: order only. "
            "sequence: the paper's, served by recomputing its window.",
            rich_help_panel=MODEL,
        ),
    ] = "causal",
    d_model: Annotated[int, typer.Option(help="Width.", rich_help_panel=MODEL)] = 64,
    layers: Annotated[int, typer.Option(help="Blocks.", rich_help_panel=MODEL)] = 2,
    ensemble: Annotated[
        int,
        typer.Option(
            min=1,
            help="Models to train apart, with other seeds, and to serve as one whose scores are "
            "their sums: more accurate, a state and a step as many times as large.",
            rich_help_panel=MODEL,
        ),
    ] = 1,
    towers: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    d_state: Annotated[int, typer.Option(help="State size a channel.", rich_help_panel=MODEL)] = 32,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            help="Dropout probability.",
            show_default="0.5 for histories below 20 on average, else 0.2; quick: half of it",
            rich_help_panel=MODEL,
        ),
    ] = None,
    gap_mix: Annotated[
        GapMix | None,
        typer.Option(
            help="(causal) How a gap changes the step size.",
            show_default="the model's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    gap_embedding: Annotated[
        bool | None,
        typer.Option(help="(causal) Add an embedding of the gap.", rich_help_panel=MODEL),
    ] = None,
    request_time: Annotated[
        bool | None,
        typer.Option(help="(causal) Use the time of the request.", rich_help_panel=MODEL),
    ] = None,
    window: Annotated[
        int, typer.Option(help="(sequence) Window length.", rich_help_panel=MODEL)
    ] = 50,
    recipe: Annotated[
        Recipe,
        typer.Option(
            help="full: until validation gets no better. quick: 5 epochs at a learning rate that "
            "falls to 0, validated once.",
            rich_help_panel=LOOP,
        ),
    ] = "full",
    epochs: Annotated[
        int | None,
        typer.Option(
            help="At most this many.",
            show_default=f"{DEFAULTS.max_epochs}, or the recipe's",
            rich_help_panel=LOOP,
        ),
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after this many epochs without a better validation NDCG@10.",
            rich_help_panel=LOOP,
        ),
    ] = DEFAULTS.patience,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.",
            show_default=f"{DEFAULTS.lr:g}, or the recipe's",
            rich_help_panel=LOOP,
        ),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="AdamW's, on matrices.", rich_help_panel=LOOP)
    ] = DEFAULTS.weight_decay,
    label_smoothing: Annotated[
        float, typer.Option(help="Of the softmax loss.", rich_help_panel=LOOP)
    ] = DEFAULTS.label_smoothing,
    ema: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9999,
            help="Decay of an average of the weights that is validated and kept; 0: none.",
            show_default="0.995, or the recipe's",
            rich_help_panel=LOOP,
        ),
    ] = None,
    item_init: Annotated[
        ItemInit | None,
        typer.Option(
            help="Where item embeddings start: at random, or at vectors of which items meet in "
            "users' histories.",
            show_default="cooccurrence",
            rich_help_panel=LOOP,
        ),
    ] = None,
    loss: Annotated[
        Loss,
        typer.Option(
            help="Softmax over the whole catalogue, or over a sample: for 100 000 items and more.",
            rich_help_panel=LOOP,
        ),
    ] = "full",
    negatives: Annotated[
        int, typer.Option(help="(sampled) Items drawn a step.", rich_help_panel=LOOP)
    ] = DEFAULTS.negatives,
    negatives_power: Annotated[
        float,
        typer.Option(
            help="(sampled) Draw by popularity to this power; 0: uniformly.", rich_help_panel=LOOP
        ),
    ] = DEFAULTS.negatives_power,
    targets: Annotated[
        int, typer.Option(help="Targets of the loss a step.", rich_help_panel=LOOP)
    ] = DEFAULTS.targets,
    max_len: Annotated[
        int, typer.Option(help="Longest training window.", rich_help_panel=LOOP)
    ] = DEFAULTS.max_len,
    context: Annotated[
        int,
        typer.Option(
            help="Interactions before a window that its first state is made of.",
            rich_help_panel=LOOP,
        ),
    ] = DEFAULTS.context,
    time_masking: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of interactions whose time is hidden in training.",
            show_default="the share of unknown times",
            rich_help_panel=LOOP,
        ),
    ] = None,
    shuffle_ties: Annotated[
        bool | None,
        typer.Option(
            "--shuffle-ties/--keep-ties",
            help="Interactions of a user at the same time stand in another order each epoch.",
            show_default="shuffled where that order is chance",
            rich_help_panel=LOOP,
        ),
    ] = None,
    validation_users: Annotated[
        int, typer.Option(help="Validate on a sample of users; 0: all.", rich_help_panel=LOOP)
    ] = DEFAULTS.validation_users,
    validation_seen: Annotated[
        Literal[ValidationSeen, "masked"],
        typer.Option(
            metavar="<auto|kept|filtered>",
            help="Whether validation ranks items that the user has had; auto: only where users "
            "come back to items.",
            rich_help_panel=LOOP,
        ),
    ] = "auto",
    precision: Annotated[
        TrainingPrecision,
        typer.Option(
            help="Of the layers in training; the scan, the loss and the artefact are float32.",
            rich_help_panel=LOOP,
        ),
    ] = "float32",
    kernels: Annotated[
        KernelChoice,
        typer.Option(
            help="Of the scan: auto takes Triton's on a GPU where the extra gpu is installed.",
            rich_help_panel=LOOP,
        ),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(help="Same seed, same machine: same weights.", rich_help_panel=LOOP)
    ] = DEFAULTS.seed,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh", help="Go on with an interrupted run.", rich_help_panel=LOOP
        ),
    ] = True,
    threads: Annotated[
        int, typer.Option(help="CPU threads; 0: torch's choice.", rich_help_panel=LOOP)
    ] = DEFAULTS.threads,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=LOOP)
    ] = "auto",
) -> None:
    """Train a model on an interaction log and write it as an artefact.

    The last tenth of the log in time is set aside to validate on, and trained on in the end. For
    figures to compare with papers, --no-refit sets each user's last two interactions aside. A run
    that was killed goes on where it stopped when the same command is given again.
    """
    if towers is not None:
        say_renamed("--towers", "--ensemble")
        ensemble = towers
    if validation_seen == "masked":
        say_renamed("--validation-seen masked", "--validation-seen filtered")
        validation_seen = "filtered"
    name = _name(log)
    read = read_steps(log, kinds, skip_bad_rows=skip_bad_rows)
    table = None if items is None else read_items(items, skip_bad_rows=skip_bad_rows)
    if parallel.rank() == 0:
        _say_what_was_read(log, read)
    device = choose_device(device)
    require_kernels(kernels, device)
    architecture = {
        "time": time,
        "d_model": d_model,
        "n_layers": layers,
        "d_state": d_state,
        "max_len": window,
    } | _given(
        dropout=dropout,
        gap_mix=gap_mix,
        gap_embedding=gap_embedding,
        request_time=request_time,
    )
    training = {
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "loss": loss,
        "negatives": negatives,
        "negatives_power": negatives_power,
        "targets": targets,
        "max_len": max_len,
        "context": context,
        "patience": patience,
        "validation_users": validation_users,
        "validation_seen": validation_seen,
        "precision": precision,
        "kernels": kernels,
        "seed": seed,
        "threads": threads,
        "device": device,
    } | _given(
        lr=lr,
        max_epochs=epochs,
        ema=ema,
        item_init=item_init,
        time_masking=time_masking,
        shuffle_ties=shuffle_ties,
    )
    plan = Plan(
        recipe=recipe,
        refit=refit,
        split=split,
        core_users=core_users or core,
        core_items=core_items or core,
        members=ensemble,
        architecture=architecture,
        training=training,
    )
    try:
        publish(name, read, table, plan, folder or Path("artefacts", name), resume=resume)
    except ItemsError as error:
        raise CommandError(f"{log}: {error}") from None


def _say_what_was_read(path: Path, log: Log) -> None:
    if log.bad_row_count:
        say(f"{path}: {log.bad_row_count} rows left out:")
        say(describe_bad_rows(log.bad_rows, log.bad_row_count))
    for note in log.notes:
        say(f"{path}: {note}")


def _given(**options: Any) -> dict[str, Any]:
    """Those that were not left to the recipe."""
    return {name: value for name, value in options.items() if value is not None}


def _name(log: Path) -> str:
    """The log's name without endings; its folder's where it is merely called interactions."""
    stem = log.name.split(".")[0]
    return log.resolve().parent.name if stem == "interactions" else stem
