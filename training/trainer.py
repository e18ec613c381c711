"""The training loop: AdamW, early stopping on validation NDCG@10, resumable, reproducible."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from torch import Tensor
from torch.nn.utils import parametrize

from model import ModelConfig, Recommender, TiM4Rec
from model.kernels import choose
from training.batches import Batch, n_batches, prefix_batches, ties_shuffled, window_batches
from training.checkpoint import (
    CheckpointError,
    Progress,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from training.config import TrainingConfig
from training.content import join_vectors, share_vectors
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, Targets
from training.evaluation import SeenItems, rank_targets
from training.loss import batch_queries, sampled_softmax_loss, softmax_loss
from training.metrics import ranking_metrics
from training.negatives import NegativeSampler
from training.optimizers import clip, optimizers_of
from training.packing import packed
from training.parallel import Group, join
from training.repeats import repeat_bias

MOST_REPEATS = 0.01
M = TypeVar("M", bound=Recommender)


class DivergedError(ValueError):
    """The weights went to infinity; the message names the setting to lower."""


@dataclass(frozen=True, slots=True)
class Result(Generic[M]):
    """A finished run: the best weights with their repeat bias, in evaluation mode."""

    model: M
    epochs: int
    best_epoch: int
    best_ndcg: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Epoch(Generic[M]):
    """One epoch: its weights, their NDCG@10 (0 where not validated), and what each part took."""

    model: M
    ndcg: float
    training_seconds: float
    validation_seconds: float


def train(
    dataset: Dataset,
    model_config: ModelConfig,
    config: TrainingConfig,
    folder: Path | None = None,
    *,
    console: Console | None = None,
    after_epoch: Callable[[Epoch[TiM4Rec]], None] | None = None,
) -> Result[TiM4Rec]:
    """As `train_model`, a TiM4Rec of this architecture."""
    new_model = partial(TiM4Rec, model_config)
    return train_model(dataset, new_model, config, folder, console=console, after_epoch=after_epoch)


def train_model(
    dataset: Dataset,
    new_model: Callable[[], M],
    config: TrainingConfig,
    folder: Path | None = None,
    *,
    console: Console | None = None,
    after_epoch: Callable[[Epoch[M]], None] | None = None,
) -> Result[M]:
    """Trains a model; its weights are a function of (dataset, both configs, machine).

    Under `torchrun` the processes share the rows of every batch; all return the same result, and
    the first one alone writes.

    Args:
        new_model: the model with fresh weights, drawn from torch's default generator.
        folder: keeps a checkpoint there after each epoch and goes on from the one it finds; None
            keeps none. The run that is resumed ends with the weights of the uninterrupted one.
        console: where progress goes; None: nowhere.
        after_epoch: is called after each; what it raises ends the run.

    Raises:
        CheckpointError: the folder's checkpoint is damaged or of another run.
        DivergedError: the loss is no longer finite; the checkpoint is that of the epoch before.
    """
    group = join(config.device)
    if console is None or group.rank:
        console = Console(quiet=True)
    return _Run(dataset, new_model, config, folder, console, group).finish(after_epoch)


def validation_of(config: TrainingConfig, dataset: Dataset) -> tuple[Targets, SeenItems]:
    """Whose targets are validated on, and whether items that the user has had are ranked there."""
    targets = dataset.validation
    if config.validation_users:
        targets = targets.sample(config.validation_users)
    if config.validation_seen != "auto":
        return targets, config.validation_seen
    return targets, "kept" if dataset.repeats() > MOST_REPEATS else "filtered"


class _Run(Generic[M]):
    def __init__(
        self,
        dataset: Dataset,
        new_model: Callable[[], M],
        config: TrainingConfig,
        folder: Path | None,
        console: Console,
        group: Group = Group(),  # noqa: B008
    ) -> None:
        self.dataset, self.config, self.console, self.group = dataset, config, console, group
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.checkpoint = None if folder is None else folder / "checkpoint.safetensors"
        resumes = self.checkpoint is not None and self.checkpoint.exists()
        self.model = new_model().to(config.device)
        if config.item_init == "cooccurrence" and not resumes:
            _start_from_cooccurrence(self.model.item_embedding.weight, dataset, config.seed)
        self.packs = False
        if isinstance(self.model, TiM4Rec):
            kernels = choose(config.kernels, self.model.device)
            self.model.use(kernels)
            self.packs = kernels is not None and self.model.causal
        # A sampled loss reads a few rows of a table, and these would be computed for all items.
        self.features = dataset.features if config.loss == "full" else None
        if self.features is not None:
            share_vectors(self.model, self.features, config.id_dropout)
        self.average = copy.deepcopy(self.model) if config.ema else None
        self.sampler = None
        if config.loss == "sampled":
            self.model.item_embedding.sparse = True
            self.sampler = NegativeSampler(
                dataset.popularity(), config.negatives, config.negatives_power
            )
        self.optimizers = optimizers_of(self.model, config)
        self.max_len = min(config.max_len, self.model.window or config.max_len)
        # Without a pass for all positions, each target is a window of its own.
        window = self.max_len if self.model.causal else 1
        self.epoch_batches = n_batches(dataset, targets=config.targets, max_len=window)
        self.steps = config.max_epochs * self.epoch_batches
        self.progress = Progress(fingerprint(dataset, self.model.config, config))
        self.best: dict[str, Tensor] = {}
        self.validation, self.seen = validation_of(config, dataset)
        if folder is not None and self.checkpoint is not None:
            if not group.rank:
                folder.mkdir(parents=True, exist_ok=True)
            if resumes:
                self.best, self.progress = load_checkpoint(
                    self.checkpoint, self.model, self.average, self.optimizers, self.progress.run
                )
                best = f"NDCG@10 {self.progress.best_ndcg:.4f}, epoch {self.progress.best_epoch}"
                console.print(
                    f"Resumed after epoch {self.progress.epoch}"
                    + (f" (best {best})" if config.schedule == "constant" else "")
                )
            if len(set(group.gather(self.progress.step))) > 1:
                raise CheckpointError(
                    f"{self.checkpoint} is not the same for all processes: they need a folder "
                    "that they share"
                )

    def finish(self, after_epoch: Callable[[Epoch[M]], None] | None = None) -> Result[M]:
        while not self._stopped():
            done = self._epoch()
            if after_epoch is not None:
                after_epoch(done)
        self.model.load_state_dict(self.best)
        if self.features is not None:
            join_vectors(self.model, self.features)
        if len(self.validation):
            self.model.repeat_bias = repeat_bias(self.model, self.dataset)
        p = self.progress
        return Result(self.model.eval(), p.epoch, p.best_epoch, p.best_ndcg, p.seconds)

    def _stopped(self) -> bool:
        p = self.progress
        waited = p.epoch - p.best_epoch
        return p.epoch >= self.config.max_epochs or (p.epoch > 0 and waited >= self.config.patience)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        c, dataset = self.config, self.dataset
        if c.shuffle_ties:
            dataset = ties_shuffled(dataset, seed=c.seed, epoch=epoch)
        if self.model.causal:
            return window_batches(
                dataset, targets=c.targets, max_len=self.max_len,
                request_dropout=c.request_dropout, request_moments=c.request_moments,
                time_masking=c.time_masking,
                context=c.context, seed=c.seed, epoch=epoch,
            )  # fmt: skip
        return prefix_batches(
            dataset, targets=c.targets, max_len=self.model.config.max_len,
            time_masking=c.time_masking, seed=c.seed, epoch=epoch,
        )  # fmt: skip

    def _epoch(self) -> Epoch[M]:
        began = time.perf_counter()
        p, epoch = self.progress, self.progress.epoch
        # An epoch depends on nothing before it but weights, moments and this: hence exact resume.
        torch.manual_seed(_mix(self.config.seed, epoch) + self.group.rank)
        self.draws = torch.Generator().manual_seed(_mix(self.config.seed, epoch))
        self.model.train()
        losses = torch.zeros((), dtype=torch.float64, device=self.model.device)
        count = 0
        with _bar(self.console) as bar:
            task = bar.add_task(f"epoch {epoch + 1}", total=self.epoch_batches, metrics="")
            for batch in self._batches(epoch):
                loss = self._step(batch)
                n = int((batch.targets > 0).sum())
                losses += loss.double() * n
                count += n
                shown = ""
                if not bar.disable:  # reading it waits for the device
                    shown = f"loss {float(losses) * self.group.size / count:.4f}"
                bar.update(task, advance=1, metrics=shown)
            bar.update(task, description=f"epoch {epoch + 1}, validating")
            trained = time.perf_counter()
            figures = self._validate()
        losses = self.group.sum(losses).cpu()
        if not bool(losses.isfinite()):
            raise DivergedError(
                f"the loss of epoch {epoch + 1} is not finite: lower lr ({self.config.lr:g}) "
                "or raise warmup"
            )
        ranked = time.perf_counter()
        p.epoch += 1
        ndcg = figures.get("NDCG@10", 0.0)
        if ndcg > p.best_ndcg or self.config.schedule == "linear":
            p.best_ndcg, p.best_epoch = ndcg, p.epoch
            kept = self.average or self.model
            self.best = {k: v.detach().clone() for k, v in kept.state_dict().items()}
        seconds = time.perf_counter() - began
        p.seconds += seconds
        if self.checkpoint is not None and not self.group.rank:
            save_checkpoint(
                self.checkpoint, self.model, self.average, self.best, self.optimizers, p
            )
        waits = p.epoch - p.best_epoch
        line = f"epoch {p.epoch:3d}  loss {float(losses) / max(count, 1):.4f}  "
        if figures:
            line += f"NDCG@10 {ndcg:.4f}  HR@10 {figures['HR@10']:.4f}  "
        line += f"{seconds:.1f} s"
        if self.config.schedule == "constant":
            line += "  best" if not waits else f"  ({waits}/{self.config.patience} since the best)"
        self.console.print(line, highlight=False)
        return Epoch(self.average or self.model, ndcg, trained - began, ranked - trained)

    def _step(self, batch: Batch) -> Tensor:
        """One step on a batch of all processes; returns this one's part of its mean loss."""
        c = self.config
        self.progress.step += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = c.lr * self._rate()
            optimizer.zero_grad(set_to_none=True)
        mine = self.group.share(batch)
        negatives = None if self.sampler is None else self.sampler.draw(self.draws)
        loss = torch.zeros((), device=self.model.device)
        if len(mine.items):
            weight = int((mine.targets > 0).sum()) / int((batch.targets > 0).sum())
            if self.packs and batch.before is None:
                mine = packed(mine)
            with parametrize.cached():  # the same vectors in the input and in the loss
                loss = weight * self._loss(mine.to(self.model.device), negatives)
            loss.backward()  # type: ignore[no-untyped-call]
        table = self.model.item_embedding
        self.group.sum_gradients(self.model, table.weight if table.sparse else None)
        clip(self.model, c.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow()
        return loss.detach()

    def _rate(self) -> float:
        """The share of `lr` that this step has."""
        c, step = self.config, self.progress.step
        rate = min(1.0, step / max(1, c.warmup))
        if c.schedule == "constant":
            return rate
        left = self.steps - step + 1
        return min(rate, max(0.0, left / max(1, self.steps - c.warmup)))

    def _loss(self, batch: Batch, negatives: tuple[Tensor, Tensor] | None) -> Tensor:
        lower = self.config.precision == "bfloat16"
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=lower):
            queries, targets = batch_queries(self.model, batch)
        queries = queries.float()
        if negatives is None:
            return softmax_loss(self.model, queries, targets, self.config.label_smoothing)
        items, log_inclusion = (part.to(queries.device) for part in negatives)
        return sampled_softmax_loss(self.model, queries, targets, items, log_inclusion)

    def _follow(self) -> None:
        """Moves the average of the weights towards them."""
        if self.average is None:
            return
        step = self.progress.step
        # Without the bound the random initial weights would stay in it for 1 / (1 - ema) steps.
        share = 1 - min(self.config.ema, (1 + step) / (10 + step))
        now = self.model.state_dict()
        for name, value in self.average.state_dict().items():
            value.lerp_(now[name], share)

    def _validate(self) -> dict[str, float]:
        """Metrics of this epoch's weights; of a rate that falls, of the last epoch's alone; none
        where there are no targets.

        Asked for at the target's own time where the model takes one.
        """
        last = self.progress.epoch + 1 >= self.config.max_epochs
        if not len(self.validation) or (self.config.schedule == "linear" and not last):
            return {}
        model = self.average or self.model
        asked = model.config.uses_request_time
        everyone = np.arange(len(self.validation))
        mine = self.validation.take(everyone[self.group.rank :: self.group.size])
        with parametrize.cached():
            ranking = rank_targets(
                model, self.dataset.histories, mine, at_target_time=(asked,), top=0
            )
        ranks = np.empty_like(everyone)
        for number, part in enumerate(self.group.gather(getattr(ranking[asked], self.seen))):
            ranks[number :: self.group.size] = part
        return ranking_metrics(ranks)


@torch.no_grad()
def _start_from_cooccurrence(table: Tensor, dataset: Dataset, seed: int) -> None:
    """Sets rows 1..V, those of items that never met another stay as they are."""
    vectors, known = cooccurrence_vectors(dataset, table.shape[1], seed=seed)
    rows = known.nonzero().squeeze(1)
    # Queries have a norm of about sqrt(D): scores of the nearest items begin at about 0.1 D.
    start = 0.1 * table.shape[1] ** 0.5 * vectors[rows]
    table[rows.to(table.device) + 1] = start.to(table)


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _bar(console: Console) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
