"""Events, followers and counters that the tests of live evidence share."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from model.live.evidence import Evidence, EvidenceRules, Observed
from service.live.checkpoint import Checkpoints
from service.live.entry import Record
from service.live.feed import Feed
from service.live.live_evidence import LiveEvidence, count
from service.store.client import Store
from tests.service.processes import BASE_MS

RULES = EvidenceRules(neighbours=4, users=5)
"""So few that neighbours and users are pushed out."""


def events(number: int, seed: int = 0) -> list[Observed]:
    """Of 8 users and 12 items, in the order of their times."""
    draw = random.Random(seed)
    return [
        Observed(draw.randrange(8), f"i{draw.randrange(12)}", BASE_MS + 60_000 * n, 1.0)
        for n in range(number)
    ]


def evidence_of(records: Iterable[Record], rules: EvidenceRules = RULES) -> bytes:
    evidence = Evidence(rules)
    count(evidence, list(records))
    return evidence.to_bytes()


def follower(
    store: Store, rules: EvidenceRules = RULES, *, most: int = 200_000, **settings: Any
) -> LiveEvidence:
    return LiveEvidence(Feed(store, most=most), Checkpoints(store), rules, **settings)


def value(metric: Any) -> float:
    found: float = metric._value.get()
    return found
