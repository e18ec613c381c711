"""From an artefact and a longer log to the next artefact: `tim4rec train --from`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from cli.console import CommandError, err
from cli.disk_room import require_room
from cli.publish import (
    Plan,
    Say,
    checkpoint_folder,
    content_table,
    first_says,
    in_words,
    require_artefact_folder,
    say_settings,
    vocabulary_of,
    write,
)
from model import TiM4Rec
from model.artefact import METRICS, Artefact, load_artefact
from model.ensemble import members_of
from model.live.mixture import Mixture
from model.times import iso
from training import parallel
from training.dataset import Dataset, Protocol
from training.forward.models import Served
from training.ids import Overlap
from training.interactions import Log
from training.item_table import with_features, with_known
from training.mixture import Walked, fit_mixture, refit_mixture
from training.new_items import with_table
from training.outcome import Outcome, Refit
from training.recipe import REFITTED_CORE, training_config
from training.refit import every_row, grown_dataset
from training.tables import InputError
from training.warm_start import REPLAY, WARM, WarmRun, WarmStart, inherited, share_held_out

OPTIONS = {"n_layers": "--layers", "max_len": "--window"}
"""Where an option is called otherwise than what it sets."""


def publish_warm(
    name: str,
    log: Log,
    table: pl.DataFrame | None,
    parent_folder: Path,
    plan: Plan,
    replay: float | None,
    folder: Path,
    *,
    resume: bool,
) -> None:
    """Trains an artefact's model on and writes the next one; goes on with an interrupted run.

    Args:
        log: the whole of it, what the parent was trained on included.
        table: of the items; what it does not say stays as the parent has it.
        replay: None: `REPLAY`.
        name, plan, folder, resume: as of `publish`.

    Raises:
        CommandError, InputError, ItemsError, CheckpointError, DivergedError, ArtefactError
    """
    say = first_says()
    parent = load_artefact(parent_folder)
    _require_no_contradiction(plan, parent)
    _require_shared_items(log, parent)
    protocol, kept, since_ms = _of_metrics(plan, parent)
    every = every_row(log, protocol, parent.items.ids)
    table = with_known(parent.items, table)
    new = every.n_train_targets if since_ms is None else every.n_targets_after(since_ms)
    _say_what_is_new(say, parent, since_ms, new, every)
    recipe = WARM | {key: value for key, value in plan.training.items() if key in WARM}
    config = replace(training_config(every, **(kept | dict(plan.training))), **recipe)
    members = [_with_dropout(member, plan) for member in members_of(parent.model)]
    about = None
    if parent.model.content is not None:
        about = content_table(table, plan, config, say)
    every = with_features(every, about)
    share = REPLAY if replay is None else replay
    architecture = replace(parent.model.config, n_items=every.n_items)
    if plan.verbose:
        say_settings(say, architecture, config)

    require_artefact_folder(folder)
    require_room(folder, architecture, 1)
    vocabulary = vocabulary_of(every, table, say)
    checkpoint = checkpoint_folder(folder, resume=resume)
    run = WarmRun(
        members, parent.items.ids, parent.model.repeat_bias, since_ms, share, config, recipe,
        checkpoint, err,
    )  # fmt: skip
    dataset = _set_aside(log, protocol, parent, since_ms)
    if dataset is None:
        say("the mixture stays: too little is new to fit one on, or times are missing")
        trained, dataset, refit = run.on(every), every, None
    else:
        dataset = with_features(dataset, about)
        trained, again = run.in_two_parts(dataset, every)
        refit = Refit(every, again, recipe)
    if parallel.rank():
        return
    mixture = None
    if dataset.cut_ms is not None:
        mixture = _mixture(log, parent, trained.model, dataset, about, config.seed)
        if mixture is None:
            say("the mixture stays: too little of what is new can be foreseen to fit one on")
    start = WarmStart(parent.edition, since_ms, new, share, own_mixture=mixture is not None)
    outcome = Outcome.of(
        name, dataset, config, len(members), trained, refit, mixture or parent.mixture, start
    )
    write(outcome, vocabulary, log, folder, verbose=plan.verbose)
    shutil.rmtree(checkpoint)


def _mixture(
    log: Log,
    parent: Artefact,
    model: TiM4Rec,
    dataset: Dataset,
    table: pl.DataFrame | None,
    seed: int,
) -> Mixture | None:
    """Fitted on what parent and child were not trained on; dataset: what the child was; table: of
    the items that both score."""
    assert dataset.cut_ms is not None
    served = with_table(Served(model, dataset.item_ids), table)
    child = Walked(served.model, served.item_ids, dataset.cut_ms)
    until_ms = parent.core_until_ms
    if until_ms is None:
        return fit_mixture(
            log, child.model, child.item_ids, child.since_ms, start=parent.mixture, seed=seed
        )
    served = with_table(Served(parent.model, parent.scored_items.ids), table)
    before = Walked(served.model, served.item_ids, until_ms + 1)
    return refit_mixture(log, before, child, start=parent.mixture, seed=seed)


def _set_aside(
    log: Log, protocol: Protocol, parent: Artefact, since_ms: int | None
) -> Dataset | None:
    """The log cut where what a mixture is to be fitted on begins; None where it can't be."""
    share = share_held_out(log, since_ms) if parent.model.causal else None
    if share is None:
        return None
    forward = replace(protocol, split="forward", validation_share=share)
    try:
        return grown_dataset(log, forward, parent.items.ids)
    except InputError:  # nobody who is known goes on after the cut
        return None


