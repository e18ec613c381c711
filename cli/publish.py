"""From a log to an artefact: what `tim4rec train` does once its options are read."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cli.console import CommandError, err, out
from cli.console import say as say_always
from cli.disk_room import require_room
from cli.figures import figures
from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.ensemble import members_of
from model.items import Items
from model.live.mixture import Mixture
from training import parallel
from training.card import model_card
from training.config import TrainingConfig
from training.dataset import Dataset, Protocol, Split, build_dataset
from training.ensemble import ensemble_of, refit_ensemble, train_members
from training.forward.models import Served
from training.interactions import Log
from training.item_table import items_of, with_features
from training.log_summary import CoreLoss
from training.mixture import fit_mixture
from training.new_items import fit_new_items, with_table
from training.outcome import Outcome, Refit
from training.recipe import CORE, REFITTED_CORE, Recipe, model_config, split_log, training_config
from training.refit import every_row

Say = Callable[[str], None]


def first_says() -> Say:
    """Says a line, where this is the first process of a run."""
    return say_always if parallel.rank() == 0 else lambda line: None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is made of a log.

    split, core_users, core_items: None leaves them to what is best for a model that is refitted,
    or for one that is not. architecture, training: options given against the recipe. None leaves
    the others to the default, or to what a warm start goes on from. content: whether items' vectors
    are made of what an item table says, too.
    """

    recipe: Recipe | None
    refit: bool
    split: Split | None
    core_users: int | None
    core_items: int | None
    members: int | None
    architecture: Mapping[str, Any]
    training: Mapping[str, Any]
    content: bool = True
    verbose: bool = False

    @property
    def protocol(self) -> Protocol:
        core = REFITTED_CORE if self.refit else CORE
        return Protocol(
            self.core_users or core, self.core_items or core, self.split or "leave-one-out"
        )


def publish(
    name: str, log: Log, table: pl.DataFrame | None, plan: Plan, folder: Path, *, resume: bool
) -> None:
    """Trains and writes an artefact; goes on with an interrupted run where there is one.

    Args:
        name: of the data.
        table: of the items, as `read_items` has it.
        resume: False: an interrupted run is deleted first.

    Raises:
        CommandError, InputError, ItemsError, CheckpointError, DivergedError, ArtefactError
    """
    first = parallel.rank() == 0
    say = first_says()
    dataset = _split(log, plan, say)
    every = every_row(log, dataset.protocol) if plan.refit else dataset
    if every.cut_ms is None:
        core = dataset.protocol
        say(str(CoreLoss.of(log.frame, core.core_users, core.core_items)))
    recipe, n_members = plan.recipe or "full", plan.members or 1
    architecture = model_config(dataset, recipe, **plan.architecture)
    config = training_config(dataset, recipe, **plan.training)
    about = content_table(table, plan, config, say)
    dataset, every = with_features(dataset, about), with_features(every, about)
    say(in_words(dataset))
    if plan.refit:
        say(f"refit: {in_words(every)}")
    if plan.verbose:
        say_settings(say, architecture, config)

    require_artefact_folder(folder)
    require_room(folder, architecture, n_members * (1 + plan.refit))
    vocabulary = vocabulary_of(every, table, say)
    checkpoint = checkpoint_folder(folder, resume=resume)
    members = train_members(dataset, architecture, config, n_members, checkpoint, console=err)
    trained = ensemble_of(members, dataset, config)
    fit_content(log, trained.model, dataset, about)
    refit = None
    if plan.refit:
        result = refit_ensemble(
            members_of(trained.model), dataset.item_ids, every, config, checkpoint,
            repeat_bias=trained.model.repeat_bias, console=err,
        )  # fmt: skip
        refit = Refit(every, result)
    if not first:
        return
    mixture = _mixture(log, dataset, trained.model, about, config.seed, say) if plan.refit else None
    outcome = Outcome.of(name, dataset, config, n_members, trained, refit, mixture)
    write(outcome, vocabulary, log, folder, verbose=plan.verbose)
    shutil.rmtree(checkpoint)


