"""The model card: what was trained, on what, how well it does, how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model import ModelConfig
from model.times import iso
from training.evaluation import ResultRow
from training.metrics import CUTOFFS
from training.outcome import Outcome
from training.scoring_step import ScoringStep

TIME_PATHS = {
    "causal": "causal: the gaps before each interaction enter pointwise, so a user's state is "
    "updated by one constant-size step an interaction",
    "sequence": "sequence: the paper's, mixed along the whole window; served by recomputing the "
    "window, never by stepping",
    "none": "none: order only, no times (the SSD4Rec* ablation)",
}

TIME_PATH_CHOICE = (
    "Why the default is gap_embedding with gap_mix=factor: of the paper's product before the "
    "softplus, a bounded factor after it, a gap embedding, and the last two together, trained "
    "side by side (`python -m benchmarks.time_paths`, two seeds, NDCG@10 with seen items kept), "
    "MovieLens-1M users 1-2999 after 6 epochs gave 0.1182, 0.1180, 0.1220 and 0.1215, and with the "
    "request time known 0.1455, 0.1459, 0.1504 and 0.1503: the embedding is what helps. On Amazon "
    "Beauty, whose times are whole days, the four lie within the spread of the seeds. The factor "
    "beside the embedding costs nothing and changes nothing that could be measured; it is kept "
    "because it is what lets the state forget by the time that passed."
)


SPLITS = {
    "leave-one-out": "Leave-one-out: each user's last interaction is the test target, the one "
    "before is for validation, and the test input includes it.",
    "temporal": "Temporal: validated and tested on each user's first interaction after a cut; core "
    "and vocabulary are of the part before the first cut, an unseen target is a miss.",
    "forward": "Forward: validated on a sample of what follows a known item in the last tenth of "
    "the log; core and vocabulary are of the part before, an unseen target is a miss.",
}


def model_card(outcome: Outcome, command: str, notes: Sequence[str] = ()) -> str:
    """The text of an artefact's README.md (Markdown).

    Args:
        command: what trains this model again; notes: on the data, as read.
    """
    protocol, model_config = outcome.dataset.protocol, outcome.model.config
    sections = [
        f"# TiM4Rec on {outcome.name}",
        "## Data",
        _sizes(outcome.dataset.describe()),
        f"{protocol.core}. {SPLITS[protocol.split]}",
        *(f"Note: {note}." for note in notes),
        "## Model",
        _table(["", ""], [[key, _shown(value)] for key, value in model_config.to_dict().items()]),
        f"Time path: {TIME_PATHS[model_config.time]}.",
        *_time_reasons(model_config),
        *_warm_start(outcome),
        "## Training",
        _table(["", ""], [[key, _shown(value)] for key, value in outcome.config.to_dict().items()]),
        f"{outcome.trained.epochs} epochs in {outcome.trained.seconds:.0f} s; {_weights(outcome)}.",
        f"Repeat bias {outcome.model.repeat_bias:g}: added to the score of an item that the user "
        "has had, where such items are kept; fitted on validation.",
        *_content(outcome),
        *_refit(outcome),
        *_mixture(outcome),
        *_results(outcome),
        "## Again",
        f"```sh\n{command}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _warm_start(outcome: Outcome) -> list[str]:
    warm = outcome.warm_start
    if warm is None:
        return []
    new = "all of them"
    if warm.since_ms is not None:
        new = f"{warm.new_targets:,} of them from after {iso(warm.since_ms)}"
    return [
        "## Warm start",
        f"It goes on from the model {warm.parent}, on the interactions of the log, {new}. An "
        "epoch takes all windows with a newer interaction, and a share of "
        f"{warm.replay:g} of the others.",
    ]


def _weights(outcome: Outcome) -> str:
    trained = outcome.trained
    if not len(outcome.dataset.validation):
        return "the weights are those of the last epoch; nothing was set aside to validate on"
    if outcome.members > 1:
        return (
            f"an ensemble of {outcome.members} models, each trained with a seed of its own, "
            f"with the weights of its best epoch; validation NDCG@10 together "
            f"{trained.best_ndcg:.4f}"
        )
    which = "the best" if outcome.config.schedule == "constant" else "the last"
    return (
        f"the weights are those of epoch {trained.best_epoch}, {which}, with a validation NDCG@10 "
        f"of {trained.best_ndcg:.4f}"
    )


def _content(outcome: Outcome) -> list[str]:
    content = outcome.model.content
    if content is None:
        return []
    return [
        f"Items' vectors are those of their ids and of {len(content.hashes):,} words, "
        "categories and values of attributes, added up. An item that was not trained on has the "
        f"latter alone, times {content.scale:.3g}, and a shift that all of them share."
    ]


def _refit(outcome: Outcome) -> list[str]:
    if outcome.refit is None:
        return []
    recipe = outcome.refit.recipe
    rows = "every row of the log, what had been set aside included"
    if (warm := outcome.warm_start) is not None:
        rows = f"what had been set aside, and a share of {warm.replay:g} of all other windows"
    return [
        "## Refit",
        f"From these weights, {recipe['max_epochs']} epochs on {rows}, "
        f"at a learning rate that fell from {recipe['lr']:g} to 0, in "
        f"{outcome.refit.result.seconds:.0f} s. That model is the one in this folder.",
        _sizes(outcome.refit.dataset.describe()),
    ]


def _mixture(outcome: Outcome) -> list[str]:
    if outcome.mixture is None:
        return []
    origin = (
        "It was fitted with the model before its refit, on all interactions that came after the "
        "part that this model was trained on."
    )
    if outcome.warm_start is not None and not outcome.warm_start.own_mixture:
        origin = "It is that of the model before the warm start: too little is new to fit another."
    return [
        "## Mixture",
        "`mixture.safetensors` joins the model's scores and what the service counts of everybody's "
        f"interactions. {origin}",
    ]


def _results(outcome: Outcome) -> list[str]:
    if not outcome.rows:
        return []
    return [
        f"## {outcome.ranked.capitalize()} results",
        *_of_which_model(outcome),
        "Full ranking over the catalogue, ties counted against the model. *Seen*: whether the "
        "user's earlier items stay among the candidates (kept), stay with the repeat bias "
        "(weighed), or not (filtered). *Request "
        "time*: whether the model knows the time of the request, here the target's own; compare "
        "only rows where it is unknown to models that do not take it.",
        metrics_table(outcome.rows),
        *_comparison(outcome),
    ]


def _comparison(outcome: Outcome) -> list[str]:
    if outcome.comparison is None:
        return []
    lines = "\n".join(outcome.comparison.lines(f"{outcome.ranked} targets"))
    return ["Beside counting what the model was trained on:", f"```\n{lines}\n```"]


def _of_which_model(outcome: Outcome) -> list[str]:
    lines = []
    if outcome.refit is not None:
        lines.append(
            "Of the model before its refit. The one in this folder has been trained on these "
            "targets, so it has no figures of its own."
        )
    if outcome.ranked == "validation" and outcome.config.schedule == "constant":
        lines.append("These targets have chosen the epoch: the figures are a little too good.")
    return lines


SCORING = "## Scoring"


def with_scoring(card: str, parent: str, step: ScoringStep) -> str:
    """A parent's card, for the same model with another scoring; parent: its edition."""
    before, _, _ = card.partition(f"\n{SCORING}\n")
    return f"""{before.rstrip()}

{SCORING}

What queries are scored against was trained apart, by {step.events:,} interactions, those from
{iso(step.since_ms)} to {iso(step.until_ms)} and as many older ones at most, starting from model
{parent}. {step.new_items:,} items are new in it. States are those of the model above, whose figures
are its own.
"""


def _sizes(sizes: dict[str, int | float]) -> str:
    rows = [[key.replace("_", " "), f"{value:,}"] for key, value in sizes.items()]
    return _table(["", ""], rows)


def metrics_table(rows: Sequence[ResultRow]) -> str:
    """Markdown table of results, a line a row."""
    names = [f"{metric}@{k}" for metric in ("HR", "NDCG", "MRR") for k in CUTOFFS]
    return _table(
        ["history", "request time", "seen", *names],
        [
            [
                row.history,
                "known" if row.request_time else "unknown",
                row.seen,
                *(f"{row.metrics[name]:.4f}" for name in names),
            ]
            for row in rows
        ],
    )


def _time_reasons(config: ModelConfig) -> list[str]:
    if config.time != "causal":
        return []
    reasons = []
    if config.gap_embedding:
        reasons.append("an embedding of the gap is added to the item's")
    if config.gap_mix != "none":
        place = "after" if config.gap_mix == "factor" else "before"
        reasons.append(f"the gap scales the step size {place} the softplus")
    if config.request_time:
        reasons.append("the gap from the last interaction to the request scales the read-out")
    return [f"How time enters: {'; '.join(reasons) or 'not at all'}.", TIME_PATH_CHOICE]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " .. ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
