"""The training loop: AdamW, early stopping on validation NDCG@10, resumable, reproducible."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

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

from model import Architecture, Recommender, TiM4Rec
from model.kernels import Choice, choose
from training.batches import Batch, n_batches, prefix_batches, ties_shuffled, window_batches
from training.checkpoint import CheckpointError, Progress, load_checkpoint, save_checkpoint
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, Targets
from training.evaluation import rank_targets
from training.loss import batch_queries, sampled_softmax_loss, softmax_loss
from training.metrics import ranking_metrics
from training.negatives import NegativeSampler
from training.packing import packed
from training.parallel import Group, join
from training.repeats import repeat_bias

Seen = Literal["auto", "kept", "masked"]
ItemInit = Literal["random", "cooccurrence"]
Loss = Literal["full", "sampled"]
Precision = Literal["float32", "bfloat16"]
MOST_REPEATS = 0.01
M = TypeVar("M", bound=Recommender)


class DivergedError(ValueError):
    """The weights went to infinity; the message names the setting to lower."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the architecture is in `ModelConfig`.

    targets: of the loss in one step. max_len: longest window (a model that has one of its own
    keeps to it). warmup: steps of linear growth of the learning rate. patience: epochs without a
    better validation NDCG@10 before stopping. request_dropout: share of windows without request
    times.
    context: interactions before a window that starts within a history; the window begins with
    the state after them, without a gradient to them; 0 begins anew.
    time_masking: share of interactions whose time is hidden, for logs that lack some.
    shuffle_ties: interactions of a user at the same time stand in another order each epoch.
    clip: largest norm of the gradient. threads: of torch on a CPU, 0 leaves its own choice.
    validation_users: validate on a fixed sample of this many, 0 on all. validation_seen: whether
    items that the user has had are ranked there; `auto` masks them, as the service does, unless
    more than 1 % of the targets are such items. ema: decay of the
    exponential average of the weights, which is then what is validated and kept; at step t it is
    at most (1 + t) / (10 + t); 0 keeps none.
    item_init: where item embeddings start, at `random` or at `cooccurrence` vectors of the
    training interactions.
    loss: `full` is the softmax over the whole catalogue, `sampled` one over `negatives` draws a
    step by popularity ** `negatives_power`, whose steps read and change only the items they name:
    their table then has lazy moments (torch's SparseAdam) and no weight decay.
    precision: `bfloat16` autocasts the layers; weights and loss stay in float32, and so does the
    scan, of which the kernels multiply in bfloat16.
    kernels: `triton` are mamba-ssm's, `auto` those on a CUDA device where they run, with several
    histories in a row; the results are those of the `reference` but for rounding.
    """

    lr: float = 3e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    warmup: int = 100
    clip: float = 1.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    item_init: ItemInit = "random"
    loss: Loss = "full"
    negatives: int = 8192
    negatives_power: float = 0.75
    targets: int = 2048
    max_len: int = 200
    request_dropout: float = 0.1
    time_masking: float = 0.0
    shuffle_ties: bool = False
    context: int = 0
    max_epochs: int = 200
    patience: int = 8
    validation_users: int = 0
    validation_seen: Seen = "auto"
    precision: Precision = "float32"
    kernels: Choice = "auto"
    seed: int = 0
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name, choices in (
            ("item_init", ItemInit), ("loss", Loss), ("precision", Precision),
            ("validation_seen", Seen), ("kernels", Choice),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be {' or '.join(get_args(choices))}, not {getattr(self, name)!r}"
                )
        if self.loss == "sampled" and self.label_smoothing:
            raise ValueError("label_smoothing must be 0 with loss=sampled: it needs every score")
        for name in ("targets", "negatives", "max_len", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "weight_decay", "negatives_power", "warmup", "context", "validation_users", "seed",
            "threads",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("beta1", "beta2", "label_smoothing", "ema", "request_dropout", "time_masking"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    """One epoch: the weights that were validated, their NDCG@10, and what each part took."""

    model: M
    ndcg: float
    training_seconds: float
    validation_seconds: float


def train(
    dataset: Dataset,
    model_config: Architecture[M],
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
    run = _Run(dataset, model_config, config, folder, console, group)
    return run.finish(after_epoch)


def fingerprint(
    dataset: Dataset, model_config: Architecture[Recommender], config: TrainingConfig
) -> str:
    """Names a run: what its weights depend on. More epochs or patience continue the same run."""
    settings = config.to_dict()
    for name in ("max_epochs", "patience", "device", "kernels"):
        del settings[name]
    if not config.shuffle_ties:
        del settings["shuffle_ties"]  # runs from before it go on
    text = json.dumps([model_config.to_dict(), settings, dataset.protocol.to_dict()])
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for array in (
        dataset.histories.offsets,
        dataset.histories.items,
        dataset.histories.times,
        dataset.train_ends,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\n".join(dataset.item_ids).encode())
    return digest.hexdigest()


def validation_of(
    config: TrainingConfig, dataset: Dataset
) -> tuple[Targets, Literal["kept", "masked"]]:
    """Whose targets are validated on, and whether items that the user has had are ranked there."""
    targets = dataset.validation
    if config.validation_users:
        targets = targets.sample(config.validation_users)
    if config.validation_seen != "auto":
        return targets, config.validation_seen
    return targets, "kept" if dataset.repeats() > MOST_REPEATS else "masked"


class _Run(Generic[M]):
    def __init__(
        self,
        dataset: Dataset,
        model_config: Architecture[M],
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
        self.model = model_config.build().to(config.device)
        if config.item_init == "cooccurrence" and not resumes:
            _start_from_cooccurrence(self.model.item_embedding.weight, dataset, config.seed)
        self.packs = False
        if isinstance(self.model, TiM4Rec):
            kernels = choose(config.kernels, self.model.device)
            self.model.use(kernels)
            self.packs = kernels is not None and self.model.causal
        self.average = copy.deepcopy(self.model) if config.ema else None
        self.sampler = None
        if config.loss == "sampled":
            self.model.item_embedding.sparse = True
            self.sampler = NegativeSampler(
                dataset.popularity(), config.negatives, config.negatives_power
            )
        self.optimizers = _optimizers(self.model, config)
        self.progress = Progress(fingerprint(dataset, model_config, config))
        self.best: dict[str, Tensor] = {}
        self.validation, self.seen = validation_of(config, dataset)
        if folder is not None and self.checkpoint is not None:
            if not group.rank:
                folder.mkdir(parents=True, exist_ok=True)
            if resumes:
                self.best, self.progress = load_checkpoint(
                    self.checkpoint, self.model, self.average, self.optimizers, self.progress.run
                )
                console.print(
                    f"Resumed after epoch {self.progress.epoch} "
                    f"(best NDCG@10 {self.progress.best_ndcg:.4f}, "
                    f"epoch {self.progress.best_epoch})"
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
            max_len = min(c.max_len, self.model.window or c.max_len)
            return window_batches(
                dataset, targets=c.targets, max_len=max_len,
                request_dropout=c.request_dropout, time_masking=c.time_masking,
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
            task = bar.add_task(
                f"epoch {epoch + 1}",
                total=n_batches(self.dataset, targets=self.config.targets),
                metrics="",
            )
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
            ranks = self._validate()
        losses = self.group.sum(losses).cpu()
        if not bool(losses.isfinite()):
            raise DivergedError(
                f"the loss of epoch {epoch + 1} is not finite: lower lr ({self.config.lr:g}) "
                "or raise warmup"
            )
        ranked = time.perf_counter()
        found = ranking_metrics(ranks)
        p.epoch += 1
        if found["NDCG@10"] > p.best_ndcg:
            p.best_ndcg, p.best_epoch = found["NDCG@10"], p.epoch
            kept = self.average or self.model
            self.best = {k: v.detach().clone() for k, v in kept.state_dict().items()}
        seconds = time.perf_counter() - began
        p.seconds += seconds
        if self.checkpoint is not None and not self.group.rank:
            save_checkpoint(
                self.checkpoint, self.model, self.average, self.best, self.optimizers, p
            )
        waits = p.epoch - p.best_epoch
        self.console.print(
            f"epoch {p.epoch:3d}  loss {float(losses) / count:.4f}  "
            f"NDCG@10 {found['NDCG@10']:.4f}  HR@10 {found['HR@10']:.4f}  {seconds:.1f} s"
            + ("  best" if not waits else f"  ({waits}/{self.config.patience} since the best)"),
            highlight=False,
        )
        validated = self.average or self.model
        return Epoch(validated, found["NDCG@10"], trained - began, ranked - trained)

    def _step(self, batch: Batch) -> Tensor:
        """One step on a batch of all processes; returns this one's part of its mean loss."""
        c = self.config
        self.progress.step += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = c.lr * min(1.0, self.progress.step / max(1, c.warmup))
            optimizer.zero_grad(set_to_none=True)
        mine = self.group.share(batch)
        negatives = None if self.sampler is None else self.sampler.draw(self.draws)
        loss = torch.zeros((), device=self.model.device)
        if len(mine.items):
            weight = int((mine.targets > 0).sum()) / int((batch.targets > 0).sum())
            if self.packs and batch.before is None:
                mine = packed(mine)
            loss = weight * self._loss(mine.to(self.model.device), negatives)
            loss.backward()  # type: ignore[no-untyped-call]
        table = self.model.item_embedding
        self.group.sum_gradients(self.model, table.weight if table.sparse else None)
        _clip(self.model, c.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._follow()
        return loss.detach()

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

    def _validate(self) -> np.typing.NDArray[np.int64]:
        """Asked for at the target's own time where the model takes one."""
        model = self.average or self.model
        asked = model.config.uses_request_time
        everyone = np.arange(len(self.validation))
        mine = self.validation.take(everyone[self.group.rank :: self.group.size])
        ranking = rank_targets(model, self.dataset.histories, mine, at_target_time=(asked,), top=0)
        ranks = np.empty_like(everyone)
        for number, part in enumerate(self.group.gather(getattr(ranking[asked], self.seen))):
            ranks[number :: self.group.size] = part
        return ranks


@torch.no_grad()
def _start_from_cooccurrence(table: Tensor, dataset: Dataset, seed: int) -> None:
    """Sets rows 1..V, those of items that never met another stay as they are."""
    vectors, known = cooccurrence_vectors(dataset, table.shape[1], seed=seed)
    rows = known.nonzero().squeeze(1)
    # Queries have a norm of about sqrt(D): scores of the nearest items begin at about 0.1 D.
    start = 0.1 * table.shape[1] ** 0.5 * vectors[rows]
    table[rows.to(table.device) + 1] = start.to(table)


def _optimizers(model: Recommender, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    betas = (config.beta1, config.beta2)
    table = model.item_embedding
    sparse = list(table.parameters()) if table.sparse else []
    dense = [p for p in model.parameters() if not any(p is other for other in sparse)]
    matrices = [p for p in dense if p.ndim >= 2]
    vectors = [p for p in dense if p.ndim < 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},  # norms, biases, decay rates
            ],
            lr=config.lr,
            betas=betas,
            fused=True,
        )
    ]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=config.lr, betas=betas))
    return optimizers


def _clip(model: Recommender, largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for gradients of which some are sparse."""
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            sparse = parameter.grad.is_sparse
            gradients.append(parameter.grad.values() if sparse else parameter.grad)
    factor = (largest / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


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