def write(outcome: Outcome, vocabulary: Items, log: Log, folder: Path, *, verbose: bool) -> None:
    """Writes an artefact, and says its figures and its name."""
    card = model_card(outcome, _command(), log.notes)
    identity = save_artefact(
        folder, outcome.model, vocabulary, outcome.metrics(), card, outcome.mixture, log.kinds
    )
    for line in _figures(outcome, verbose):
        say_always(line, out)
    say_always(f"{folder}: model {identity}", out)


def _split(log: Log, plan: Plan, say: Say) -> Dataset:
    if plan.split is not None or not plan.refit:
        return build_dataset(log, plan.protocol)
    dataset, fault = split_log(log, plan.protocol)
    if fault is not None:
        say(f"no validation forward in time ({fault}): each user's last interaction is set aside")
    return dataset


def content_table(
    table: pl.DataFrame | None, plan: Plan, config: TrainingConfig, say: Say
) -> pl.DataFrame | None:
    """What items' vectors are made of beside their ids; None: of nothing."""
    if table is None or not plan.content:
        return None
    if config.loss == "sampled":
        say("the item table is not learned from: with a sampled loss it can't be (--loss full)")
        return None
    return table


def fit_content(log: Log, model: TiM4Rec, dataset: Dataset, table: pl.DataFrame | None) -> None:
    """Fits how new items rank by the model's content, on what came after it was trained."""
    if model.content is None or table is None or dataset.cut_ms is None:
        return
    if model.causal:
        served = Served(model, dataset.item_ids)
        model.content = fit_new_items(log, served, model.content, table, dataset.cut_ms)


def _mixture(
    log: Log, dataset: Dataset, model: TiM4Rec, table: pl.DataFrame | None, seed: int, say: Say
) -> Mixture | None:
    """Fitted on what came after a model was trained, where times and model allow."""
    mixture = None
    if dataset.cut_ms is not None and model.causal:
        served = with_table(Served(model, dataset.item_ids), table)
        mixture = fit_mixture(log, served.model, served.item_ids, dataset.cut_ms, seed=seed)
    if mixture is None:
        say("no mixture: what others do meanwhile will not change this model's recommendations")
    return mixture


def say_settings(say: Say, architecture: ModelConfig, config: TrainingConfig) -> None:
    """One line on the model, one on the training."""
    for title, values in (("model", architecture.to_dict()), ("training", config.to_dict())):
        say(f"{title}: " + ", ".join(f"{key}={value}" for key, value in values.items()))


def checkpoint_folder(folder: Path, *, resume: bool) -> Path:
    """Where a run keeps its checkpoints until it is done; not `resume`: emptied first."""
    found = folder.with_name(f"{folder.name}.training")
    if not resume and parallel.rank() == 0:
        shutil.rmtree(found, ignore_errors=True)
    return found


def vocabulary_of(dataset: Dataset, table: pl.DataFrame | None, say: Say) -> Items:
    """The items of a model, with what the table says of them."""
    vocabulary = items_of(dataset, table)
    if untitled := (vocabulary.titles or []).count(None):
        say(f"{untitled} of {len(vocabulary)} items have no title in the item table")
    return vocabulary


def _figures(outcome: Outcome, verbose: bool) -> list[str]:
    """The model beside counting; verbose: all that was measured, too."""
    if outcome.comparison is None:
        return []
    lines = outcome.comparison.lines(f"{outcome.ranked} targets")
    if outcome.mixture is not None:
        lines.append("what is served joins the model and such counts, which follow every event")
    return lines + figures(outcome.rows, every=verbose)


def in_words(dataset: Dataset) -> str:
    """The sizes of a data set."""
    sizes = dataset.describe().items()
    return ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in sizes)


def require_artefact_folder(folder: Path) -> None:
    """Raises CommandError where the folder holds something else."""
    # Said before hours of training rather than after.
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--out {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise CommandError(f"--out {folder} is not empty and not an artefact: choose another")


def _command() -> str:
    return shlex.join(["tim4rec", *sys.argv[1:]])
