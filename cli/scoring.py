"""From an artefact and a log to the same model that ranks otherwise: `train --scoring-only`.

Where the artefact has a mixture, that is fitted anew. Where it has none, what its queries are
scored against is trained: beside the live evidence that was measured to make lists no better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.console import CommandError, err, out, say
from model.artefact import CARD, Artefact, claimed_edition, load_artefact, save_artefact
from model.live.mixture import Mixture
from model.times import iso
from training.card import with_scoring
from training.interactions import Log
from training.mixture import LEAST_EVENTS, fit_mixture
from training.scoring_step import scoring_step


def publish_scoring(name: str, log: Log, parent: Path, folder: Path, *, seed: int = 0) -> None:
    """Writes an artefact whose states, and so whose identity, are the parent's.

    Args:
        name: of the data.

    Raises:
        ArtefactError, CommandError, InputError
    """
    before = load_artefact(parent)
    metrics: dict[str, Any] = before.metrics | {"parent": before.edition, "step": "scoring"}
    if before.core_until_ms is not None:
        metrics["core_until"] = iso(before.core_until_ms)
    card = parent / CARD
    text, mixture = card.read_text(encoding="utf-8") if card.exists() else "", before.mixture
    if mixture is not None:
        mixture, newest_ms = _fitted(log, before, seed), int(log.frame["time_ms"].max())  # type: ignore[arg-type]
        said = f"mixture fitted anew on interactions until {iso(newest_ms)}"
        metrics |= {"until": iso(newest_ms), "mixture": {"data": name, "seed": seed}}
    else:
        step = scoring_step(log, before, since_ms=None, seed=seed, console=err)
        said = (
            f"scored anew by {step.events:,} interactions until {iso(step.until_ms)}, "
            f"{step.new_items:,} new items"
        )
        text, before.model.scoring = with_scoring(text, before.edition, step), step.scoring
        metrics["until"] = iso(step.until_ms)
        metrics["scoring"] = {
            "data": name,
            "since": iso(step.since_ms),
            "events": step.events,
            "new_items": step.new_items,
            "seed": seed,
            "seconds": round(step.seconds, 1),
        }
    save_artefact(folder, before.model, before.items, metrics, text, mixture, before.kinds)
    say(f"{folder}: model {claimed_edition(folder)}, {said}", out)


def _fitted(log: Log, parent: Artefact, seed: int) -> Mixture:
    since_ms = parent.core_until_ms
    if since_ms is None:
        raise CommandError(
            f"{parent.folder} does not say until when it was trained: `tim4rec live fit --since`"
        )
    ids = parent.scored_items.ids
    mixture = fit_mixture(
        log,
        parent.model,
        ids,
        since_ms + 1,
        start=parent.mixture,
        start_until_ms=parent.until_ms,
        seed=seed,
    )
    if mixture is None:
        raise CommandError(
            f"fewer than {LEAST_EVENTS} interactions from {iso(since_ms + 1)} on are with items "
            "that could be foreseen: too few to fit a mixture on"
        )
    return mixture
