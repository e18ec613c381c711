"""`tim4rec train`: an interaction log in, an artefact out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli import train_options as options
from cli.console import CommandError, say_renamed
from cli.device import choose_device, require_kernels
from cli.publish import Plan, publish
from cli.scoring import publish_scoring
from cli.steps import Kinds, chosen_kinds, read_steps, say_overlap, say_what_was_read
from cli.table_options import AnyTime, Columns, Encoding, ItemColumns, TimeFormat
from cli.warm_start import publish_warm
from model.items import ItemsError
from model.times import parse_time
from model.trained_kinds import trained_kinds
from training import parallel
from training.interactions import Log
from training.item_table import read_items
from training.table_format import TableFormat
from training.tables import InputError

DEFAULTS = options.DEFAULTS


def train(
    log: options.LogFile,
    items: options.ItemTable = None,
    folder: options.Out = None,
    core: options.Core = None,
    core_users: options.CoreUsers = None,
    core_items: options.CoreItems = None,
    split: options.SplitName = None,
    skip_bad_rows: options.SkipBadRows = False,
    kinds: Kinds = None,
    until: options.Until = None,
    columns: Columns = None,
    item_columns: ItemColumns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    parent: options.From = None,
    replay: options.ReplayShare = None,
    scoring_only: options.ScoringOnly = False,
    time: options.Time = None,
    d_model: options.DModel = None,
    layers: options.Layers = None,
    ensemble: options.Ensemble = None,
    towers: options.Towers = None,
    d_state: options.DState = None,
    dropout: options.Dropout = None,
    gap_mix: options.GapMixName = None,
    gap_embedding: options.GapEmbedding = None,
    request_time: options.RequestTime = None,
    window: options.Window = None,
    recipe: options.Recipe = None,
    refit: options.Refit = True,
    epochs: options.Epochs = None,
    patience: options.Patience = None,
    lr: options.Lr = None,
    weight_decay: options.WeightDecay = None,
    label_smoothing: options.LabelSmoothing = None,
    ema: options.Ema = None,
    content: options.Content = True,
    item_init: options.Init = None,
    loss: options.LossName = None,
    negatives: options.Negatives = None,
    negatives_power: options.NegativesPower = None,
    targets: options.TargetsAStep = None,
    max_len: options.MaxLen = None,
    context: options.Context = None,
    time_masking: options.TimeMasking = None,
    shuffle_ties: options.ShuffleTies = None,
    validation_users: options.ValidationUsers = None,
    validation_seen: options.ValidationSeenName = None,
    precision: options.Precision = None,
    kernels: options.Kernels = "auto",
    seed: options.Seed = DEFAULTS.seed,
    resume: options.Resume = True,
    threads: options.Threads = DEFAULTS.threads,
    device: options.Device = "auto",
    verbose: options.Verbose = False,
) -> None:
    """Train a model on an interaction log and write it as an artefact.

    The last tenth of the log in time is set aside to validate on, and trained on in the end. For
    figures to compare with papers, --no-refit sets each user's last two interactions aside. With
    --from, a model that was trained before goes on with what is new. A run that was killed goes on
    where it stopped when the same command is given again.
    """
    if towers is not None:
        say_renamed("--towers", "--ensemble")
        ensemble = towers
    if validation_seen == "masked":
        say_renamed("--validation-seen masked", "--validation-seen filtered")
        validation_seen = "filtered"
    if replay is not None and parent is None:
        raise CommandError("--replay is for --from: without it every row is trained on")
    if scoring_only and parent is None:
        raise CommandError("--scoring-only is for --from: name the artefact whose states stay")
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    name = _name(log)
    rules = chosen_kinds(kinds, {} if parent is None else {str(parent): trained_kinds(parent)})
    read = _until(log, read_steps(log, rules, skip_bad_rows=skip_bad_rows, form=form), until)
    table = None
    if items is not None:
        item_form = TableFormat.parse(item_columns, encoding, option="--item-columns")
        table = read_items(items, skip_bad_rows=skip_bad_rows, form=item_form)
    if parallel.rank() == 0:
        say_what_was_read(log, read)
    if items is not None and table is not None:
        say_overlap(log, read, table["item_id"], items)
    device = choose_device(device)
    require_kernels(kernels, device)
    architecture = _given(
        time=time,
        d_model=d_model,
        n_layers=layers,
        d_state=d_state,
        max_len=window,
        dropout=dropout,
        gap_mix=gap_mix,
        gap_embedding=gap_embedding,
        request_time=request_time,
    )
    training = _given(
        kernels=kernels,
        seed=seed,
        threads=threads,
        device=device,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        loss=loss,
        negatives=negatives,
        negatives_power=negatives_power,
        targets=targets,
        max_len=max_len,
        context=context,
        patience=patience,
        validation_users=validation_users,
        validation_seen=validation_seen,
        precision=precision,
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
        content=content,
        verbose=verbose,
    )
    target = folder or Path("artefacts", name)
    try:
        if scoring_only and parent is not None:
            if parallel.rank():
                return  # there is nothing to share
            publish_scoring(name, read, parent, target, seed=seed)
        elif parent is None:
            publish(name, read, table, plan, target, resume=resume)
        else:
            publish_warm(name, read, table, parent, plan, replay, target, resume=resume)
    except ItemsError as error:
        raise CommandError(f"{log}: {error}") from None


def _until(path: Path, log: Log, until: str | None) -> Log:
    if until is None:
        return log
    try:
        last_ms = parse_time(until)
    except ValueError as error:
        raise CommandError(f"--until {error}") from None
    try:
        return log.until(last_ms)
    except InputError as error:
        raise CommandError(f"--until {until}: {path}: {error}") from None


def _given(**values: Any) -> dict[str, Any]:
    """Those that were not left to the recipe."""
    return {name: value for name, value in values.items() if value is not None}


def _name(log: Path) -> str:
    """The log's name without endings; its folder's where it is merely called interactions."""
    stem = log.name.split(".")[0]
    return log.resolve().parent.name if stem == "interactions" else stem
