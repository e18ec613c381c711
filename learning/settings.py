"""How the learner learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learning.schedule import Schedule


@dataclass(frozen=True)
class LearnSettings:
    """Attributes:
    models: folder or URL that the service takes models from.
    work: folder of this machine for exports, candidates and the round under way.
    incumbent: what the service was started with, where no model is set; None: unknown.
    every_s: between two looks at what is due.
    least_events: with fewer new ones nothing is trained.
    judged_share, least_judged: so many of the newest events decide the judgement.
    margin: by how much a candidate may be worse, of the incumbent's figure.
    trial_share: of the users, who get a new model first; 1: no trial. A new scoring goes to
        everybody at once.
    trial_longest_s: a trial that the service has not decided by then is taken back.
    settle_s: a model that not every process serves after so long is taken back.
    look_s: between two looks at the service.
    warm_states: compute all states of a new model before it is served.
    items: an item table that models learn from, too; None: there is none.
    scratch_options: of `tim4rec train`, for training from nothing.
    keep: so many of the newest published models stay.
    """

    models: str
    work: Path
    incumbent: Path | None
    schedule: Schedule
    every_s: float
    least_events: int
    judged_share: float
    least_judged: int
    margin: float
    trial_share: float
    trial_longest_s: float
    settle_s: float
    look_s: float
    warm_states: bool
    items: Path | None
    scratch_options: tuple[str, ...]
    keep: int
