"""How a model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from model.kernels import KernelChoice

ValidationSeen = Literal["auto", "kept", "filtered"]
ItemInit = Literal["random", "cooccurrence"]
Loss = Literal["full", "sampled"]
TrainingPrecision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "linear"]
RequestMoments = Literal["between", "next"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the architecture is in `ModelConfig`.

    targets: of the loss in one step. max_len: longest window (a model that has one of its own
    keeps to it). warmup: steps of linear growth of the learning rate. schedule: after them it is
    `constant`, and the epoch that is best in validation is kept; or it falls `linear` to 0 at the
    end of `max_epochs`, whose weights are kept and validated once. patience: epochs without a
    better validation NDCG@10 before stopping. request_dropout: share of windows without request
    times.
    request_moments: when a position is asked, of windows that are told: at moments `between` it and
    the next interaction, as a service is, or at the `next` one's time.
    context: interactions before a window that starts within a history; the window begins with
    the state after them, without a gradient to them; 0 begins anew.
    time_masking: share of interactions whose time is hidden, for logs that lack some.
    shuffle_ties: interactions of a user at the same time stand in another order each epoch.
    clip: largest norm of the gradient. threads: of torch on a CPU, 0 leaves its own choice.
    validation_users: validate on a fixed sample of this many, 0 on all. validation_seen: whether
    items that the user has had are ranked there; `auto` filters them, as the service does, unless
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
    schedule: Schedule = "constant"
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
    request_moments: RequestMoments = "between"
    time_masking: float = 0.0
    id_dropout: float = 0.2
    shuffle_ties: bool = False
    context: int = 0
    max_epochs: int = 200
    patience: int = 8
    validation_users: int = 0
    validation_seen: ValidationSeen = "auto"
    precision: TrainingPrecision = "float32"
    kernels: KernelChoice = "auto"
    seed: int = 0
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name, choices in (
            ("schedule", Schedule), ("item_init", ItemInit), ("loss", Loss),
            ("precision", TrainingPrecision), ("validation_seen", ValidationSeen),
            ("kernels", KernelChoice), ("request_moments", RequestMoments),
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
        for name in ("beta1", "beta2", "label_smoothing", "ema", "request_dropout", "time_masking",
            "id_dropout",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
