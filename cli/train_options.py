"""The options of `tim4rec train`; None is left to the recipe, or to the parent of a warm start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from model import ModelConfig
from model.config import GapMix, TimePath
from model.kernels import KernelChoice
from training.config import ItemInit, Loss, TrainingConfig, TrainingPrecision, ValidationSeen
from training.dataset import Split
from training.recipe import CORE, REFITTED_CORE
from training.recipe import Recipe as RecipeName
from training.warm_start import REPLAY, WARM

MODEL, TRAINING, DATA, WARM_START = "Model", "Training", "Data", "Warm start"
DEFAULTS = TrainingConfig()
ARCHITECTURE = ModelConfig(n_items=1)

LogFile = Annotated[
    Path,
    typer.Argument(
        metavar="LOG",
        help="Interactions: CSV, CSV.gz or Parquet with user_id, item_id, timestamp (epoch "
        "seconds or milliseconds, ISO 8601, or empty).",
    ),
]
ItemTable = Annotated[
    Path | None,
    typer.Option(
        help="Item table: item_id, title, categories or genres (`|`-separated).",
        rich_help_panel=DATA,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Where the artefact goes.", show_default="artefacts/NAME"
    ),
]
Core = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Drop users and items with fewer interactions.",
        show_default=f"{REFITTED_CORE}, or {CORE} with --no-refit, or the parent's",
        rich_help_panel=DATA,
    ),
]
CoreUsers = Annotated[
    int | None,
    typer.Option(min=1, help="... users.", show_default="--core", rich_help_panel=DATA),
]
CoreItems = Annotated[
    int | None,
    typer.Option(min=1, help="... items.", show_default="--core", rich_help_panel=DATA),
]
SplitName = Annotated[
    Split | None,
    typer.Option(
        help="What is set aside to validate on, and to test on.",
        show_default="forward, or leave-one-out with --no-refit",
        rich_help_panel=DATA,
    ),
]
SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", help="Leave out rows that can't be read.", rich_help_panel=DATA
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Leave out what came after it.",
        show_default="the log's end",
        rich_help_panel=DATA,
    ),
]

From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="ARTEFACT",
        help="Go on from this model, the parent: LOG is what it was trained on and what has come "
        "since. Its architecture stays, and so do its settings of the training.",
        rich_help_panel=WARM_START,
    ),
]
ScoringOnly = Annotated[
    bool,
    typer.Option(
        "--scoring-only",
        help="Only what touches no state: the mixture with the live evidence or, in an artefact "
        "without one, the vectors that score items. Services keep every state.",
        rich_help_panel=WARM_START,
    ),
]
ReplayShare = Annotated[
    float | None,
    typer.Option(
        "--replay",
        min=0,
        max=1,
        help="Share of the histories without a newer interaction that an epoch takes.",
        show_default=f"{REPLAY:g}",
        rich_help_panel=WARM_START,
    ),
]

Time = Annotated[
    TimePath | None,
    typer.Option(
        help="causal: past gaps and request time, constant-time steps. none: order only. "
        "sequence: the paper's, served by recomputing its window.",
        show_default=ARCHITECTURE.time,
        rich_help_panel=MODEL,
    ),
]
DModel = Annotated[
    int | None,
    typer.Option(help="Width.", show_default=str(ARCHITECTURE.d_model), rich_help_panel=MODEL),
]
Layers = Annotated[
    int | None,
    typer.Option(help="Blocks.", show_default=str(ARCHITECTURE.n_layers), rich_help_panel=MODEL),
]
Ensemble = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Models to train apart, with other seeds, and to serve as one whose scores are "
        "their sums: more accurate, a state and a step as many times as large.",
        show_default="1",
        rich_help_panel=MODEL,
    ),
]
Towers = Annotated[int | None, typer.Option(min=1, hidden=True)]
DState = Annotated[
    int | None,
    typer.Option(
        help="State size a channel.",
        show_default=str(ARCHITECTURE.d_state),
        rich_help_panel=MODEL,
    ),
]
Dropout = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="Dropout probability.",
        show_default="0.5 for histories below 20 on average, else 0.2; quick: half of it",
        rich_help_panel=MODEL,
    ),
]
GapMixName = Annotated[
    GapMix | None,
    typer.Option(
        help="(causal) How a gap changes the step size.",
        show_default="the model's",
        rich_help_panel=MODEL,
    ),
]
GapEmbedding = Annotated[
    bool | None,
    typer.Option(help="(causal) Add an embedding of the gap.", rich_help_panel=MODEL),
]
RequestTime = Annotated[
    bool | None,
    typer.Option(help="(causal) Use the time of the request.", rich_help_panel=MODEL),
]
Window = Annotated[
    int | None,
    typer.Option(
        help="(sequence) Window length.",
        show_default=str(ARCHITECTURE.max_len),
        rich_help_panel=MODEL,
    ),
]

Recipe = Annotated[
    RecipeName | None,
    typer.Option(
        help="full: until validation gets no better. quick: 5 epochs at a learning rate that "
        "falls to 0, validated once.",
        show_default="full",
        rich_help_panel=TRAINING,
    ),
]
Refit = Annotated[
    bool,
    typer.Option(
        help="In the end, train for 2 epochs on every row, what was set aside included, and "
        "write that model. The figures are those of the model before.",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="At most this many.",
        show_default=f"{DEFAULTS.max_epochs}, or the recipe's; {WARM['max_epochs']} with --from",
        rich_help_panel=TRAINING,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop after this many epochs without a better validation NDCG@10.",
        show_default=str(DEFAULTS.patience),
        rich_help_panel=TRAINING,
    ),
]
Lr = Annotated[
    float | None,
    typer.Option(
        help="Learning rate.",
        show_default=f"{DEFAULTS.lr:g}, or the recipe's; {WARM['lr']:g} with --from",
        rich_help_panel=TRAINING,
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        help="AdamW's, on matrices.",
        show_default=f"{DEFAULTS.weight_decay:g}",
        rich_help_panel=TRAINING,
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        help="Of the softmax loss.",
        show_default=f"{DEFAULTS.label_smoothing:g}",
        rich_help_panel=TRAINING,
    ),
]
Ema = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.9999,
        help="Decay of an average of the weights that is validated and kept; 0: none.",
        show_default="0.995, or the recipe's; 0 with --from",
        rich_help_panel=TRAINING,
    ),
]
Content = Annotated[
    bool,
    typer.Option(
        "--content/--no-content",
        help="(with --items) Make items' vectors of titles, categories and attributes, too: new "
        "items have one from the start.",
        rich_help_panel=TRAINING,
    ),
]
Init = Annotated[
    ItemInit | None,
    typer.Option(
        "--item-init",
        help="Where item embeddings start: at random, or at vectors of which items meet in "
        "users' histories.",
        show_default="cooccurrence",
        rich_help_panel=TRAINING,
    ),
]
LossName = Annotated[
    Loss | None,
    typer.Option(
        help="Softmax over the whole catalogue, or over a sample: for 100 000 items and more.",
        show_default=DEFAULTS.loss,
        rich_help_panel=TRAINING,
    ),
]
Negatives = Annotated[
    int | None,
    typer.Option(
        help="(sampled) Items drawn a step.",
        show_default=str(DEFAULTS.negatives),
        rich_help_panel=TRAINING,
    ),
]
NegativesPower = Annotated[
    float | None,
    typer.Option(
        help="(sampled) Draw by popularity to this power; 0: uniformly.",
        show_default=f"{DEFAULTS.negatives_power:g}",
        rich_help_panel=TRAINING,
    ),
]
TargetsAStep = Annotated[
    int | None,
    typer.Option(
        help="Targets of the loss a step.",
        show_default=str(DEFAULTS.targets),
        rich_help_panel=TRAINING,
    ),
]
MaxLen = Annotated[
    int | None,
    typer.Option(
        help="Longest training window.",
        show_default=str(DEFAULTS.max_len),
        rich_help_panel=TRAINING,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Interactions before a window that its first state is made of.",
        show_default=str(DEFAULTS.context),
        rich_help_panel=TRAINING,
    ),
]
TimeMasking = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="Share of interactions whose time is hidden in training.",
        show_default="the share of unknown times",
        rich_help_panel=TRAINING,
    ),
]
ShuffleTies = Annotated[
    bool | None,
    typer.Option(
        "--shuffle-ties/--keep-ties",
        help="Interactions of a user at the same time stand in another order each epoch.",
        show_default="shuffled where that order is chance",
        rich_help_panel=TRAINING,
    ),
]
ValidationUsers = Annotated[
    int | None,
    typer.Option(
        help="Validate on a sample of users; 0: all.",
        show_default=str(DEFAULTS.validation_users),
        rich_help_panel=TRAINING,
    ),
]
ValidationSeenName = Annotated[
    Literal[ValidationSeen, "masked"] | None,
    typer.Option(
        metavar="<auto|kept|filtered>",
        help="Whether validation ranks items that the user has had; auto: only where users "
        "come back to items.",
        show_default=DEFAULTS.validation_seen,
        rich_help_panel=TRAINING,
    ),
]
Precision = Annotated[
    TrainingPrecision | None,
    typer.Option(
        help="Of the layers in training; the scan, the loss and the artefact are float32.",
        show_default=DEFAULTS.precision,
        rich_help_panel=TRAINING,
    ),
]
Kernels = Annotated[
    KernelChoice,
    typer.Option(
        help="Of the scan: auto takes Triton's on a GPU where the extra gpu is installed.",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Same seed, same machine: same weights.", rich_help_panel=TRAINING)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="Go on with an interrupted run.", rich_help_panel=TRAINING
    ),
]
Threads = Annotated[
    int, typer.Option(help="CPU threads; 0: torch's choice.", rich_help_panel=TRAINING)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=TRAINING)]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Say every setting, and every figure that is measured.")
]
