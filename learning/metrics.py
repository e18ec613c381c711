"""Metrics of the learner, for a Prometheus of its own port."""

from __future__ import annotations

from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from learning.round import Stage

REGISTRY = CollectorRegistry()
_OWN: Any = {"registry": REGISTRY, "multiprocess_mode": "livemax"}
"""Where a process has a service's metrics too, they leave as those of its workers do."""

ROUNDS = Counter(
    "tim4rec_learner_rounds", "Rounds that ended, by how.", ["outcome"], registry=REGISTRY
)
FAILURES = Counter(
    "tim4rec_learner_failures", "Failures, by part of a round.", ["part"], registry=REGISTRY
)
# From the start, so that the first of each is seen to be counted.
for outcome in ("promoted", "taken back", "refused", "given up"):
    ROUNDS.labels(outcome)
for part in ("begin", *get_args(Stage)):
    FAILURES.labels(part)
PART_DURATION = Gauge(
    "tim4rec_learner_part_seconds", "How long a part of a round took last.", ["part"],
    **_OWN,
)  # fmt: skip
MODEL_UNTIL = Gauge(
    "tim4rec_learner_model_until_timestamp_seconds",
    "Newest event that the model for everybody was trained on.", **_OWN,
)  # fmt: skip
PUBLISHED_AT = Gauge(
    "tim4rec_learner_published_timestamp_seconds", "When a model was published last.",
    **_OWN,
)  # fmt: skip
NEW_EVENTS = Gauge(
    "tim4rec_learner_new_events", "Events newer than those, when last looked at.",
    **_OWN,
)  # fmt: skip
VERDICT = Gauge("tim4rec_learner_verdict", "1: the last verdict of the judge.", ["verdict"], **_OWN)
DIFFERENCE = Gauge(
    "tim4rec_learner_difference", "Candidate less incumbent in the last judgement.", ["metric"],
    **_OWN,
)  # fmt: skip
