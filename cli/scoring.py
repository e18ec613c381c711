"""From an artefact and a log to the same model with another scoring."""

from __future__ import annotations

from pathlib import Path

from cli.console import err, out, say
from model.artefact import CARD, claimed_edition, load_artefact, save_artefact
from model.times import iso
from training.card import with_scoring
from training.interactions import Log
from training.scoring_step import scoring_step


def publish_scoring(
    name: str,
    log: Log,
    parent_folder: Path,
    folder: Path,
    *,
    since_ms: int | None = None,
    seed: int = 0,
) -> None:
    """Trains what a parent's queries are scored against and writes the artefact; its states, and
    so its identity, are the parent's.

    Args:
        name: of the data.
        since_ms: as of `scoring_step`.

    Raises:
        ArtefactError, InputError
    """
    parent = load_artefact(parent_folder)
    step = scoring_step(log, parent, since_ms=since_ms, seed=seed, console=err)
    metrics = parent.metrics | {
        "parent": parent.edition,
        "step": "scoring",
        "until": iso(step.until_ms),
        "scoring": {
            "data": name,
            "since": iso(step.since_ms),
            "events": step.events,
            "new_items": step.new_items,
            "seed": seed,
            "seconds": round(step.seconds, 1),
        },
    }
    if step.mixture is None:
        say("too little has happened to fit a mixture: the parent's is kept")
    else:
        metrics["mixture"] = {"since": iso(step.since_ms), "seed": seed}
    card = parent_folder / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    parent.model.scoring = step.scoring
    save_artefact(
        folder,
        parent.model,
        parent.items,
        metrics,
        with_scoring(text, parent.edition, step),
        step.mixture or parent.mixture,
    )
    edition = claimed_edition(folder)
    say(
        f"{folder}: model {edition}, scored anew by {step.events:,} interactions until "
        f"{iso(step.until_ms)}, {step.new_items:,} new items",
        out,
    )
