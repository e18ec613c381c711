"""Where the learner stands, from the journal, the lease and the round under way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from learning.journal import made, newest
from learning.lease import Holder
from learning.round import Round
from learning.schedule import Schedule, counted_from
from model.journal import Entry, Step
from model.times import iso, parse_time


@dataclass(frozen=True)
class ModelStatus:
    """What became of a published model; `entry`: of its publication; `reason`: of the last one."""

    name: str
    state: str
    since: str
    entry: Entry
    reason: str | None


@dataclass(frozen=True)
class Status:
    """Attributes:
    under_way: of the work folder that was looked at.
    due: when each step is next due, ISO 8601, as far as it is known.
    models: the newest first.
    last: the newest entry of the journal.
    """

    holder: Holder | None
    under_way: Round | None
    due: dict[Step, str]
    models: tuple[ModelStatus, ...]
    last: Entry | None

    @classmethod
    def of(
        cls, entries: Sequence[Entry], holder: Holder | None, under_way: Round | None,
        schedule: Schedule, most: int,
    ) -> Status:  # fmt: skip
        done = made(entries)
        serving = newest(entries, "promoted")
        if serving is not None and serving.until is not None:
            done = counted_from(done, parse_time(serving.until) / 1000)
        due = schedule.due_at(done)
        published = [one for one in entries if one.what == "published" and one.model is not None]
        return cls(
            holder,
            under_way,
            {step: iso(round(1000 * at)) for step, at in due.items() if math.isfinite(at)},
            tuple(_model(entries, one) for one in reversed(published[-most:])),
            entries[-1] if entries else None,
        )


def _model(entries: Sequence[Entry], published: Entry) -> ModelStatus:
    assert published.model is not None
    last = [one for one in entries if one.model == published.model and one.what != "failed"][-1]
    return ModelStatus(published.model, last.what, last.at, published, last.reason)
