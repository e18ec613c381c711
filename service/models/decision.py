"""What a trial has come to, by what its users did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.models.sequential_test import Comparison

Outcome = Literal["promoted", "taken_back"]
Reason = Literal["better", "worse", "not worse", "undecided"]


@dataclass(frozen=True)
class Decision:
    """Attributes:
    trial, identity, live: the variant that was on trial.
    reason: promoted: it was better, or not worse when its time was over; taken back: it was worse,
        or undecided when its time was over.
    by: the process that decided.
    """

    trial: str
    identity: str
    live: bool
    decision: Outcome
    reason: Reason
    at_ms: int
    by: str
    figures: Comparison
