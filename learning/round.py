"""What is under way, in a small file: a learner that was killed goes on from it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.journal import Step
from model.plain_file import read_plain

MOST_BYTES = 1 << 20

Stage = Literal[
    "export", "candidate", "judge", "final", "publish", "states", "switch", "settle", "watch"
]
"""What comes next: export the log, train a candidate on all but its newest part, judge it on that,
train on every row, publish, compute states in advance, have it served, wait until every process
does, wait for the trial's end."""


@dataclass(frozen=True)
class Round:
    """Attributes:
    id: when it began, UTC; folders are named by it.
    incumbent: name of the model it starts from; None: it is no published one, or there is none.
    events: newer than what the incumbent was trained on.
    since: ISO; the newest of them, which decide the judgement, come after it.
    name: what the model is published as.
    until: ISO; the newest event it was trained on.
    replaced: name of the model that everybody had before.
    served_at, settling_since: epoch seconds.
    seconds: of each part so far.
    failures: in a row, of the next stage.
    """

    id: str
    stage: Stage
    step: Step
    incumbent: str | None = None
    events: int = 0
    since: str | None = None
    verdict: str | None = None
    figures: Mapping[str, Any] | None = None
    name: str | None = None
    edition: str | None = None
    identity: str | None = None
    until: str | None = None
    replaced: str | None = None
    served_at: float | None = None
    settling_since: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: int = 0


class RoundFile:
    """The round under way, in a file that is replaced in one step. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Round | None:
        """None: nothing is under way.

        Raises:
            ValueError: the file is none of the learner's.
        """
        try:
            return Round(**json.loads(read_plain(self._path, MOST_BYTES)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self._path}: {error}; delete it, and the next round begins anew"
            ) from None

    def write(self, going_on: Round) -> None:
        partial = self._path.with_name(f".{self._path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(going_on), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)