def _require_no_contradiction(plan: Plan, parent: Artefact) -> None:
    for option, given in (
        ("--recipe", plan.recipe is not None),
        ("--no-refit", not plan.refit),
        ("--split", plan.split is not None),
        ("--no-content", not plan.content),
        ("--item-init", "item_init" in plan.training),
        ("--patience", "patience" in plan.training),
    ):
        if given:
            raise CommandError(
                f"{option} can't be given with --from: a warm start trains on every row, for a "
                "fixed number of epochs, from the vectors that there are"
            )
    member = members_of(parent.model)[0].config.to_dict()
    asked = dict(plan.architecture) | ({} if plan.members is None else {"ensemble": plan.members})
    for key, value in asked.items():
        has = parent.model.config.n_groups if key == "ensemble" else member[key]
        if value != has and key != "dropout":
            option = OPTIONS.get(key, f"--{key.replace('_', '-')}")
            raise CommandError(
                f"{option} {value}: {parent.folder} has {has}, and a warm start keeps the "
                "architecture: leave the option away, or train without --from"
            )


def _require_shared_items(log: Log, parent: Artefact) -> None:
    try:
        Overlap.of(log.frame["item_id"], parent.items.ids).require(
            "the log's items", str(parent.folder)
        )
    except InputError as error:
        raise CommandError(
            f"{error}. Give the log that this model was trained on, going on"
        ) from None


def _of_metrics(plan: Plan, parent: Artefact) -> tuple[Protocol, dict[str, Any], int | None]:
    """The protocol, the settings of the training, and until when it was trained."""
    metrics, where = parent.metrics, parent.folder / METRICS
    core = {"core_users": REFITTED_CORE, "core_items": REFITTED_CORE}
    try:
        own = Protocol.from_dict(metrics.get("protocol", core))
    except (TypeError, ValueError) as error:
        raise CommandError(f"{where}: protocol: {error}") from None
    try:
        kept, since_ms = inherited(metrics), parent.core_until_ms
    except ValueError as error:
        raise CommandError(f"{where}: {error}") from None
    protocol = Protocol(plan.core_users or own.core_users, plan.core_items or own.core_items)
    return protocol, kept, since_ms


def _say_what_is_new(
    say: Say, parent: Artefact, since_ms: int | None, new: int, every: Dataset
) -> None:
    if since_ms is None:
        until = "does not say until when it was trained: all is new"
    else:
        until = f"was trained until {iso(since_ms)}"
    if not new:
        raise CommandError(f"{parent.folder} {until}: the log has nothing later to train on")
    say(f"{parent.folder}: model {parent.edition} {until}")
    items = every.n_items - len(parent.items)
    say(f"{in_words(every)}, new training targets {new:,}, new items {items:,}")


def _with_dropout(member: TiM4Rec, plan: Plan) -> TiM4Rec:
    """With the dropout that was asked for."""
    if "dropout" not in plan.architecture:
        return member
    model = TiM4Rec(replace(member.config, dropout=plan.architecture["dropout"]))
    model.load_state_dict(member.state_dict())
    return model
